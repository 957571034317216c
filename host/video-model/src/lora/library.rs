//! The adapter files that an operator has registered, and the sets of them that requests use.

use super::{Adapters, LoraFile};
use crate::error::ModelError;
use crate::model::VideoModel;
use pipeline::{LoraChoice, LoraExpert, StageError, StageResult};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Sets kept ready: requests of one tenant tend to use the same.
const SETS_MAX: usize = 4;

/// The registered files. No other file is ever opened.
#[derive(Debug, Default)]
pub struct LoraLibrary {
    files: BTreeMap<String, PathBuf>,
    /// Most recently used last.
    sets: Mutex<VecDeque<(SetKey, Arc<LoraSet>)>>,
}

/// What a set was made for.
#[derive(Debug, Clone, PartialEq)]
struct SetKey {
    model: String,
    loras: Vec<LoraChoice>,
}

/// The adapters of one request.
#[derive(Debug)]
pub struct LoraSet {
    /// One per transformer of the model.
    experts: Vec<Adapters>,
    /// One line for each file that holds more than was used, with the keys' names.
    unused: Vec<String>,
}

impl LoraSet {
    /// The adapters of the model's transformer `index`.
    pub fn expert(&self, index: usize) -> Option<&Adapters> {
        self.experts.get(index)
    }
}

impl LoraLibrary {
    /// Files by name; a later one of the same name takes the place of an earlier one.
    pub fn new(files: Vec<(String, PathBuf)>) -> Self {
        Self { files: files.into_iter().collect(), sets: Mutex::default() }
    }

    /// The registered names.
    pub fn names(&self) -> Vec<String> {
        self.files.keys().cloned().collect()
    }

    /// What the files of a request hold and its model has no place for, when they have been read.
    pub fn unused(&self, name: &str, loras: &[LoraChoice]) -> Vec<String> {
        let key = SetKey { model: name.to_owned(), loras: loras.to_vec() };
        self.ready(&key).map_or(Vec::new(), |set| set.unused.clone())
    }

    /// The adapters of a request to a model, reading their files if need be; none when it asks for none.
    pub fn set(&self, name: &str, model: &VideoModel, loras: &[LoraChoice]) -> StageResult<Option<Arc<LoraSet>>> {
        if loras.is_empty() {
            return Ok(None);
        }
        let key = SetKey { model: name.to_owned(), loras: loras.to_vec() };
        if let Some(set) = self.ready(&key) {
            return Ok(Some(set));
        }
        let set = Arc::new(self.read(model, loras)?);
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        sets.push_back((key, Arc::clone(&set)));
        if sets.len() > SETS_MAX {
            sets.pop_front();
        }
        Ok(Some(set))
    }

    /// Forgets all sets; requests that use them keep theirs.
    pub fn unload_all(&self) {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn ready(&self, key: &SetKey) -> Option<Arc<LoraSet>> {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let at = sets.iter().position(|(of, _)| of == key)?;
        let entry = sets.remove(at)?;
        let set = Arc::clone(&entry.1);
        sets.push_back(entry);
        Some(set)
    }

    fn read(&self, model: &VideoModel, loras: &[LoraChoice]) -> StageResult<LoraSet> {
        if model.experts.len() == 1 && loras.iter().any(|lora| lora.expert.is_some()) {
            return Err(StageError::invalid("loras", "this model has one transformer; leave `@high` and `@low` out"));
        }
        let mut set = LoraSet { experts: Vec::new(), unused: Vec::new() };
        for (index, expert) in model.experts.iter().enumerate() {
            let here = loras.iter().filter(|lora| match lora.expert {
                None => true,
                Some(LoraExpert::High) => index == 0,
                Some(LoraExpert::Low) => index == 1,
            });
            let mut chosen = Vec::new();
            for lora in here {
                let file = LoraFile::open(self.path(&lora.name)?, expert.transformer.config()).map_err(refused)?;
                chosen.push((file, lora.strength));
            }
            set.unused.extend(chosen.iter().filter_map(|(file, _)| unused_line(file)));
            let chosen: Vec<_> = chosen.iter().map(|(file, strength)| (file, *strength)).collect();
            set.experts.push(Adapters::new(&chosen, expert.transformer.dtype()).map_err(refused)?);
        }
        set.unused.dedup();
        Ok(set)
    }

    fn path(&self, name: &str) -> StageResult<&PathBuf> {
        let missing = || StageError::invalid("loras", format!("there is no adapter `{name}`"));
        self.files.get(name).ok_or_else(missing)
    }
}

fn refused(error: ModelError) -> StageError {
    StageError::invalid("loras", error.to_string())
}

fn unused_line(file: &LoraFile) -> Option<String> {
    let (name, keys) = (file.file(), file.unused());
    (!keys.is_empty()).then(|| format!("{name}: {} keys are not used: {}", keys.len(), keys.join(", ")))
}
