//! What an engine has on one of its devices: the queue, the models that are loaded there, the memory that there is.

use super::internal;
use super::memory_gate::MemoryGate;
use super::placing::Load;
use crate::device_queue::{Bill, DeviceQueue, Life, Session};
use crate::devices::Device;
use crate::lora::{LoraLibrary, LoraSet};
use crate::memory::{MemoryEstimate, Placement, Workload};
use crate::model::VideoModel;
use crate::registry::Registry;
use crate::transformer::Residency;
use futures::channel::oneshot;
use pipeline::{GenerationPlan, StageContext, StageError, StageResult};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One device with all that depends on it.
pub(super) struct OnDevice {
    /// Its place among the engine's devices.
    pub(super) index: usize,
    pub(super) device: Arc<dyn Device>,
    pub(super) queue: DeviceQueue,
    pub(super) registry: Arc<Registry>,
    pub(super) loras: Arc<LoraLibrary>,
    pub(super) memory: MemoryGate,
    /// Bytes that models and jobs may take.
    pub(super) memory_bytes_max: u64,
    /// Jobs that were placed here and are not over.
    pub(super) jobs: Arc<AtomicUsize>,
}

impl OnDevice {
    /// Starts the device's thread.
    pub(super) fn start(
        index: usize,
        device: Arc<dyn Device>,
        registry: Registry,
        loras: LoraLibrary,
        sessions_max: usize,
        memory_bytes_max: Option<u64>,
    ) -> StageResult<Self> {
        let (registry, loras) = (Arc::new(registry), Arc::new(loras));
        let (kept, adapters) = (Arc::clone(&registry), Arc::clone(&loras));
        let after_reset = move || {
            kept.unload_all();
            adapters.unload_all();
        };
        // A system that does not say what is free refuses nothing.
        let memory_bytes_max = memory_bytes_max.or_else(|| device.free_bytes()).unwrap_or(u64::MAX);
        let queue = DeviceQueue::start(Arc::clone(&device), sessions_max, after_reset)?;
        let (memory, jobs) = (MemoryGate::default(), Arc::default());
        Ok(Self { index, device, queue, registry, loras, memory, memory_bytes_max, jobs })
    }

    /// This, and the life that the device is in now: whatever is made on it from here on is of this life or dead.
    pub(super) fn alive(&self) -> (&Self, Life) {
        (self, self.queue.life())
    }

    /// What stands before a job of `model` (none: a job without one).
    pub(super) fn load(&self, model: Option<&str>) -> StageResult<Load> {
        let missing_bytes = match model {
            Some(model) if self.registry.loaded(model, Residency::Streamed)?.is_none() => {
                self.registry.memory(model)?.weights_bytes(Residency::Resident)
            }
            _ => 0,
        };
        let stats = self.queue.stats();
        let (sessions, jobs) = (stats.waiting + stats.active, self.jobs.load(Ordering::SeqCst));
        Ok(Load { queued_us: stats.expected_us, sessions, jobs, missing_bytes })
    }

    /// How a job would be placed and what it needs; an error when there is not so much memory beside the other models.
    pub(super) fn admit(&self, plan: &GenerationPlan) -> StageResult<(Placement, MemoryEstimate)> {
        let there_is = self.memory_bytes_max.saturating_sub(self.registry.loaded_bytes_beside(&plan.model)?);
        self.registry.memory(&plan.model)?.place(&Workload::from(plan), there_is)
    }

    /// The model, loading its weights if need be.
    pub(super) async fn model(
        &self,
        cx: &StageContext,
        name: &str,
        residency: Residency,
    ) -> StageResult<Arc<VideoModel>> {
        if let Some(model) = self.registry.loaded(name, residency)? {
            return Ok(model);
        }
        let name = name.to_owned();
        self.off_thread(cx, move |registry| registry.load(&name, residency)).await
    }

    /// The adapters that the plan asks for; reading them may take long.
    pub(super) async fn lora_set(
        &self,
        cx: &StageContext,
        plan: &GenerationPlan,
        model: &Arc<VideoModel>,
    ) -> StageResult<Option<Arc<LoraSet>>> {
        if plan.loras.is_empty() {
            return Ok(None);
        }
        let (library, model) = (Arc::clone(&self.loras), Arc::clone(model));
        let (name, loras) = (plan.model.clone(), plan.loras.clone());
        self.off_thread(cx, move |_| library.set(&name, &model, &loras)).await
    }

    /// Loads what a text encoder needs to encode.
    pub(super) async fn prepare_text_encoder(&self, cx: &StageContext, model: Arc<VideoModel>) -> StageResult<()> {
        self.off_thread(cx, move |_| model.text_encoder.prepare().map_err(internal)).await
    }

    /// Runs `load` on a thread of its own, with the tensors that it makes on the device, so that neither the device's thread nor
    /// an async executor waits for a disk. When the device fails meanwhile, it is reset.
    pub(super) async fn off_thread<T: Send + 'static>(
        &self,
        cx: &StageContext,
        load: impl FnOnce(&Registry) -> StageResult<T> + Send + 'static,
    ) -> StageResult<T> {
        let life = self.queue.life();
        let (reply, receiver) = oneshot::channel();
        let (registry, device) = (Arc::clone(&self.registry), Arc::clone(&self.device));
        let work = move || {
            let (mut load, mut loaded) = (Some(load), None);
            device.scope(&mut || loaded = load.take().map(|load| load(&registry)));
            // The caller may have gone; then there is nobody to tell, and the model stays loaded for the next one.
            drop(loaded.map(|loaded| reply.send(loaded)));
        };
        std::thread::Builder::new()
            .name("off-device".to_owned())
            .spawn(work)
            .map_err(|e| StageError::Internal(format!("no thread to load a model on: {e}")))?;
        let lost = || Err(StageError::Internal("loading a model panicked".to_owned()));
        match receiver.await.unwrap_or_else(|_| lost()) {
            // The queue resets the device and refunds the job, as if a step had failed.
            Err(failed @ StageError::DeviceFailed { .. }) => {
                self.queue.run(cx, life, Bill::CONDITION, Failed(failed)).await.map(|never| match never {})
            }
            loaded => loaded,
        }
    }
}

/// A session that has failed before it could start.
struct Failed(StageError);

/// No value.
enum Never {}

impl Session for Failed {
    type Output = Never;

    fn steps(&self) -> u32 {
        1
    }

    fn cost_class(&self) -> u64 {
        0
    }

    fn step(&mut self) -> StageResult<Option<Never>> {
        Err(self.0.clone())
    }
}

/// What a job made on a device can be used as long as the device lives on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MadeOn {
    /// Which of the engine's devices.
    pub(super) device: usize,
    pub(super) life: Life,
}
