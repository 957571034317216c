//! Where a model's files come from: a folder in diffusers' layout, or one compiled into the program.

use crate::error::{ModelError, Result};
use crate::json::without_infinities;
use crate::weights::{WeightBytes, Weights};
use include_dir::Dir;
use memmap2::Mmap;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A model folder. Paths within it use `/`, like `transformer/config.json`.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    /// On disk; weights are memory-mapped while they load.
    Folder(PathBuf),
    /// Compiled in.
    Embedded(&'static Dir<'static>),
    /// In memory, by path: for tests and fuzzing.
    Memory(Arc<BTreeMap<String, Vec<u8>>>),
}

impl ModelFiles {
    /// Files in memory, by path.
    pub fn memory(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        Self::Memory(Arc::new(files.into_iter().collect()))
    }

    /// Whether there is a file at `path`.
    pub fn contains(&self, path: &str) -> bool {
        match self {
            Self::Folder(root) => root.join(path).is_file(),
            Self::Embedded(dir) => dir.get_file(path).is_some(),
            Self::Memory(files) => files.contains_key(path),
        }
    }

    /// The bytes of a small file.
    pub fn read(&self, path: &str) -> Result<Cow<'static, [u8]>> {
        match self {
            Self::Folder(root) => {
                fs::read(root.join(path)).map(Cow::Owned).map_err(|source| self.unreadable(path, source))
            }
            Self::Embedded(dir) => self.embedded(dir, path).map(Cow::Borrowed),
            Self::Memory(files) => self.in_memory(files, path).map(Cow::Owned),
        }
    }

    /// A JSON file as `T`.
    pub fn read_json<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        serde_json::from_slice(&without_infinities(&self.read(path)?))
            .map_err(|e| ModelError::config(self.name_of(path), e.to_string()))
    }

    /// All weights of `subfolder` (empty for the root): one safetensors or GGUF file, or the shards that an index names.
    pub fn weights(&self, subfolder: &str) -> Result<Weights> {
        Weights::open(self, subfolder)
    }

    /// How a file is named in messages.
    pub(crate) fn name_of(&self, path: &str) -> String {
        match self {
            Self::Folder(root) => root.join(path).display().to_string(),
            Self::Embedded(_) => format!("built-in model/{path}"),
            Self::Memory(_) => path.to_owned(),
        }
    }

    /// Names of the files directly in `subfolder`, sorted; empty when there is no such folder.
    pub(crate) fn list(&self, subfolder: &str) -> Vec<String> {
        let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
        let mut names: Vec<String> = match self {
            Self::Folder(root) => fs::read_dir(root.join(subfolder))
                .map(|entries| entries.flatten().filter_map(|entry| name(&entry.path())).collect())
                .unwrap_or_default(),
            Self::Embedded(root) => {
                let dir = if subfolder.is_empty() { Some(*root) } else { root.get_dir(subfolder) };
                dir.map(|d| d.files().filter_map(|f| name(f.path())).collect()).unwrap_or_default()
            }
            Self::Memory(files) => {
                let is_there = |path: &&String| path.rsplit_once('/').map_or("", |(folder, _)| folder) == subfolder;
                files.keys().filter(is_there).filter_map(|path| name(Path::new(path))).collect()
            }
        };
        names.sort();
        names
    }

    /// A weight file: mapped or borrowed, never copied as a whole.
    pub(crate) fn map(&self, path: &str) -> Result<WeightBytes> {
        match self {
            Self::Folder(root) => map_file(&root.join(path)).map_err(|source| self.unreadable(path, source)),
            Self::Embedded(dir) => self.embedded(dir, path).map(|bytes| WeightBytes::Slice(Cow::Borrowed(bytes))),
            Self::Memory(files) => self.in_memory(files, path).map(|bytes| WeightBytes::Slice(Cow::Owned(bytes))),
        }
    }

    fn embedded(&self, dir: &'static Dir<'static>, path: &str) -> Result<&'static [u8]> {
        let file = dir.get_file(path).ok_or_else(|| self.unreadable(path, io::ErrorKind::NotFound.into()))?;
        Ok(file.contents())
    }

    fn in_memory(&self, files: &BTreeMap<String, Vec<u8>>, path: &str) -> Result<Vec<u8>> {
        files.get(path).cloned().ok_or_else(|| self.unreadable(path, io::ErrorKind::NotFound.into()))
    }

    fn unreadable(&self, path: &str, source: io::Error) -> ModelError {
        ModelError::File { file: self.name_of(path), source }
    }
}

fn map_file(path: &Path) -> io::Result<WeightBytes> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(WeightBytes::Slice(Cow::Borrowed(&[])));
    }
    // SAFETY: a mapping is unsound only if the file changes under it. Model folders belong to the operator and are not
    // written while a process uses them (a new version is a new folder); tensors are copied out and checked as they are taken.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file)? };
    Ok(WeightBytes::Mapped(map))
}
