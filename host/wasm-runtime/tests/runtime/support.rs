//! A runtime with everything around it faked: an engine that paints plain frames, a catalog, and a log that is kept.

use async_trait::async_trait;
use pipeline::{
    Condition, Conditioning, Diffuse, Digest, Frame, FrameSize, Frames, FunctionCatalog, FunctionRef, GenerationPlan,
    GenerationRequest, Interpolate, KeyFrames, Lane, ModelDefaults, PicturesTaken, Plan, Sampler, SamplerSettings,
    StageContext, StageError, StageResult, UsageField,
};
use sha2::Digest as _;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use wasm_runtime::{Limits, LogLevel, LogLine, LogSink, RuntimeConfig, Services, WasmRuntime};

/// Device time that a fake diffusion and a fake interpolation cost.
pub(crate) const DIFFUSE_GPU_MS: u64 = 40;
pub(crate) const INTERPOLATE_GPU_MS: u64 = 10;

#[derive(Default)]
pub(crate) struct FakeEngine {
    /// What was diffused: prompt and number of given pictures.
    pub(crate) diffused: Mutex<Vec<(String, usize)>>,
    /// With which samplers.
    pub(crate) samplers: Mutex<Vec<Sampler>>,
    /// How long a diffusion takes, in steps that look at the cancel token.
    pub(crate) step: Duration,
    /// CPU time that a diffusion burns inside its `poll`.
    pub(crate) burn: Duration,
}

#[async_trait]
impl Condition for FakeEngine {
    async fn condition(&self, _cx: &StageContext, plan: &GenerationPlan) -> StageResult<Conditioning> {
        Ok(Conditioning::new(plan.prompt.clone()))
    }
}

#[async_trait]
impl Diffuse for FakeEngine {
    fn defaults(&self, model: Option<&str>) -> StageResult<ModelDefaults> {
        if model.is_some_and(|name| name != "fake") {
            return Err(StageError::invalid("model", "there is no such model; choose `fake`"));
        }
        Ok(ModelDefaults {
            model: "fake".to_owned(),
            native_size: SIZE,
            any_size: true,
            size_multiple_px: 16,
            key_frame_multiple: 4,
            key_frames: 5,
            key_frames_max: 33,
            pictures: PicturesTaken::ANY,
            sampling: SamplerSettings::new(Sampler::Euler, 4, 3.0),
            guidance: 4.0,
            size: SIZE,
            duration_ms: 1000,
            fps: 8,
            loras: vec!["style".to_owned()],
        })
    }

    async fn diffuse(
        &self,
        cx: &StageContext,
        plan: &GenerationPlan,
        conditioning: &Conditioning,
    ) -> StageResult<KeyFrames> {
        assert_eq!(conditioning.get::<String>(), Some(&plan.prompt), "the conditioning is of another plan");
        self.diffused.lock().unwrap().push((plan.prompt.clone(), plan.given.len()));
        self.samplers.lock().unwrap().push(plan.sampling.sampler);
        let start = Instant::now();
        while start.elapsed() < self.burn {}
        for _ in 0..plan.sampling.steps {
            cx.meter.add(UsageField::DiffuseGpuMs, DIFFUSE_GPU_MS / u64::from(plan.sampling.steps));
            tokio::time::sleep(self.step).await;
            cx.check_cancelled()?;
        }
        // One colour a key frame, from the seed; given pictures stay as they are.
        let mut frames: Vec<Frame> = (0..plan.key_frames)
            .map(|i| plain(plan.key_frame_size, (plan.seed as u8).wrapping_add(i as u8 * 10)))
            .collect();
        for given in &plan.given {
            frames[given.index as usize] = given.frame.clone();
        }
        Ok(KeyFrames { frames })
    }
}

#[async_trait]
impl Interpolate for FakeEngine {
    async fn interpolate(
        &self,
        cx: &StageContext,
        key_frames: KeyFrames,
        frame_count: u32,
        fps: u32,
        size: FrameSize,
    ) -> StageResult<Frames> {
        cx.meter.add(UsageField::InterpolateGpuMs, INTERPOLATE_GPU_MS);
        let last = key_frames.frames.len() - 1;
        let frames = (0..frame_count)
            .map(|i| {
                let key = &key_frames.frames[last * i as usize / (frame_count - 1).max(1) as usize];
                plain(size, key.rgb()[0])
            })
            .collect();
        Ok(Frames { frames, fps })
    }
}

#[derive(Default)]
pub(crate) struct KeptLog(Mutex<Vec<(String, LogLevel, String)>>);

impl LogSink for KeptLog {
    fn line(&self, line: &LogLine<'_>) {
        self.0.lock().unwrap().push((line.function.to_string(), line.level, line.text.to_owned()));
    }
}

impl KeptLog {
    pub(crate) fn texts(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(_, _, text)| text.clone()).collect()
    }

    pub(crate) fn lines(&self) -> Vec<(String, LogLevel, String)> {
        self.0.lock().unwrap().clone()
    }
}

#[derive(Default)]
pub(crate) struct FakeCatalog(pub(crate) Mutex<HashMap<Digest, Vec<u8>>>);

#[async_trait]
impl FunctionCatalog for FakeCatalog {
    async fn component(&self, digest: &Digest) -> StageResult<Vec<u8>> {
        let found = self.0.lock().unwrap().get(digest).cloned();
        found.ok_or_else(|| StageError::Unavailable("the component is not in the store".to_owned()))
    }
}

/// A runtime and what it was wired with.
pub(crate) struct Host {
    pub(crate) runtime: Arc<WasmRuntime>,
    pub(crate) engine: Arc<FakeEngine>,
    pub(crate) catalog: Arc<FakeCatalog>,
    pub(crate) log: Arc<KeptLog>,
}

impl Host {
    /// With default limits.
    pub(crate) fn new() -> Self {
        Self::with(Limits::default())
    }

    /// With a cache directory that all tests share: most of them start from compiled components.
    pub(crate) fn with(limits: Limits) -> Self {
        Self::build(limits, &PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("aot"), FakeEngine::default())
    }

    pub(crate) fn with_engine(engine: FakeEngine) -> Self {
        Self::build(Limits::default(), &PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("aot"), engine)
    }

    pub(crate) fn build(limits: Limits, cache_dir: &Path, engine: FakeEngine) -> Self {
        let (engine, catalog, log) = (Arc::new(engine), Arc::new(FakeCatalog::default()), Arc::new(KeptLog::default()));
        let services = Services {
            catalog: catalog.clone(),
            condition: engine.clone(),
            diffuse: engine.clone(),
            interpolate: engine.clone(),
            log: log.clone(),
        };
        let config = RuntimeConfig { cache_dir: cache_dir.to_owned(), limits };
        Self { runtime: Arc::new(WasmRuntime::new(config, services).unwrap()), engine, catalog, log }
    }

    /// Puts a component into the catalog.
    pub(crate) fn function(&self, name: &str, wasm: &[u8], config: &[(&str, &str)]) -> FunctionRef {
        let digest = Digest::new(sha2::Sha256::digest(wasm).into());
        self.catalog.0.lock().unwrap().insert(digest, wasm.to_vec());
        let config = config.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        FunctionRef { name: name.parse().unwrap(), digest, config: config.collect::<BTreeMap<_, _>>() }
    }

    /// A misbehaving component with one behaviour.
    pub(crate) fn bad(&self, wasm: &[u8], behaviour: &str) -> FunctionRef {
        self.function("bad", wasm, &[("behaviour", behaviour)])
    }

    /// Shows that the runtime still serves others.
    pub(crate) async fn serves_on(&self) {
        let hook = self.function("style", guest_bundle::PROMPT_STYLE, &[]);
        let planned = self.runtime.plan(&context(), &hook, request("a red ball moves up at night")).await.unwrap();
        assert_eq!(planned.prompt, "a red ball moves up at night, cinematic soft light");
    }
}

pub(crate) const SIZE: FrameSize = FrameSize { width: 64, height: 64 };

pub(crate) fn context() -> StageContext {
    StageContext::unmetered(Lane(7))
}

pub(crate) fn request(prompt: &str) -> GenerationRequest {
    GenerationRequest { prompt: prompt.to_owned(), ..GenerationRequest::default() }
}

pub(crate) fn plain(size: FrameSize, value: u8) -> Frame {
    Frame::new(size, vec![value; size.rgb_bytes()]).unwrap()
}

pub(crate) fn video(size: FrameSize, count: usize, value: u8) -> Frames {
    Frames { frames: vec![plain(size, value); count], fps: 24 }
}

/// The message of a function's failure; anything else fails the test.
pub(crate) fn blamed<T: std::fmt::Debug>(outcome: StageResult<T>) -> String {
    match outcome {
        Err(StageError::Function { message, .. }) => message,
        other => panic!("not blamed on the function: {other:?}"),
    }
}
