//! The engine: the stages `condition`, `diffuse` and `interpolate` over the models and the device queue.

mod conditioning;
mod diffusion;
mod in_between;
mod known;
mod memory_gate;
mod on_device;
mod placing;
mod prompt_cache;
#[cfg(test)]
mod tests;

use crate::device_queue::{Bill, QueueStats};
use crate::devices::{Device, DeviceChoice, DeviceId, Sensors, ThisMachine};
use crate::error::ModelError;
use crate::lora::LoraLibrary;
use crate::memory::{MemoryEstimate, Placement};
use crate::noise;
use crate::precision::Precision;
use crate::registry::{DEFAULT_MODEL, ModelInfo, Registry};
use async_trait::async_trait;
use conditioning::{Encode, Encoded, PromptConditioning};
use diffusion::{Denoise, Diffused};
use in_between::{Between, Sequence};
use on_device::{MadeOn, OnDevice};
use pipeline::{
    Condition, Conditioning, Diffuse, Frame, FrameSize, Frames, GenerationPlan, Interpolate, KeyFrames, ModelDefaults,
    StageContext, StageError, StageResult,
};
use placing::{JobTime, Placed, by_wait};
use prompt_cache::PromptCache;
pub use prompt_cache::{PromptCacheConfig, PromptCacheStats};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What an engine is made of.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Names and folders of models beside the built-in one. No other folder is ever opened.
    pub models: Vec<(String, PathBuf)>,
    /// Names and files of adapters (LoRA) that requests may ask for. No other file is ever opened.
    pub loras: Vec<(String, PathBuf)>,
    /// Numbers of the networks.
    pub dtype: Precision,
    /// What the networks run on.
    pub device: DeviceChoice,
    /// Most devices to take where the choice is left to us.
    pub devices_max: usize,
    /// Threads of a device; none takes all cores.
    pub threads: Option<usize>,
    /// Sessions that may wait for a device or run on it; one more is refused.
    pub queue_capacity: usize,
    /// What encoded prompts may take, and where they are kept.
    pub prompt_cache: PromptCacheConfig,
    /// Bytes that models and jobs may take on each device; none takes what is free when the engine starts.
    pub memory_bytes_max: Option<u64>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            loras: Vec::new(),
            dtype: Precision::default(),
            device: DeviceChoice::These(vec![DeviceId::Cpu]),
            devices_max: usize::MAX,
            threads: None,
            queue_capacity: 256,
            prompt_cache: PromptCacheConfig::default(),
            memory_bytes_max: None,
        }
    }
}

/// Files that a single diffusion reads or writes.
#[derive(Debug, Clone, Default)]
pub struct DiffuseOptions {
    /// A safetensors file whose f32 tensor `noise` [z, f, h, w] is the initial latent, in place of the seed's.
    pub initial_noise: Option<PathBuf>,
    /// Where the final latent goes, as the f32 tensor `latents` [z, f, h, w].
    pub dump_latents: Option<PathBuf>,
}

/// One of an engine's devices and how it stands.
#[derive(Debug, Clone)]
pub struct DeviceReport {
    /// Which one, like `cuda:0`.
    pub id: DeviceId,
    /// What the ledger calls it.
    pub name: String,
    /// Its queue.
    pub queue: QueueStats,
    /// Jobs placed on it.
    pub jobs: usize,
    /// What its vendor's tools say about it.
    pub sensors: Option<Sensors>,
    /// Whether it failed and could not be reset.
    pub is_out_of_order: bool,
}

/// The models of one process on its devices, with a thread for each. Dropping it ends the threads.
pub struct VideoEngine {
    devices: Vec<OnDevice>,
    prompts: Arc<PromptCache>,
    job_time: Arc<JobTime>,
}

impl VideoEngine {
    /// Reads the models' descriptions and starts the devices' threads; weights are loaded when they are first needed.
    pub fn start(config: EngineConfig) -> StageResult<Arc<Self>> {
        let devices = config.device.open(&ThisMachine::new(config.threads), config.devices_max)?;
        Self::on(devices, config)
    }

    /// The same on given devices, at least one; what `config` says about devices counts for nothing.
    pub fn on(devices: Vec<Arc<dyn Device>>, config: EngineConfig) -> StageResult<Arc<Self>> {
        if devices.is_empty() {
            return Err(StageError::Internal("an engine without a device".to_owned()));
        }
        let start = |(index, device)| {
            let registry = Registry::new(config.models.clone(), config.dtype).map_err(internal)?;
            let loras = LoraLibrary::new(config.loras.clone());
            OnDevice::start(index, device, registry, loras, config.queue_capacity, config.memory_bytes_max)
        };
        let devices = devices.into_iter().enumerate().map(start).collect::<StageResult<_>>()?;
        let prompts = Arc::new(PromptCache::new(config.prompt_cache));
        Ok(Arc::new(Self { devices, prompts, job_time: Arc::default() }))
    }

    /// Its devices, in the order in which they were given.
    pub fn devices(&self) -> Vec<DeviceReport> {
        let report = |on: &OnDevice| DeviceReport {
            id: on.device.id(),
            name: on.device.name().to_owned(),
            queue: on.queue.stats(),
            jobs: on.jobs.load(Ordering::SeqCst),
            sensors: on.device.sensors(),
            is_out_of_order: on.queue.is_out_of_order(),
        };
        self.devices.iter().map(report).collect()
    }

    /// How many devices there are.
    pub fn device_count(&self) -> usize {
        self.devices.len()
    }

    /// Whether any device takes work.
    pub fn has_working_device(&self) -> bool {
        self.devices.iter().any(|on| !on.queue.is_out_of_order())
    }

    /// What a job's time was spent on, for usage records: its device, or the first one when it never came to one.
    pub fn device_name(&self, cx: &StageContext) -> &str {
        let index = cx.device.get::<Placed>().map_or(0, |placed| placed.device);
        self.devices.get(index).unwrap_or(&self.devices[0]).device.name()
    }

    /// The model of requests that name none.
    pub fn default_model(&self) -> &str {
        DEFAULT_MODEL
    }

    /// Every registered model.
    pub fn models(&self) -> StageResult<Vec<ModelInfo>> {
        self.first().registry.list()
    }

    /// One model (none: the default).
    pub fn model_info(&self, name: Option<&str>) -> StageResult<ModelInfo> {
        self.first().registry.show(name)
    }

    /// How a job would be placed on the device that suits it best, and what it needs; an error when no device has so much
    /// memory beside its other models.
    pub fn admit(&self, plan: &GenerationPlan) -> StageResult<(Placement, MemoryEstimate)> {
        self.devices[self.suiting(Some(plan))?].admit(plan)
    }

    /// The most that the tensors of all jobs took at one time on one device, weights aside.
    pub fn arena_peak_bytes(&self) -> usize {
        self.devices.iter().map(|on| on.device.peak_bytes()).max().unwrap_or(0)
    }

    /// What a plan asks for and its video lacks: keys of adapters that the model has no layer for. Known once it has run.
    pub fn warnings(&self, plan: &GenerationPlan) -> Vec<String> {
        let unused = self.devices.iter().map(|on| on.loras.unused(&plan.model, &plan.loras));
        unused.into_iter().find(|lines| !lines.is_empty()).unwrap_or_default()
    }

    /// What the prompt cache has done and holds.
    pub fn prompt_cache_stats(&self) -> PromptCacheStats {
        self.prompts.stats()
    }

    /// Like [`Diffuse::diffuse`], with files for the first and the last latent.
    pub async fn diffuse_with(
        &self,
        cx: &StageContext,
        plan: &GenerationPlan,
        conditioning: &Conditioning,
        options: DiffuseOptions,
    ) -> StageResult<KeyFrames> {
        let conditioning = conditioning
            .get::<PromptConditioning>()
            .filter(|c| c.model_name == plan.model)
            .ok_or_else(|| StageError::Internal("the conditioning was made by another model".to_owned()))?;
        let noise = match &options.initial_noise {
            None => None,
            Some(path) => {
                let shape = diffusion::latent_shape(&conditioning.model, plan)?;
                let load = noise::load_latent(path, "noise", shape);
                Some(load.map_err(|e| StageError::invalid("noise", e.to_string()))?)
            }
        };
        let MadeOn { device, life } = conditioning.made_on;
        let on = self.devices.get(device).ok_or_else(|| StageError::Internal("no such device".to_owned()))?;
        let loras = on.lora_set(cx, plan, &conditioning.model).await?;
        let session = Denoise::new(plan, conditioning, loras, noise)?;
        let weights_bytes = on.registry.loaded_bytes_beside("")?;
        let there_is = on.memory_bytes_max.saturating_sub(weights_bytes);
        let _reserved = on.memory.reserve(conditioning.job_bytes, there_is).await;
        let Diffused { key_frames, latents, shape } = on.queue.run(cx, life, Bill::DIFFUSE, session).await?;
        if let Some(path) = &options.dump_latents {
            noise::save_latent(path, "latents", shape, &latents)
                .map_err(|e| StageError::invalid("dump_latents", e.to_string()))?;
        }
        Ok(key_frames)
    }

    /// The frames at `times` (each within 0..=1) between two pictures of one size.
    pub async fn between(
        &self,
        cx: &StageContext,
        first: Frame,
        last: Frame,
        times: Vec<f32>,
    ) -> StageResult<Vec<Frame>> {
        if times.is_empty() {
            return Ok(Vec::new());
        }
        let (on, life) = self.place(cx, None)?.alive();
        let interpolator = on.off_thread(cx, |registry| registry.interpolator()).await?;
        let session = Between::new(interpolator, first, last, times)?;
        on.queue.run(cx, life, Bill::INTERPOLATE, session).await
    }

    fn first(&self) -> &OnDevice {
        &self.devices[0]
    }

    /// The device of the job of `cx`, chosen now if it has none yet.
    fn place(&self, cx: &StageContext, plan: Option<&GenerationPlan>) -> StageResult<&OnDevice> {
        let placed = match cx.device.get::<Placed>() {
            Some(placed) => Some(placed),
            None => {
                let chosen = self.suiting(plan)?;
                let jobs = &self.devices[chosen].jobs;
                cx.device.get_or_init(|| Placed::new(chosen, jobs, &self.job_time, &cx.meter))
            }
        };
        let on = placed.and_then(|placed| self.devices.get(placed.device));
        on.ok_or_else(|| StageError::Internal("the job runs on another engine".to_owned()))
    }

    /// The device on which a job waits least, among those that work and have the memory for it.
    fn suiting(&self, plan: Option<&GenerationPlan>) -> StageResult<usize> {
        let model = plan.map(|plan| plan.model.as_str());
        let loads = self.devices.iter().map(|on| on.load(model)).collect::<StageResult<Vec<_>>>()?;
        let mut refusal = None;
        for index in by_wait(&loads, self.job_time.us()) {
            let on = &self.devices[index];
            let admitted = match plan {
                _ if on.queue.is_out_of_order() => Err(StageError::Unavailable("no device works".to_owned())),
                Some(plan) => on.admit(plan).map(drop),
                None => Ok(()),
            };
            match admitted {
                Ok(()) => return Ok(index),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        Err(refusal.unwrap_or_else(|| StageError::Unavailable("no device works".to_owned())))
    }
}

#[async_trait]
impl Condition for VideoEngine {
    async fn condition(&self, cx: &StageContext, plan: &GenerationPlan) -> StageResult<Conditioning> {
        self.first()
            .registry
            .defaults(Some(&plan.model))?
            .pictures
            .check(plan.given.iter().map(|given| given.index), plan.key_frames)?;
        let (on, life) = self.place(cx, Some(plan))?.alive();
        let (placement, estimate) = on.admit(plan)?;
        tracing::info!(model = plan.model, device = %on.device.id(), %placement, %estimate, "memory");
        let made_on = MadeOn { device: on.index, life };
        let job_bytes = estimate.job_bytes();
        let admitted = |conditioning| PromptConditioning { placement, job_bytes, made_on, ..conditioning };
        let model = on.model(cx, &plan.model, placement.residency).await?;
        let (session, cache) = (Encode::new(plan, Arc::clone(&model)), Arc::clone(&self.prompts));
        let mut session = on.off_thread(cx, move |_| session.look_up(&cache)).await?;
        if let Some(Encoded { conditioning, .. }) = session.finished()? {
            return Ok(Conditioning::new(admitted(conditioning)));
        }
        if session.needs_text_encoder() {
            on.prepare_text_encoder(cx, model).await?;
        }
        let Encoded { conditioning, learnt } = on.queue.run(cx, life, Bill::CONDITION, session).await?;
        if !learnt.is_empty() {
            let cache = Arc::clone(&self.prompts);
            let keep = move |_: &Registry| {
                learnt.iter().for_each(|(key, states)| cache.insert(*key, states));
                Ok(())
            };
            on.off_thread(cx, keep).await?;
        }
        Ok(Conditioning::new(admitted(conditioning)))
    }
}

#[async_trait]
impl Diffuse for VideoEngine {
    fn defaults(&self, model: Option<&str>) -> StageResult<ModelDefaults> {
        Ok(ModelDefaults { loras: self.first().loras.names(), ..self.first().registry.defaults(model)? })
    }

    async fn diffuse(
        &self,
        cx: &StageContext,
        plan: &GenerationPlan,
        conditioning: &Conditioning,
    ) -> StageResult<KeyFrames> {
        self.diffuse_with(cx, plan, conditioning, DiffuseOptions::default()).await
    }
}

#[async_trait]
impl Interpolate for VideoEngine {
    async fn interpolate(
        &self,
        cx: &StageContext,
        key_frames: KeyFrames,
        frame_count: u32,
        fps: u32,
        size: FrameSize,
    ) -> StageResult<Frames> {
        let (on, life) = self.place(cx, None)?.alive();
        let interpolator = on.off_thread(cx, |registry| registry.interpolator()).await?;
        let session = Sequence::new(interpolator, key_frames, frame_count, size)?;
        Ok(Frames { frames: on.queue.run(cx, life, Bill::INTERPOLATE, session).await?, fps })
    }
}

/// A failure inside of the models as the outcome of a stage.
fn internal(error: ModelError) -> StageError {
    error.of_stage("")
}
