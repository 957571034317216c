//! The engine: the stages `condition`, `diffuse` and `interpolate` over the models and the device queue.

mod conditioning;
mod diffusion;
mod in_between;
mod known;
mod memory_gate;
mod prompt_cache;
#[cfg(test)]
mod tests;

use crate::device_queue::{Bill, DeviceQueue, QueueLimits, QueueStats};
use crate::error::ModelError;
use crate::lora::{LoraLibrary, LoraSet};
use crate::memory::{MemoryEstimate, Placement, Workload, available_bytes};
use crate::model::VideoModel;
use crate::noise;
use crate::precision::Precision;
use crate::registry::{DEFAULT_MODEL, ModelInfo, Registry};
use crate::transformer::Residency;
use async_trait::async_trait;
use conditioning::{Encode, Encoded, PromptConditioning};
use diffusion::{Denoise, Diffused};
use futures::channel::oneshot;
use in_between::{Between, Sequence};
use memory_gate::MemoryGate;
use pipeline::{
    Condition, Conditioning, Diffuse, Frame, FrameSize, Frames, GenerationPlan, Interpolate, KeyFrames, ModelDefaults,
    StageContext, StageError, StageResult,
};
use prompt_cache::PromptCache;
pub use prompt_cache::{PromptCacheConfig, PromptCacheStats};
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;

/// What an engine is made of.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Names and folders of models beside the built-in one. No other folder is ever opened.
    pub models: Vec<(String, PathBuf)>,
    /// Names and files of adapters (LoRA) that requests may ask for. No other file is ever opened.
    pub loras: Vec<(String, PathBuf)>,
    /// Numbers of the networks.
    pub dtype: Precision,
    /// Threads of the device; none takes all cores.
    pub threads: Option<usize>,
    /// Sessions that may wait for the device or run on it; one more is refused.
    pub queue_capacity: usize,
    /// What encoded prompts may take, and where they are kept.
    pub prompt_cache: PromptCacheConfig,
    /// Bytes that models and jobs may take; none takes what is free when the engine starts.
    pub memory_bytes_max: Option<u64>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            loras: Vec::new(),
            dtype: Precision::default(),
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

/// The models of one process on one device. Dropping it ends the device thread.
pub struct VideoEngine {
    registry: Arc<Registry>,
    queue: DeviceQueue,
    prompts: Arc<PromptCache>,
    loras: Arc<LoraLibrary>,
    /// Bytes that models and jobs may take.
    memory_bytes_max: u64,
    memory: MemoryGate,
}

impl VideoEngine {
    /// Reads the models' descriptions and starts the device thread; weights are loaded when they are first needed.
    pub fn start(config: EngineConfig) -> StageResult<Arc<Self>> {
        let registry = Registry::new(config.models, config.dtype).map_err(internal)?;
        let threads =
            config.threads.or_else(|| std::thread::available_parallelism().ok().map(NonZero::get)).unwrap_or(1);
        let limits = QueueLimits { sessions_max: config.queue_capacity, threads: threads.max(1) };
        let (registry, queue) = (Arc::new(registry), DeviceQueue::start(limits)?);
        let prompts = Arc::new(PromptCache::new(config.prompt_cache));
        let loras = Arc::new(LoraLibrary::new(config.loras));
        // A system that does not say what is free refuses nothing.
        let memory_bytes_max = config.memory_bytes_max.or_else(available_bytes).unwrap_or(u64::MAX);
        Ok(Arc::new(Self { registry, queue, prompts, memory_bytes_max, memory: MemoryGate::default(), loras }))
    }

    /// What the time was spent on, for usage records.
    pub fn device_name(&self) -> &str {
        "cpu"
    }

    /// The model of requests that name none.
    pub fn default_model(&self) -> &str {
        DEFAULT_MODEL
    }

    /// Every registered model.
    pub fn models(&self) -> StageResult<Vec<ModelInfo>> {
        self.registry.list()
    }

    /// One model (none: the default).
    pub fn model_info(&self, name: Option<&str>) -> StageResult<ModelInfo> {
        self.registry.show(name)
    }

    /// How a job would be placed and what it needs; an error when there is not so much memory beside the other models.
    pub fn admit(&self, plan: &GenerationPlan) -> StageResult<(Placement, MemoryEstimate)> {
        let there_is = self.memory_bytes_max.saturating_sub(self.registry.loaded_bytes_beside(&plan.model)?);
        self.registry.memory(&plan.model)?.place(&Workload::from(plan), there_is)
    }

    /// The most that the tensors of all jobs took at one time, weights aside.
    pub fn arena_peak_bytes(&self) -> usize {
        self.queue.arena().peak_bytes()
    }

    /// How the device queue stands.
    pub fn queue_stats(&self) -> QueueStats {
        self.queue.stats()
    }

    /// What a plan asks for and its video lacks: keys of adapters that the model has no layer for. Known once it has run.
    pub fn warnings(&self, plan: &GenerationPlan) -> Vec<String> {
        self.loras.unused(&plan.model, &plan.loras)
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
        let loras = self.lora_set(plan, conditioning).await?;
        let session = Denoise::new(plan, conditioning, loras, noise)?;
        let weights_bytes = self.registry.loaded_bytes_beside("")?;
        let there_is = self.memory_bytes_max.saturating_sub(weights_bytes);
        let _reserved = self.memory.reserve(conditioning.job_bytes, there_is).await;
        let Diffused { key_frames, latents, shape } = self.queue.run(cx, Bill::DIFFUSE, session).await?;
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
        let interpolator = self.off_thread(|registry| registry.interpolator()).await?;
        self.queue.run(cx, Bill::INTERPOLATE, Between::new(interpolator, first, last, times)?).await
    }

    async fn model(&self, name: &str, residency: Residency) -> StageResult<Arc<VideoModel>> {
        if let Some(model) = self.registry.loaded(name, residency)? {
            return Ok(model);
        }
        let name = name.to_owned();
        self.off_thread(move |registry| registry.load(&name, residency)).await
    }

    /// The adapters that the plan asks for; reading them may take long.
    async fn lora_set(
        &self,
        plan: &GenerationPlan,
        conditioning: &PromptConditioning,
    ) -> StageResult<Option<Arc<LoraSet>>> {
        if plan.loras.is_empty() {
            return Ok(None);
        }
        let (library, model) = (Arc::clone(&self.loras), Arc::clone(&conditioning.model));
        let (name, loras) = (plan.model.clone(), plan.loras.clone());
        self.off_thread(move |_| library.set(&name, &model, &loras)).await
    }

    /// Runs `load` on a thread of its own, so that neither the device nor an async executor waits for a disk.
    async fn off_thread<T: Send + 'static>(
        &self,
        load: impl FnOnce(&Registry) -> StageResult<T> + Send + 'static,
    ) -> StageResult<T> {
        let (reply, receiver) = oneshot::channel();
        let registry = Arc::clone(&self.registry);
        std::thread::Builder::new()
            .name("off-device".to_owned())
            // The caller may have gone; then there is nobody to tell, and the model stays loaded for the next one.
            .spawn(move || drop(reply.send(load(&registry))))
            .map_err(|e| StageError::Internal(format!("no thread to load a model on: {e}")))?;
        receiver.await.unwrap_or_else(|_| Err(StageError::Internal("loading a model panicked".to_owned())))
    }
}

#[async_trait]
impl Condition for VideoEngine {
    async fn condition(&self, cx: &StageContext, plan: &GenerationPlan) -> StageResult<Conditioning> {
        self.registry
            .defaults(Some(&plan.model))?
            .pictures
            .check(plan.given.iter().map(|given| given.index), plan.key_frames)?;
        let (placement, estimate) = self.admit(plan)?;
        tracing::info!(model = plan.model, %placement, %estimate, "memory");
        let admitted = |conditioning| PromptConditioning { placement, job_bytes: estimate.job_bytes(), ..conditioning };
        let model = self.model(&plan.model, placement.residency).await?;
        let (session, cache) = (Encode::new(plan, Arc::clone(&model)), Arc::clone(&self.prompts));
        let mut session = self.off_thread(move |_| session.look_up(&cache)).await?;
        if let Some(Encoded { conditioning, .. }) = session.finished()? {
            return Ok(Conditioning::new(admitted(conditioning)));
        }
        if session.needs_text_encoder() {
            self.off_thread(move |_| model.text_encoder.prepare().map_err(internal)).await?;
        }
        let Encoded { conditioning, learnt } = self.queue.run(cx, Bill::CONDITION, session).await?;
        if !learnt.is_empty() {
            let cache = Arc::clone(&self.prompts);
            let keep = move |_: &Registry| {
                learnt.iter().for_each(|(key, states)| cache.insert(*key, states));
                Ok(())
            };
            self.off_thread(keep).await?;
        }
        Ok(Conditioning::new(admitted(conditioning)))
    }
}

#[async_trait]
impl Diffuse for VideoEngine {
    fn defaults(&self, model: Option<&str>) -> StageResult<ModelDefaults> {
        Ok(ModelDefaults { loras: self.loras.names(), ..self.registry.defaults(model)? })
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
        let interpolator = self.off_thread(|registry| registry.interpolator()).await?;
        let session = Sequence::new(interpolator, key_frames, frame_count, size)?;
        Ok(Frames { frames: self.queue.run(cx, Bill::INTERPOLATE, session).await?, fps })
    }
}

fn internal(error: ModelError) -> StageError {
    StageError::Internal(error.to_string())
}
