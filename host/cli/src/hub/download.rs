//! Fetching a model's files with resume, and checking each against what the hub says of it.

use super::checksums::{Checksums, sha256};
use super::files::{INDEX, RemoteFile, needed};
use super::{ENDPOINT_DEFAULT, HubId};
use crate::failure::Failure;
use crate::output::Output;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{CacheRepo, Repo, RepoType};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

/// Broken connections in a row that a file survives; each goes on where the last one stopped.
const RETRIES: usize = 4;
/// Room to leave free.
const SPARE_BYTES: u64 = 256 << 20;

/// A model that was fetched.
#[derive(Debug)]
pub struct Downloaded {
    /// Its folder, in diffusers' layout.
    pub folder: PathBuf,
    /// The commit that it is of.
    pub commit: String,
    /// The sum of each file.
    pub checksums: Checksums,
}

/// What the hub says of a repository at a revision.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<RemoteFile>,
}

/// Where models of the hub are kept.
fn cache_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("models").join("hub")
}

/// Fetches the files of `id` that the layout needs into `data_dir`. What is there already is not fetched again.
pub fn download(id: &HubId, data_dir: &Path, output: Output) -> Result<Downloaded, Failure> {
    let hub = Hub::new(id, data_dir, output)?;
    let listing = hub.listing()?;
    let Some(index_file) = listing.siblings.iter().find(|file| file.path == INDEX) else {
        let message =
            format!("{id}: there is no {INDEX}; a repository in diffusers' layout is needed (often `…-Diffusers`)");
        return Err(Failure::refused(message));
    };
    let snapshot = hub.snapshot(&listing.sha);
    let (index_path, _) = snapshot.file(index_file)?;
    let index = fs::read(&index_path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let index = index.ok_or_else(|| Failure::refused(format!("{id}: {INDEX} is not JSON")))?;
    let files = needed(&index, &listing.siblings).map_err(|failure| Failure::refused(format!("{id}: {failure}")))?;
    snapshot.check_room(&files)?;
    let mut checksums = Checksums::default();
    for file in files {
        checksums.files.push((file.path.clone(), snapshot.file(file)?.1));
    }
    let folder = index_path.parent().unwrap_or(data_dir).to_owned();
    Ok(Downloaded { folder, commit: listing.sha, checksums })
}

/// Removes what was fetched of the model in `folder`; nothing outside of the place for such files.
pub fn remove_files(folder: &Path, data_dir: &Path) -> io::Result<()> {
    let cache = fs::canonicalize(cache_dir(data_dir))?;
    // <cache>/models--owner--name/snapshots/<commit>
    match folder.ancestors().nth(2) {
        Some(repository) if repository.parent() == Some(&cache) => fs::remove_dir_all(repository),
        _ => Err(io::Error::other(format!("{} is not below {}", folder.display(), cache.display()))),
    }
}

/// One repository of a hub.
struct Hub<'a> {
    id: &'a HubId,
    endpoint: String,
    cache: PathBuf,
    api: Api,
    output: Output,
}

impl<'a> Hub<'a> {
    fn new(id: &'a HubId, data_dir: &Path, output: Output) -> Result<Self, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT_DEFAULT.to_owned());
        let endpoint = endpoint.trim().trim_end_matches('/').to_owned();
        let cache = cache_dir(data_dir);
        // Absolute, because the cache's links are made relative to one another.
        let made = fs::create_dir_all(&cache).and_then(|()| fs::canonicalize(&cache));
        let cache = made.map_err(|error| Failure::failed(format!("{}: {error}", cache.display())))?;
        let mut builder = ApiBuilder::from_env().with_endpoint(endpoint.clone()).with_cache_dir(cache.clone());
        if let Some(token) = variable("HF_TOKEN") {
            builder = builder.with_token(Some(token.trim().to_owned()));
        }
        let builder = builder.with_retries(RETRIES).with_progress(false);
        let api = builder.with_user_agent("zoetrope", env!("CARGO_PKG_VERSION")).build();
        let api = api.map_err(|error| Failure::failed(format!("{endpoint}: {error}")))?;
        Ok(Self { id, endpoint, cache, api, output })
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.repository.clone(), RepoType::Model, revision.to_owned())
    }

    /// The repository at one commit, so that all files are of the same state.
    fn snapshot(&self, commit: &str) -> Snapshot<'_> {
        let cached = hf_hub::Cache::new(self.cache.clone()).repo(self.at(commit));
        Snapshot { hub: self, remote: self.api.repo(self.at(commit)), cached }
    }

    fn listing(&self) -> Result<Listing, Failure> {
        let answer = self.api.repo(self.at(&self.id.revision)).info_request().query("blobs", "true").call();
        let mut answer = answer.map_err(|error| self.explain("", ApiError::RequestError(Box::new(error))))?;
        let listing: Result<Listing, _> = answer.body_mut().read_json();
        let listing =
            listing.map_err(|error| Failure::failed(format!("{}: not a hub's answer: {error}", self.endpoint)))?;
        let plain = |path: &str| path.split('/').all(|part| !["", ".", ".."].contains(&part)) && !path.contains('\\');
        let is_commit = !listing.sha.is_empty() && listing.sha.bytes().all(|b| b.is_ascii_alphanumeric());
        match listing.siblings.iter().find(|file| !plain(&file.path)) {
            Some(odd) => Err(Failure::failed(format!("{}: the file `{}` is not taken", self.id, odd.path))),
            None if !is_commit => Err(Failure::failed(format!("{}: `{}` is no commit", self.id, listing.sha))),
            None => Ok(listing),
        }
    }

    fn explain(&self, file: &str, error: ApiError) -> Failure {
        let (id, endpoint) = (self.id, &self.endpoint);
        let what = if file.is_empty() { id.to_string() } else { format!("{id}: {file}") };
        match (status(&error), source(&error)) {
            (Some(401 | 403), _) => Failure::refused(format!(
                "{what}: {endpoint} does not give it to you: it is private or gated, or does not exist. Accept its terms there, then set HF_TOKEN to a token that may read it"
            )),
            (Some(404), _) => Failure::refused(format!("{what}: {endpoint} has no such model, revision or file")),
            (Some(429), _) => {
                Failure::failed(format!("{what}: {endpoint} asks for patience; try again in a few minutes"))
            }
            (Some(status), _) => {
                Failure::failed(format!("{what}: {endpoint} answered {status}; try again later, what is here is kept"))
            }
            (None, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) => {
                Failure::failed(format!("{what}: no room left in {}; what is there is kept", self.cache.display()))
            }
            (None, _) => Failure::failed(format!(
                "{what}: {error}; is {endpoint} reachable from here? Run the same command again to go on where it stopped"
            )),
        }
    }
}

/// A repository at one commit, there and here.
struct Snapshot<'h> {
    hub: &'h Hub<'h>,
    remote: ApiRepo,
    cached: CacheRepo,
}

impl Snapshot<'_> {
    /// Refuses before the first byte when the files cannot fit.
    fn check_room(&self, files: &[&RemoteFile]) -> Result<(), Failure> {
        let wanted: u64 =
            files.iter().filter(|file| self.cached.get(&file.path).is_none()).filter_map(|f| f.bytes).sum();
        let Ok(disk) = rustix::fs::statvfs(&self.hub.cache) else { return Ok(()) };
        // What an interrupted run left is part of what is wanted.
        let there: u64 = self.partial_files().filter_map(|path| fs::metadata(path).ok()).map(|m| m.len()).sum();
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if wanted.saturating_sub(there).saturating_add(SPARE_BYTES) <= free {
            return Ok(());
        }
        let (wanted, free) = (wanted as f64 / 1e9, free as f64 / 1e9);
        let cache = self.hub.cache.display();
        Err(Failure::failed(format!(
            "{wanted:.1} GB are to be fetched and {cache} has room for {free:.1}; choose another --data-dir"
        )))
    }

    /// Fetches one file if need be; its place and its sum.
    fn file(&self, file: &RemoteFile) -> Result<(PathBuf, String), Failure> {
        let mut first = true;
        loop {
            let path = match self.cached.get(&file.path) {
                Some(path) => path,
                None => self.fetch(file)?,
            };
            let sum = sha256(&path, |_| ()).map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
            let bytes = fs::metadata(&path).map_or(0, |m| m.len());
            let expected = file.lfs.as_ref().map(|lfs| &lfs.sha256);
            if expected.is_none_or(|expected| *expected == sum) && file.bytes.is_none_or(|expected| expected == bytes) {
                return Ok((path, sum));
            }
            self.forget(&path);
            if !first {
                let wanted = expected.map_or_else(|| format!("{:?} bytes", file.bytes), Clone::clone);
                let message = format!(
                    "{}: wrong checksum: {sum} ({bytes} bytes), the hub says {wanted}; it was removed",
                    file.path
                );
                return Err(Failure::failed(message));
            }
            first = false;
            self.hub.output.note(&format!("  {}: wrong checksum; fetching it once more", file.path));
        }
    }

    fn fetch(&self, file: &RemoteFile) -> Result<PathBuf, Failure> {
        let progress = || Bar::new(self.hub.output, file);
        let outcome = match self.remote.download_with_progress(&file.path, progress()) {
            // An interrupted run had all bytes of a file and did not come to name it: there is nothing left to ask for.
            Err(error) if status(&error) == Some(416) || matches!(error, ApiError::InvalidResume) => {
                self.partial_files().for_each(|path| drop(fs::remove_file(path)));
                self.remote.download_with_progress(&file.path, progress())
            }
            outcome => outcome,
        };
        let path = outcome.map_err(|error| self.hub.explain(&file.path, error))?;
        if self.hub.output.is_json() {
            self.hub.output.json(&json!({ "event": "file", "file": file.path, "bytes": file.bytes }));
        }
        Ok(path)
    }

    /// Removes a file of the cache: the name in the snapshot and the content behind it.
    fn forget(&self, path: &Path) {
        if let Ok(content) = fs::canonicalize(path)
            && content.starts_with(&self.hub.cache)
        {
            drop(fs::remove_file(content));
        }
        drop(fs::remove_file(path));
    }

    fn partial_files(&self) -> impl Iterator<Item = PathBuf> {
        let folder = format!("models--{}", self.hub.id.repository.replace('/', "--"));
        let entries = fs::read_dir(self.hub.cache.join(folder).join("blobs")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|ending| ending == "part"))
    }
}

/// The error below the crate's wrappers.
fn innermost(error: &ApiError) -> &ApiError {
    match error {
        ApiError::TooManyRetries(inner) => innermost(inner),
        error => error,
    }
}

fn status(error: &ApiError) -> Option<u16> {
    match innermost(error) {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

fn source(error: &ApiError) -> Option<io::ErrorKind> {
    match innermost(error) {
        ApiError::IoError(error) => Some(error.kind()),
        _ => None,
    }
}

/// One file's progress: a bar on a terminal, a line elsewhere.
struct Bar {
    bar: ProgressBar,
}

impl Bar {
    fn new(output: Output, file: &RemoteFile) -> Self {
        let shown = !output.is_json() && io::stderr().is_terminal();
        if !shown {
            let size = file.bytes.map_or_else(String::new, |bytes| format!(" ({:.1} MB)", bytes as f64 / 1e6));
            output.note(&format!("  {}{size}", file.path));
        }
        let style = ProgressStyle::with_template(
            "  {msg:<48!} {bar:24.cyan/blue} {bytes:>10}/{total_bytes:<10} {bytes_per_sec:>12} {eta:>4}",
        );
        let bar = if shown { ProgressBar::new(0) } else { ProgressBar::hidden() };
        Self { bar: bar.with_style(style.expect("a fixed template is valid").progress_chars("━╸─")) }
    }
}

impl Progress for Bar {
    fn init(&mut self, size: usize, filename: &str) {
        self.bar.set_length(size as u64);
        self.bar.set_position(0);
        self.bar.set_message(filename.to_owned());
    }

    fn update(&mut self, size: usize) {
        self.bar.inc(size as u64);
    }

    fn finish(&mut self) {
        self.bar.finish();
    }
}
