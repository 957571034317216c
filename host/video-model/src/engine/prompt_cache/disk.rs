//! The folder of the prompt cache: a file per prompt, named by its key. Its contents are never trusted and never needed: a
//! file that is damaged is removed, and a folder that cannot be used is reported in the log and done without.

use super::lru::Lru;
use super::{PromptKey, TextStates};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

const SUFFIX: &str = ".safetensors";
/// How files are named until they are whole.
const UNFINISHED: &str = ".unfinished-";
/// Unfinished files of this age belong to a process that died.
const UNFINISHED_AGE_MAX: Duration = Duration::from_secs(3600);
/// Files of more bytes are not read: 512 rows of the widest encoder are 8 MB.
const ENTRY_BYTES_MAX: u64 = 64 << 20;

pub(super) struct DiskCache {
    folder: PathBuf,
    /// The files and their sizes. Other processes may share the folder, so a file may be missing or new.
    index: Mutex<Lru<()>>,
}

impl DiskCache {
    /// Takes over what lies in `folder`, the least recently used first, and removes what is over the budget.
    pub(super) fn open(folder: PathBuf, bytes_max: u64) -> Self {
        let cache = Self { folder, index: Mutex::new(Lru::new(bytes_max)) };
        let mut found = Vec::new();
        // No folder yet: nothing is in it.
        for entry in fs::read_dir(&cache.folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(key) = key_of(&name) {
                found.push((used, key, metadata.len()));
            } else if name.starts_with(UNFINISHED) && used.elapsed().is_ok_and(|age| age > UNFINISHED_AGE_MAX) {
                cache.delete(&entry.path());
            }
        }
        found.sort_by_key(|(used, _, _)| *used);
        found.into_iter().for_each(|(_, key, bytes)| cache.keep(key, bytes));
        cache
    }

    pub(super) fn held_bytes(&self) -> u64 {
        self.lock().held_bytes()
    }

    /// The states in the key's file; a damaged one is removed.
    pub(super) fn read(&self, key: PromptKey) -> Option<TextStates> {
        let path = self.path(key);
        let bytes = match read_bounded(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.lock().remove(&key);
                return None;
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "a cached prompt cannot be read");
                return None;
            }
        };
        let stored_bytes = bytes.len() as u64;
        match TextStates::from_file(&path.display().to_string(), bytes, key) {
            Ok(states) => {
                // The file's time is what the next process knows of its last use; without it, it only goes earlier.
                let _ = File::options().write(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                self.keep(key, stored_bytes);
                Some(states)
            }
            Err(error) => {
                tracing::warn!(%error, "a cached prompt is damaged and removed");
                self.lock().remove(&key);
                self.delete(&path);
                None
            }
        }
    }

    /// Stores the states: the file appears whole or not at all.
    pub(super) fn write(&self, key: PromptKey, states: &TextStates) {
        let stored = states.to_file(key).map_err(io::Error::other).and_then(|bytes| {
            fs::create_dir_all(&self.folder)?;
            let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.folder)?;
            file.write_all(&bytes)?;
            file.persist(self.path(key)).map_err(|e| e.error)?;
            Ok(bytes.len() as u64)
        });
        match stored {
            Ok(bytes) => self.keep(key, bytes),
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, "a prompt cannot be cached on disk");
            }
        }
    }

    /// Counts a file, and removes what is over the budget now.
    fn keep(&self, key: PromptKey, bytes: u64) {
        let gone = self.lock().insert(key, (), bytes);
        gone.into_iter().for_each(|key| self.delete(&self.path(key)));
    }

    fn delete(&self, path: &Path) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file = %path.display(), %error, "a cached prompt cannot be removed");
            }
            _ => {}
        }
    }

    fn path(&self, key: PromptKey) -> PathBuf {
        self.folder.join(hex::encode(key.0) + SUFFIX)
    }

    fn lock(&self) -> MutexGuard<'_, Lru<()>> {
        // Nothing that can panic runs under the lock.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key_of(file_name: &str) -> Option<PromptKey> {
    let mut key = [0; 32];
    hex::decode_to_slice(file_name.strip_suffix(SUFFIX)?, &mut key).ok()?;
    Some(PromptKey(key))
}

/// A file larger than any entry is cut, and so turns out to be damaged.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(ENTRY_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}
