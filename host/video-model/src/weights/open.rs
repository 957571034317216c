//! Which files of a folder hold its weights.

use super::{Weights, dialect};
use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Base names of weight files, in the order of preference: diffusers' models, transformers' models.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
/// What GGUF files call the networks that we read from them.
const GGUF_ARCHITECTURE: &str = "wan";

impl Weights {
    /// One file, or the shards that an index names. Without either: the only safetensors or the only GGUF file,
    /// whatever its name.
    pub(crate) fn open(files: &ModelFiles, subfolder: &str) -> Result<Self> {
        let mut weights = Self::open_as_stored(files, subfolder)?;
        weights.check_architecture()?;
        weights.speak_diffusers();
        Ok(weights)
    }

    fn open_as_stored(files: &ModelFiles, subfolder: &str) -> Result<Self> {
        let path = |name: &str| if subfolder.is_empty() { name.to_owned() } else { format!("{subfolder}/{name}") };
        let first =
            |ending: &str| STEMS.iter().map(|stem| path(&format!("{stem}{ending}"))).find(|p| files.contains(p));
        if let Some(single) = first(".safetensors") {
            return Self::open_file(files, &single);
        }
        if let Some(index) = first(".safetensors.index.json") {
            return Self::open_sharded(files, subfolder, &index, path);
        }
        let names = files.list(subfolder);
        for ending in [".safetensors", ".gguf"] {
            match names.iter().filter(|name| name.ends_with(ending)).collect::<Vec<_>>().as_slice() {
                [] => {}
                [one] => return Self::open_file(files, &path(one)),
                several => {
                    let folder = files.name_of(subfolder);
                    return Err(ModelError::AmbiguousWeights { folder, count: several.len(), ending });
                }
            }
        }
        Err(ModelError::NoWeights {
            folder: files.name_of(subfolder),
            expected: "diffusion_pytorch_model.safetensors, model.safetensors, an index of shards, or one .gguf file"
                .to_owned(),
        })
    }

    fn open_file(files: &ModelFiles, path: &str) -> Result<Self> {
        let mut weights = Self::empty(files.name_of(path));
        weights.add(files.name_of(path), files.map(path)?)?;
        Ok(weights)
    }

    fn open_sharded(files: &ModelFiles, subfolder: &str, index: &str, path: impl Fn(&str) -> String) -> Result<Self> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let map = files.read_json::<Index>(index)?.weight_map;
        let mut weights = Self::empty(files.name_of(subfolder));
        for shard in map.values().collect::<BTreeSet<_>>() {
            // Shards lie beside their index; a name that leads elsewhere is not followed.
            if shard.contains(['/', '\\']) || !files.contains(&path(shard)) {
                return Err(ModelError::MissingShard { index: files.name_of(index), shard: shard.clone() });
            }
            weights.add(files.name_of(&path(shard)), files.map(&path(shard))?)?;
        }
        match map.keys().find(|name| !weights.tensors.contains_key(*name)) {
            Some(absent) => Err(weights.missing(absent)),
            None => Ok(weights),
        }
    }

    /// A GGUF file of another network is said to be one. Converters disagree on Wan's name, so its tensors count too.
    fn check_architecture(&self) -> Result<()> {
        match self.metadata("general.architecture") {
            Some(other) if other != GGUF_ARCHITECTURE && !dialect::is_original(self.names()) => {
                Err(ModelError::Unsupported(format!("GGUF architecture `{other}` ({})", self.origin)))
            }
            _ => Ok(()),
        }
    }
}
