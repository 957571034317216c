//! Compiled components on disk.
//!
//! Loading machine code means running it, so nothing is loaded that this process (or an earlier one with the same key)
//! did not write: each file starts with an HMAC-SHA256 over its name and its content, under a key that lies beside it
//! and that only this user can read. A file that does not match is ignored and compiled anew.

use crate::error::RuntimeError;
use hmac::{Hmac, Mac};
use pipeline::Digest;
use sha2::Sha256;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use wasmtime::Engine;
use wasmtime::component::Component;

const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = 32;

/// A folder of compiled components.
#[derive(Debug)]
pub(crate) struct AotCache {
    folder: PathBuf,
    key: [u8; KEY_BYTES],
    /// Changes with the version of wasmtime, its configuration and the machine's instruction set.
    compatibility: u64,
    bytes_max: u64,
}

impl AotCache {
    /// Opens the folder, making it and its key if they are not there.
    pub(crate) fn open(folder: &Path, engine: &Engine, bytes_max: u64) -> Result<Self, RuntimeError> {
        let failed = |message: io::Error| RuntimeError::Cache {
            path: folder.display().to_string(),
            message: message.to_string(),
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        let key = read_or_make_key(&folder.join("mac.key")).map_err(failed)?;
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Ok(Self { folder: folder.to_owned(), key, compatibility: hasher.finish(), bytes_max })
    }

    /// The compiled component, if an intact one is there.
    pub(crate) fn load(&self, engine: &Engine, digest: &Digest) -> Option<Component> {
        let path = self.path(digest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a compiled component cannot be read; compiling it anew");
                return None;
            }
        };
        let Some(code) = self.authentic(digest, &bytes) else {
            tracing::warn!(path = %path.display(), "a compiled component was changed on disk; compiling it anew");
            return None;
        };
        // SAFETY: `deserialize` runs what it is given. These bytes are in memory, where nobody changes them any more,
        // and their MAC proves that `store` wrote them from this engine's own `serialize`, for this digest.
        #[allow(unsafe_code)]
        let component = unsafe { Component::deserialize(engine, code) };
        component
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "a compiled component does not load"))
            .ok()
    }

    /// Keeps a compiled component. A full disk costs time, not correctness, so a failure is only logged.
    pub(crate) fn store(&self, digest: &Digest, component: &Component) {
        let kept = component.serialize().map_err(io::Error::other).and_then(|code| {
            self.make_room(code.len() as u64)?;
            self.write(digest, &code)
        });
        if let Err(error) = kept {
            tracing::warn!(%digest, %error, "a compiled component could not be kept");
        }
    }

    fn write(&self, digest: &Digest, code: &[u8]) -> io::Result<()> {
        // Under a name of its own first: a reader never sees half a file.
        let mut file = tempfile_in(&self.folder)?;
        file.1.write_all(&self.mac(digest, code).finalize().into_bytes())?;
        file.1.write_all(code)?;
        fs::rename(&file.0, self.path(digest))
    }

    /// Deletes the oldest files until `bytes` more fit.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if entry.path().extension().is_some_and(|extension| extension == "cwasm") {
                files.push((meta.modified()?, meta.len(), entry.path()));
            }
        }
        files.sort();
        let mut all: u64 = files.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in files {
            if all + bytes <= self.bytes_max {
                break;
            }
            fs::remove_file(path)?;
            all -= len;
        }
        Ok(())
    }

    /// The code of a file, when its MAC is right.
    fn authentic<'a>(&self, digest: &Digest, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let (mac, code) = bytes.split_at_checked(MAC_BYTES)?;
        self.mac(digest, code).verify_slice(mac).ok()?;
        Some(code)
    }

    fn mac(&self, digest: &Digest, code: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(digest.as_bytes());
        mac.update(&self.compatibility.to_le_bytes());
        mac.update(code);
        mac
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{}-{:016x}.cwasm", digest.to_hex(), self.compatibility))
    }
}

fn read_or_make_key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let made: [u8; KEY_BYTES] = rand::random();
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => file.write_all(&made).map(|()| made),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut key = [0; KEY_BYTES];
            File::open(path)?.read_exact(&mut key).map(|()| key)
        }
        Err(error) => Err(error),
    }
}

fn tempfile_in(folder: &Path) -> io::Result<(PathBuf, File)> {
    let path = folder.join(format!("{:032x}.tmp", rand::random::<u128>()));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    Ok((path, file))
}
