//! Calls into components.

use super::{Measured, measured, timed};
use crate::platform::OpenError;
use async_trait::async_trait;
use pipeline::{
    ApplyEffects, Condition, Conditioning, Diffuse, Digest, Frame, FrameSize, Frames, FunctionCatalog, FunctionRef,
    GenerationPlan, GenerationRequest, Interpolate, KeyFrames, Lane, ModelDefaults, PicturesTaken, Plan, Sampler,
    SamplerSettings, StageContext, StageError, StageResult,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use wasm_runtime::{Limits, RuntimeConfig, Services, TracingLog, WasmRuntime};

/// Times calls into components: `hook`, `simple` (bytes) and `frame` (handles), over frames of `size`.
pub async fn sandbox(
    hook: &[u8],
    simple: &[u8],
    frame: &[u8],
    size: FrameSize,
    runs: u32,
) -> Result<Vec<Measured>, OpenError> {
    let cache = tempfile::tempdir().map_err(|source| OpenError::DataDir { path: "temporary".to_owned(), source })?;
    let catalog = Arc::new(InMemory::default());
    let runtime = runtime(cache.path(), catalog.clone())?;
    let cx = StageContext::unmetered(Lane(0));
    let engine_error = OpenError::Engine;
    let mut results = Vec::new();
    let hook = catalog.add(&runtime, "hook", hook).await.map_err(engine_error)?;
    let request = GenerationRequest { prompt: "a crimson ball".to_owned(), ..Default::default() };
    let mut times = Vec::new();
    for _ in 0..runs.max(1) * 100 {
        timed(&mut times, runtime.plan(&cx, &hook, request.clone())).await.map_err(engine_error)?;
    }
    results.push(measured("prompt hook: instance, call, drop".to_owned(), times));
    for (name, component) in [("simple effect (bytes)", simple), ("frame effect (handles)", frame)] {
        let effect = catalog.add(&runtime, "effect", component).await.map_err(engine_error)?;
        let mut times = Vec::new();
        for _ in 0..runs.max(1) {
            let frames = Frames { frames: vec![grey(size); FRAMES], fps: 24 };
            timed(&mut times, runtime.apply_effect(&cx, &effect, frames)).await.map_err(engine_error)?;
        }
        results.push(measured(format!("{name}: {FRAMES} frames of {size}"), times));
    }
    Ok(results)
}

const FRAMES: usize = 24;

fn grey(size: FrameSize) -> Frame {
    Frame::new(size, vec![128; size.rgb_bytes()]).expect("the bytes are as many as the size says")
}

fn runtime(cache: &Path, catalog: Arc<InMemory>) -> Result<WasmRuntime, OpenError> {
    let services = Services {
        catalog,
        condition: Arc::new(NoEngine),
        diffuse: Arc::new(NoEngine),
        interpolate: Arc::new(NoEngine),
        log: Arc::new(TracingLog),
    };
    Ok(WasmRuntime::new(RuntimeConfig { cache_dir: cache.to_owned(), limits: Limits::default() }, services)?)
}

/// Components by digest, in memory.
#[derive(Default)]
struct InMemory(Mutex<BTreeMap<Digest, Vec<u8>>>);

impl InMemory {
    async fn add(&self, runtime: &WasmRuntime, name: &str, component: &[u8]) -> StageResult<FunctionRef> {
        let valid = runtime.validate(component).await.map_err(|error| StageError::Internal(error.to_string()))?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(valid.digest, component.to_vec());
        let name = name.parse().map_err(|error| StageError::Internal(format!("{error}")))?;
        Ok(FunctionRef { name, digest: valid.digest, config: BTreeMap::new() })
    }
}

#[async_trait]
impl FunctionCatalog for InMemory {
    async fn component(&self, digest: &Digest) -> StageResult<Vec<u8>> {
        let components = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        components.get(digest).cloned().ok_or_else(|| StageError::Unavailable("no such component".to_owned()))
    }
}

/// Stands where the engine would be: the sandbox is measured without it.
struct NoEngine;

fn no_engine<T>() -> StageResult<T> {
    Err(StageError::Unavailable("the sandbox benchmark has no engine".to_owned()))
}

#[async_trait]
impl Condition for NoEngine {
    async fn condition(&self, _: &StageContext, _: &GenerationPlan) -> StageResult<Conditioning> {
        no_engine()
    }
}

#[async_trait]
impl Diffuse for NoEngine {
    /// A returned request is checked against some model's bounds, so there must be one.
    fn defaults(&self, _: Option<&str>) -> StageResult<ModelDefaults> {
        let size = FrameSize { width: 128, height: 128 };
        Ok(ModelDefaults {
            model: "none".to_owned(),
            native_size: size,
            any_size: false,
            size_multiple_px: 2,
            key_frame_multiple: 1,
            key_frames: 8,
            key_frames_max: 8,
            pictures: PicturesTaken::NONE,
            sampling: SamplerSettings::new(Sampler::Euler, 1, 1.0),
            guidance: 1.0,
            size,
            duration_ms: 1000,
            fps: 24,
            loras: Vec::new(),
        })
    }

    async fn diffuse(&self, _: &StageContext, _: &GenerationPlan, _: &Conditioning) -> StageResult<KeyFrames> {
        no_engine()
    }
}

#[async_trait]
impl Interpolate for NoEngine {
    async fn interpolate(&self, _: &StageContext, _: KeyFrames, _: u32, _: u32, _: FrameSize) -> StageResult<Frames> {
        no_engine()
    }
}
