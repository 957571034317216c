//! Models that `zoetrope models add` made known: `models.json` in the data folder, read by `serve` and the local commands.
//!
//! The operator's configuration file is never written to; a model that it names wins over one of the same name here.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;
use video_model::registry::DEFAULT_MODEL;

/// Longest name of a model, in requests too.
pub(crate) const MODEL_NAME_BYTES_MAX: usize = 128;
const LIST: &str = "models.json";
const LOCK: &str = "models.lock";

/// The list of models cannot be read or changed.
#[derive(Debug, Error)]
pub enum ModelListError {
    /// The data folder or the list in it cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The list is not one that this program wrote.
    #[error("{}: {source}; correct it, or remove it and add the models again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// Requests could not say this name.
    #[error("`{0}` cannot be a model's name: use up to {MODEL_NAME_BYTES_MAX} of a-z, 0-9, `.`, `_` and `-`")]
    BadName(String),
    /// Another model is called so.
    #[error("there is a model `{name}` already, from {source_}; choose another with --name, or remove that one first")]
    Taken {
        /// The name.
        name: String,
        /// Where the other comes from.
        source_: String,
    },
    /// No model is called so.
    #[error("there is no model `{name}` to be found; `zoetrope models list` shows all")]
    Unknown {
        /// The name.
        name: String,
    },
}

/// A model that was added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddedModel {
    /// Its folder, in diffusers' layout.
    pub folder: PathBuf,
    /// Where it came from: a folder, or a hub's id with the revision.
    pub source: String,
    /// Whether the files were downloaded by us and may go when the model is removed.
    pub downloaded: bool,
}

/// The list of a data folder.
#[derive(Debug, Clone)]
pub struct ModelList {
    data_dir: PathBuf,
}

/// Added models by name.
pub type AddedModels = BTreeMap<String, AddedModel>;

impl ModelList {
    /// The list in `data_dir`, which need not be there yet.
    pub fn in_folder(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned() }
    }

    /// All added models; none when there is no list.
    pub fn read(&self) -> Result<AddedModels, ModelListError> {
        let path = self.path();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| ModelListError::Damaged { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(AddedModels::new()),
            Err(source) => Err(ModelListError::Io { path, source }),
        }
    }

    /// One added model.
    pub fn get(&self, name: &str) -> Result<AddedModel, ModelListError> {
        self.read()?.remove(name).ok_or_else(|| ModelListError::Unknown { name: name.to_owned() })
    }

    /// Refuses a name that requests could not say or that another model has. The same model may be added again.
    pub fn check_name(&self, name: &str, source: &str) -> Result<(), ModelListError> {
        check_new(&self.read()?, name, source)
    }

    /// Adds a model.
    pub fn add(&self, name: &str, model: AddedModel) -> Result<(), ModelListError> {
        self.change(|models| {
            check_new(models, name, &model.source)?;
            models.insert(name.to_owned(), model);
            Ok(())
        })
    }

    /// Takes a model from the list; its files stay.
    pub fn remove(&self, name: &str) -> Result<AddedModel, ModelListError> {
        self.change(|models| models.remove(name).ok_or_else(|| ModelListError::Unknown { name: name.to_owned() }))
    }

    /// Reads, changes and replaces the list while no other process does. A reader sees the old list or the new one.
    fn change<T>(&self, edit: impl FnOnce(&mut AddedModels) -> Result<T, ModelListError>) -> Result<T, ModelListError> {
        let io_error = |path: PathBuf| move |source| ModelListError::Io { path, source };
        fs::create_dir_all(&self.data_dir).map_err(io_error(self.data_dir.clone()))?;
        let lock_path = self.data_dir.join(LOCK);
        let lock = File::create(&lock_path).map_err(io_error(lock_path.clone()))?;
        lock.lock().map_err(io_error(lock_path))?;
        let mut models = self.read()?;
        let outcome = edit(&mut models)?;
        self.write(&models).map_err(io_error(self.path()))?;
        Ok(outcome)
    }

    fn write(&self, models: &AddedModels) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.data_dir)?;
        serde_json::to_writer_pretty(&mut file, models)?;
        writeln!(file)?;
        file.as_file().sync_all()?;
        file.persist(self.path()).map(drop).map_err(|error| error.error)
    }

    fn path(&self) -> PathBuf {
        self.data_dir.join(LIST)
    }
}

fn check_new(models: &AddedModels, name: &str, source: &str) -> Result<(), ModelListError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if !starts_well || name.len() > MODEL_NAME_BYTES_MAX || !name.bytes().all(allowed) {
        return Err(ModelListError::BadName(name.to_owned()));
    }
    let other = match models.get(name) {
        _ if name == DEFAULT_MODEL => "this program itself",
        Some(other) if other.source != source => &other.source,
        _ => return Ok(()),
    };
    Err(ModelListError::Taken { name: name.to_owned(), source_: other.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(source: &str) -> AddedModel {
        AddedModel { folder: format!("/models/{source}").into(), source: source.to_owned(), downloaded: false }
    }

    #[test]
    fn a_model_is_added_once_found_again_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let list = ModelList::in_folder(&dir.path().join("not-there-yet"));
        assert!(list.read().unwrap().is_empty());
        list.add("wan", model("a")).unwrap();
        list.add("wan", model("a")).unwrap();
        assert!(matches!(list.add("wan", model("b")), Err(ModelListError::Taken { .. })));
        assert_eq!(list.get("wan").unwrap(), model("a"));
        assert_eq!(list.remove("wan").unwrap(), model("a"));
        assert!(matches!(list.remove("wan"), Err(ModelListError::Unknown { .. })));
        assert!(list.read().unwrap().is_empty());
    }

    #[test]
    fn names_that_requests_cannot_say_or_that_are_ours_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let list = ModelList::in_folder(dir.path());
        for name in ["", "Wan", "a b", "../x", ".hidden", "a/b", &"x".repeat(200)] {
            assert!(matches!(list.add(name, model("a")), Err(ModelListError::BadName(_))), "{name}");
        }
        assert!(matches!(list.add(DEFAULT_MODEL, model("a")), Err(ModelListError::Taken { .. })));
    }

    #[test]
    fn a_damaged_list_is_an_error_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let list = ModelList::in_folder(dir.path());
        fs::write(dir.path().join(LIST), "{\"wan\":").unwrap();
        assert!(matches!(list.add("other", model("a")), Err(ModelListError::Damaged { .. })));
        assert_eq!(fs::read_to_string(dir.path().join(LIST)).unwrap(), "{\"wan\":");
    }

    #[test]
    fn models_added_at_the_same_time_are_all_there() {
        let dir = tempfile::tempdir().unwrap();
        let list = ModelList::in_folder(dir.path());
        std::thread::scope(|scope| {
            for i in 0..8 {
                let list = &list;
                scope.spawn(move || list.add(&format!("m{i}"), model("a")).unwrap());
            }
        });
        assert_eq!(list.read().unwrap().len(), 8);
    }
}
