//! The models that an engine knows: the built-in one and the folders that its operator registered. Their descriptions are
//! read at the start; weights are loaded when a model is first used, and stay.

use crate::config::FolderConfig;
use crate::describe::{self, PartInfo};
use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use crate::interpolation::Interpolator;
use crate::memory::{MemoryEstimate, ModelMemory, Placement, Workload};
use crate::model::VideoModel;
use crate::precision::Precision;
use crate::transformer::Residency;
use include_dir::{Dir, include_dir};
use pipeline::{FrameSize, ModelDefaults, StageError, StageResult, limits};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The name of the built-in model.
pub const DEFAULT_MODEL: &str = "default";

static DEFAULT_WEIGHTS: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/default-model/weights");
static INTERPOLATOR_WEIGHTS: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/default-model/interpolator");

/// Frame rate of finished videos when the request names none.
const FPS: u32 = 24;
/// A model that only makes small pictures has them enlarged by a whole factor until the shorter side is at least this.
const FINISHED_SIDE_PX_MIN: u32 = 512;

/// What `models list` and `models show` tell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelInfo {
    /// The name that requests use.
    pub name: String,
    /// What kind of model it is, like `Wan 2.1 image-to-video`.
    pub family: String,
    /// Where it comes from: `built-in`, or its folder.
    pub source: String,
    /// Number of weights in all parts.
    pub parameters: u64,
    /// Size of the weights in their files.
    pub bytes: u64,
    /// Its networks.
    pub parts: Vec<PartInfo>,
    /// What a request may give, in words.
    pub takes: String,
    /// The licence that its folder names.
    pub licence: Option<String>,
    /// Whether the weights are in memory.
    pub loaded: bool,
    /// What it does when a request is silent.
    pub defaults: ModelDefaults,
    /// What that asks of memory, with all weights in it.
    pub memory: MemoryEstimate,
}

/// All models of an engine, by name.
pub struct Registry {
    entries: BTreeMap<String, Entry>,
    dtype: Precision,
    interpolator: Mutex<Option<Arc<Interpolator>>>,
    /// Held while weights load, so that two first uses load them once.
    loading: Mutex<()>,
}

struct Entry {
    files: ModelFiles,
    defaults: ModelDefaults,
    memory: OnceLock<ModelMemory>,
    model: Mutex<Option<Loaded>>,
}

#[derive(Clone)]
struct Loaded {
    model: Arc<VideoModel>,
    residency: Residency,
}

impl Loaded {
    /// Whether it takes no more memory than one that is loaded so.
    fn is_within(&self, residency: Residency) -> bool {
        residency == Residency::Resident || self.residency == Residency::Streamed
    }
}

impl Entry {
    fn loaded(&self) -> Option<Loaded> {
        self.slot().clone()
    }

    fn slot(&self) -> MutexGuard<'_, Option<Loaded>> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// The built-in model and `folders`; a later one of the same name takes the place of an earlier one.
    pub fn new(folders: Vec<(String, PathBuf)>, dtype: Precision) -> Result<Self> {
        let embedded = (DEFAULT_MODEL.to_owned(), ModelFiles::Embedded(&DEFAULT_WEIGHTS));
        let folders = folders.into_iter().map(|(name, path)| (name, ModelFiles::Folder(path)));
        let entry = |(name, files): (String, ModelFiles)| {
            let defaults = model_defaults(&name, &files)?;
            Ok((name, Entry { files, defaults, memory: OnceLock::new(), model: Mutex::default() }))
        };
        let entries = [embedded].into_iter().chain(folders).map(entry).collect::<Result<_>>()?;
        Ok(Self { entries, dtype, interpolator: Mutex::default(), loading: Mutex::new(()) })
    }

    /// What the named model (none: the default) does by itself.
    pub fn defaults(&self, name: Option<&str>) -> StageResult<ModelDefaults> {
        Ok(self.entry(name)?.defaults.clone())
    }

    /// Every model, by name.
    pub fn list(&self) -> StageResult<Vec<ModelInfo>> {
        self.entries.keys().map(|name| self.show(Some(name))).collect()
    }

    /// One model.
    pub fn show(&self, name: Option<&str>) -> StageResult<ModelInfo> {
        let entry = self.entry(name)?;
        model_info(&entry.files, &entry.defaults, self.dtype, entry.loaded().is_some())
            .map_err(|e| failed(&entry.defaults.model, &e))
    }

    /// The model when its weights are in memory, or in their files if that is `residency`.
    pub fn loaded(&self, name: &str, residency: Residency) -> StageResult<Option<Arc<VideoModel>>> {
        let loaded = self.entry(Some(name))?.loaded();
        Ok(loaded.filter(|l| l.is_within(residency)).map(|l| l.model))
    }

    /// The model, loading its weights if need be: may take long. A model that was in memory and is wanted streamed is loaded
    /// anew; the old one goes when its last job is done.
    pub fn load(&self, name: &str, residency: Residency) -> StageResult<Arc<VideoModel>> {
        let entry = self.entry(Some(name))?;
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = entry.loaded().filter(|l| l.is_within(residency)) {
            return Ok(loaded.model);
        }
        *entry.slot() = None;
        let model = VideoModel::load_with(&entry.files, self.dtype, residency).map_err(|e| failed(name, &e))?;
        let model = Arc::new(model);
        *entry.slot() = Some(Loaded { model: Arc::clone(&model), residency });
        Ok(model)
    }

    /// What the model asks of memory.
    pub fn memory(&self, name: &str) -> StageResult<&ModelMemory> {
        let entry = self.entry(Some(name))?;
        if let Some(memory) = entry.memory.get() {
            return Ok(memory);
        }
        let memory = ModelMemory::read(&entry.files, self.dtype).map_err(|e| failed(name, &e))?;
        Ok(entry.memory.get_or_init(|| memory))
    }

    /// Bytes of the weights of all loaded models but `name`.
    pub fn loaded_bytes_beside(&self, name: &str) -> StageResult<u64> {
        let others = self.entries.iter().filter(|(other, _)| *other != name);
        let loaded = others.filter_map(|(other, entry)| Some((other, entry.loaded()?)));
        loaded.map(|(other, loaded)| Ok(self.memory(other)?.weights_bytes(loaded.residency))).sum()
    }

    /// The built-in interpolator, loading its weights if need be.
    pub fn interpolator(&self) -> StageResult<Arc<Interpolator>> {
        // Held while it loads, so that two first uses load it once.
        let mut slot = self.interpolator.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*slot {
            return Ok(Arc::clone(loaded));
        }
        let files = ModelFiles::Embedded(&INTERPOLATOR_WEIGHTS);
        let loaded = Interpolator::load(&files, self.dtype.activations()).map_err(|e| failed("interpolator", &e))?;
        Ok(Arc::clone(slot.insert(Arc::new(loaded))))
    }

    /// Forgets all loaded weights, those that are being loaded too; jobs that use them keep theirs.
    pub fn unload_all(&self) {
        // Whoever is loading began before this and puts its result away first.
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        self.entries.values().for_each(|entry| *entry.slot() = None);
        *self.interpolator.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn entry(&self, name: Option<&str>) -> StageResult<&Entry> {
        let name = name.unwrap_or(DEFAULT_MODEL);
        self.entries.get(name).ok_or_else(|| {
            let known = self.entries.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            StageError::invalid("model", format!("there is no model of that name; choose one of: {known}"))
        })
    }
}

fn failed(name: &str, error: &ModelError) -> StageError {
    error.of_stage(&format!("model `{name}`: "))
}

/// From a folder's small files alone, without its weights.
fn model_defaults(name: &str, files: &ModelFiles) -> Result<ModelDefaults> {
    let config = FolderConfig::load(files)?;
    let (defaults, factor) = (&config.defaults, config.vae.temporal_factor());
    let key_frames_max = match defaults.any_size {
        true => 1 + (config.transformer.rope_max_seq_len * config.transformer.patch_size[0] - 1) * factor,
        // Trained at one size and one length: more frames than that are outside of what it has seen.
        false => defaults.key_frames as usize,
    };
    Ok(ModelDefaults {
        model: name.to_owned(),
        native_size: defaults.size,
        any_size: defaults.any_size,
        size_multiple_px: config.size_multiple_px() as u32,
        key_frame_multiple: factor as u32,
        key_frames: defaults.key_frames,
        key_frames_max: (key_frames_max as u32).min(limits::KEY_FRAMES_MAX),
        pictures: config.pictures(),
        sampling: defaults.sampling,
        guidance: defaults.guidance,
        size: if defaults.any_size { defaults.size } else { finished_size(defaults.size) },
        duration_ms: (u64::from(defaults.key_frames) * 1000 / u64::from(defaults.key_frame_fps)) as u32,
        fps: FPS,
        // The engine knows which adapters its operator registered.
        loras: Vec::new(),
    })
}

fn finished_size(native: FrameSize) -> FrameSize {
    let factor = FINISHED_SIDE_PX_MIN.div_ceil(native.width.min(native.height).max(1));
    FrameSize { width: native.width * factor, height: native.height * factor }
}

/// A model by its name and folder (none: the built-in one), without an engine and without loading it.
pub fn describe(name: &str, folder: Option<&Path>) -> Result<ModelInfo> {
    let files = folder.map_or(ModelFiles::Embedded(&DEFAULT_WEIGHTS), |path| ModelFiles::Folder(path.to_owned()));
    model_info(&files, &model_defaults(name, &files)?, Precision::default(), false)
}

/// Refuses a folder whose files are not all there or do not fit together, by configs and headers alone.
pub fn check_folder(folder: &Path) -> Result<()> {
    let files = ModelFiles::Folder(folder.to_owned());
    model_defaults("checked", &files)?;
    describe::check(&files)
}

/// `precision` is that of the memory estimate.
fn model_info(files: &ModelFiles, defaults: &ModelDefaults, precision: Precision, loaded: bool) -> Result<ModelInfo> {
    let source = match files {
        ModelFiles::Embedded(_) => "built-in".to_owned(),
        ModelFiles::Folder(path) => path.display().to_string(),
        ModelFiles::Memory(_) => "memory".to_owned(),
    };
    let description = describe::describe(files)?;
    let memory = ModelMemory::read(files, precision)?;
    let memory = memory.estimate(&Workload::of_defaults(defaults), Placement::default());
    Ok(ModelInfo {
        name: defaults.model.clone(),
        family: description.family.to_owned(),
        source,
        parameters: description.parts.iter().map(|part| part.parameters).sum(),
        bytes: description.parts.iter().map(|part| part.bytes).sum(),
        parts: description.parts,
        takes: describe::takes(defaults.pictures),
        licence: description.licence,
        loaded,
        defaults: defaults.clone(),
        memory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_model_makes_two_seconds_by_default() {
        let registry = Registry::new(Vec::new(), Precision::F32).unwrap();
        let defaults = registry.defaults(None).unwrap();
        assert_eq!((defaults.model.as_str(), defaults.duration_ms), (DEFAULT_MODEL, 2000));
        assert!(!defaults.any_size && defaults.size.width >= 512);
        assert_eq!(defaults.native_size.width % defaults.size_multiple_px, 0);
    }

    #[test]
    fn models_are_listed_with_their_weight_and_loaded_on_first_use() {
        let registry = Registry::new(Vec::new(), Precision::F32).unwrap();
        let info = &registry.list().unwrap()[0];
        assert!(info.parameters > 1_000_000 && info.bytes > info.parameters, "{info:?}");
        assert!(!info.loaded && registry.loaded(DEFAULT_MODEL, Residency::Resident).unwrap().is_none());
        let model = registry.load(DEFAULT_MODEL, Residency::Resident).unwrap();
        assert!(Arc::ptr_eq(&model, &registry.load(DEFAULT_MODEL, Residency::Resident).unwrap()));
        assert!(registry.show(None).unwrap().loaded);
        assert!(registry.interpolator().unwrap().parameters() > 1000);
    }

    #[test]
    fn an_unknown_model_is_the_callers_fault_and_a_broken_folder_the_operators() {
        let registry = Registry::new(Vec::new(), Precision::F32).unwrap();
        let refused = registry.defaults(Some("nope")).unwrap_err().to_string();
        assert!(refused.contains("choose one of: default"), "{refused}");
        let folder = tempfile::tempdir().unwrap();
        let broken = Registry::new(vec![("mine".into(), folder.path().to_owned())], Precision::F32);
        assert!(broken.err().unwrap().to_string().contains("model_index.json"));
    }
}
