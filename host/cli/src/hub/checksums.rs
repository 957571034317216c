//! The sum of every file of a downloaded model, beside the list of models, in the form that `sha256sum --check` reads.

use crate::failure::Failure;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const CHUNK_BYTES: usize = 1 << 20;

/// SHA-256 of a file, in hexadecimal; `progress` hears of each chunk's bytes.
pub fn sha256(path: &Path, mut progress: impl FnMut(u64)) -> io::Result<String> {
    let (mut file, mut sum, mut chunk) = (File::open(path)?, Sha256::new(), vec![0; CHUNK_BYTES]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hex::encode(sum.finalize())),
            bytes => {
                sum.update(&chunk[..bytes]);
                progress(bytes as u64);
            }
        }
    }
}

/// The sums of one model's files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checksums {
    /// Path within the model's folder and sum.
    pub files: Vec<(String, String)>,
}

/// What a check against the sums found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The file is as it was.
    Whole,
    /// The file is not there or not readable.
    Missing(String),
    /// The file has another content.
    Changed,
}

impl Checksums {
    /// Where the sums of the model `name` lie.
    pub fn path(data_dir: &Path, name: &str) -> PathBuf {
        data_dir.join("models").join(format!("{name}.sha256"))
    }

    /// Reads a model's sums; none when none were kept.
    pub fn read(data_dir: &Path, name: &str) -> Result<Option<Self>, Failure> {
        let path = Self::path(data_dir, name);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?,
        };
        let line = |line: &str| line.split_once("  ").map(|(sum, file)| (file.to_owned(), sum.to_owned()));
        let files: Option<Vec<_>> = text.lines().map(line).collect();
        let damaged = || Failure::failed(format!("{}: not a list of sums; add the model again", path.display()));
        Ok(Some(Self { files: files.ok_or_else(damaged)? }))
    }

    /// Writes the sums, replacing older ones as a whole.
    pub fn write(&self, data_dir: &Path, name: &str) -> io::Result<()> {
        let path = Self::path(data_dir, name);
        let folder = path.parent().unwrap_or(data_dir);
        fs::create_dir_all(folder)?;
        let text: String = self.files.iter().map(|(file, sum)| format!("{sum}  {file}\n")).collect();
        let partial = path.with_extension("sha256.new");
        fs::write(&partial, text)?;
        fs::rename(partial, path)
    }

    /// Compares the file at `path` in `folder` with its sum.
    pub fn verify(folder: &Path, path: &str, sum: &str, progress: impl FnMut(u64)) -> Verdict {
        match sha256(&folder.join(path), progress) {
            Err(error) => Verdict::Missing(error.to_string()),
            Ok(found) if found == sum => Verdict::Whole,
            Ok(_) => Verdict::Changed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_kept_and_a_changed_or_missing_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "abc").unwrap();
        let sum = sha256(&dir.path().join("a"), |_| ()).unwrap();
        assert_eq!(sum, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let sums = Checksums { files: vec![("a".to_owned(), sum.clone())] };
        sums.write(dir.path(), "wan").unwrap();
        assert_eq!(Checksums::read(dir.path(), "wan").unwrap(), Some(sums));
        assert_eq!(Checksums::read(dir.path(), "other").unwrap(), None);
        assert_eq!(Checksums::verify(dir.path(), "a", &sum, |_| ()), Verdict::Whole);
        fs::write(dir.path().join("a"), "abd").unwrap();
        assert_eq!(Checksums::verify(dir.path(), "a", &sum, |_| ()), Verdict::Changed);
        assert!(matches!(Checksums::verify(dir.path(), "b", &sum, |_| ()), Verdict::Missing(_)));
    }
}
