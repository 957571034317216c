//! The object store in a folder.
//!
//! An object's key is a prefix, the SHA-256 of its bytes and an extension, so a key never says what a user called
//! something, the same bytes are stored once under a prefix, and a stored object never changes. A write is seen whole or
//! not at all, also after a power cut. What must be deletable on its own (the results of one job) needs a prefix of its
//! own, because equal bytes under one prefix are one object.

use pipeline::{Digest, ObjectKey};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

const EXTENSION_BYTES_MAX: usize = 8;
/// Holds objects while they are written. No key has a part that starts with a dot.
const INCOMING: &str = ".incoming";
/// After this a file that is still incoming belongs to a process that has ended.
const INCOMING_AGE_MAX: Duration = Duration::from_secs(3600);

/// Why an object was not stored or not found.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// There is no object with this key.
    #[error("there is no object `{0}`")]
    NotFound(ObjectKey),
    /// The wanted range starts behind the object's end.
    #[error("`{key}` has {len} bytes: a range cannot start at {start}")]
    Range {
        /// The object.
        key: ObjectKey,
        /// Its length.
        len: u64,
        /// Where the range starts.
        start: u64,
    },
    /// Prefix, digest and extension do not make a key.
    #[error(
        "objects cannot be stored under `{prefix}` as `.{extension}`: use 1-{EXTENSION_BYTES_MAX} of a-z and 0-9 for the extension, and a shorter prefix"
    )]
    Name {
        /// The prefix.
        prefix: ObjectKey,
        /// The extension.
        extension: String,
    },
    /// The file system said no.
    #[error("the object store failed: {0}")]
    Io(#[from] io::Error),
}

/// Objects as files below one folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FolderStore {
    root: Arc<Path>,
}

impl FolderStore {
    /// Opens the store in `root`, making the folder if needed, and sweeps away what a crash left half-written.
    pub fn open(root: &Path) -> Result<Self, ObjectError> {
        let incoming = root.join(INCOMING);
        fs::create_dir_all(&incoming)?;
        sweep(&incoming)?;
        Ok(Self { root: root.canonicalize()?.into() })
    }

    /// Stores `bytes` and returns their key. Storing the same bytes again under the same prefix changes nothing.
    pub async fn put(&self, prefix: &ObjectKey, bytes: Vec<u8>, extension: &str) -> Result<ObjectKey, ObjectError> {
        let (prefix, extension) = (prefix.clone(), extension.to_owned());
        self.blocking(move |store| store.put_now(&prefix, &bytes, &extension)).await
    }

    /// The whole object.
    pub async fn get(&self, key: &ObjectKey) -> Result<Vec<u8>, ObjectError> {
        self.get_range(key, 0, u64::MAX).await
    }

    /// At most `len` bytes from `start`; fewer only at the object's end.
    pub async fn get_range(&self, key: &ObjectKey, start: u64, len: u64) -> Result<Vec<u8>, ObjectError> {
        let key = key.clone();
        self.blocking(move |store| store.read_now(&key, start, len)).await
    }

    /// The object's length in bytes.
    pub async fn len(&self, key: &ObjectKey) -> Result<u64, ObjectError> {
        let key = key.clone();
        self.blocking(move |store| Ok(fs::metadata(store.existing(&key)?)?.len())).await
    }

    /// Removes the object. One that is not there is no error: the goal is reached.
    pub async fn delete(&self, key: &ObjectKey) -> Result<(), ObjectError> {
        let key = key.clone();
        self.blocking(move |store| match store.existing(&key) {
            Ok(path) => Ok(fs::remove_file(path)?),
            Err(ObjectError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        })
        .await
    }

    /// Bytes of all objects whose keys start with `prefix/`; of all there are, without one.
    pub async fn usage_bytes(&self, prefix: Option<&ObjectKey>) -> Result<u64, ObjectError> {
        let dir = prefix.map_or_else(|| self.root.to_path_buf(), |prefix| self.path(prefix));
        self.blocking(move |_| Ok(bytes_below(&dir)?)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, ObjectError> + Send + 'static,
    ) -> Result<T, ObjectError> {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(outcome) => outcome,
            Err(stopped) => Err(ObjectError::Io(io::Error::other(stopped))),
        }
    }

    fn put_now(&self, prefix: &ObjectKey, bytes: &[u8], extension: &str) -> Result<ObjectKey, ObjectError> {
        let key = key_of(prefix, bytes, extension)?;
        let path = self.path(&key);
        let dir = path.parent().expect("a key has a prefix");
        fs::create_dir_all(dir)?;
        self.check_inside(dir, &key)?;
        // Same length and same digest in the name: the bytes are there already.
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() && found.len() == bytes.len() as u64) {
            return Ok(key);
        }
        let mut file = tempfile::NamedTempFile::new_in(self.root.join(INCOMING))?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        // The name must survive a power cut as well as the bytes.
        File::open(dir)?.sync_all()?;
        Ok(key)
    }

    fn read_now(&self, key: &ObjectKey, start: u64, len: u64) -> Result<Vec<u8>, ObjectError> {
        let mut file = File::open(self.existing(key)?)?;
        let total = file.metadata()?.len();
        if start > total {
            return Err(ObjectError::Range { key: key.clone(), len: total, start });
        }
        file.seek(SeekFrom::Start(start))?;
        let wanted = len.min(total - start);
        let mut bytes = Vec::with_capacity(wanted as usize);
        file.take(wanted).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        // A key's parts are never empty, `.` or `..`.
        key.as_str().split('/').fold(self.root.to_path_buf(), |path, part| path.join(part))
    }

    /// The object's file, if it is a plain file inside the root. A link that someone put there is not an object.
    fn existing(&self, key: &ObjectKey) -> Result<PathBuf, ObjectError> {
        let path = self.path(key);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() => {}
            Ok(_) => return Err(ObjectError::NotFound(key.clone())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(ObjectError::NotFound(key.clone()));
            }
            Err(error) => return Err(error.into()),
        }
        self.check_inside(path.parent().expect("a key has a part"), key)?;
        Ok(path)
    }

    fn check_inside(&self, dir: &Path, key: &ObjectKey) -> Result<(), ObjectError> {
        if dir.canonicalize()?.starts_with(&self.root) { Ok(()) } else { Err(ObjectError::NotFound(key.clone())) }
    }
}

fn key_of(prefix: &ObjectKey, bytes: &[u8], extension: &str) -> Result<ObjectKey, ObjectError> {
    let name_error = || ObjectError::Name { prefix: prefix.clone(), extension: extension.to_owned() };
    let plain = extension.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !plain || !(1..=EXTENSION_BYTES_MAX).contains(&extension.len()) {
        return Err(name_error());
    }
    let digest = Digest::new(Sha256::digest(bytes).into());
    format!("{prefix}/{digest}.{extension}").parse().map_err(|_| name_error())
}

fn sweep(incoming: &Path) -> io::Result<()> {
    for entry in fs::read_dir(incoming)? {
        let entry = entry?;
        // Whoever wrote it may be finishing or sweeping at this moment: a file that is gone is fine.
        let age = entry.metadata().and_then(|found| found.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age > INCOMING_AGE_MAX) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

fn bytes_below(dir: &Path) -> io::Result<u64> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        let found = entry.file_type()?;
        if found.is_dir() && entry.file_name() != INCOMING {
            bytes += bytes_below(&entry.path())?;
        } else if found.is_file() {
            // An object may be deleted while it is counted.
            bytes += entry.metadata().map_or(0, |metadata| metadata.len());
        }
    }
    Ok(bytes)
}
