//! What travels beside the data: cancellation, progress, the meter and the budget of one job.

use crate::error::{StageError, StageResult};
use crate::ids::Lane;
use crate::stage::Stage;
use crate::usage::UsageMeter;
use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A one-way switch shared by everyone who works on a job. It is polled: between denoise steps, at each epoch tick
/// inside wasm, and between encoded frames.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Asks the job to stop; never unset.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the job was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Receives how far a stage has come. Called from worker threads; must return quickly.
pub trait Progress: Send + Sync {
    /// `done` of `total` units (steps, frames) of `stage`; `done == total` ends the stage.
    fn report(&self, stage: Stage, done: u32, total: u32);

    /// `stage` is over, whatever came of it, after `wall_ms` milliseconds on the clock (waiting included).
    fn finished(&self, _stage: Stage, _wall_ms: u64) {}
}

/// Drops every report.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn report(&self, _stage: Stage, _done: u32, _total: u32) {}
}

/// Where a job runs: its first stage on a device chooses one, the others stay there. The engine's own value, opaque to
/// everyone else; dropped with the job.
#[derive(Clone, Default)]
pub struct DeviceSlot(Arc<OnceLock<Box<dyn Any + Send + Sync>>>);

impl DeviceSlot {
    /// The value, made by `choose` when there is none yet. `None` when someone else's value is there.
    pub fn get_or_init<T: Send + Sync + 'static>(&self, choose: impl FnOnce() -> T) -> Option<&T> {
        self.0.get_or_init(|| Box::new(choose())).downcast_ref()
    }

    /// The value, if there is one.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.0.get()?.downcast_ref()
    }
}

impl fmt::Debug for DeviceSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.get().is_some() { "DeviceSlot(chosen)" } else { "DeviceSlot(open)" })
    }
}

/// Everything that a stage needs to know about its job besides its input.
#[derive(Clone)]
pub struct StageContext {
    /// The share of the device that this job draws from. Opaque: the device queue never learns whose it is.
    pub lane: Lane,
    /// Read between units of work.
    pub cancel: CancelToken,
    /// Collects what the job used; read by `record` whatever the outcome.
    pub meter: Arc<UsageMeter>,
    /// Hears of progress.
    pub progress: Arc<dyn Progress>,
    /// Device milliseconds that the job may use in all.
    pub gpu_budget_ms: u64,
    /// Which device it runs on.
    pub device: DeviceSlot,
}

impl StageContext {
    /// A context with no budget limit and silent progress, for tools and tests.
    pub fn unmetered(lane: Lane) -> Self {
        Self {
            lane,
            cancel: CancelToken::default(),
            meter: Arc::default(),
            progress: Arc::new(NoProgress),
            gpu_budget_ms: u64::MAX,
            device: DeviceSlot::default(),
        }
    }

    /// `Cancelled` once the job was asked to stop.
    pub fn check_cancelled(&self) -> StageResult<()> {
        if self.cancel.is_cancelled() { Err(StageError::Cancelled) } else { Ok(()) }
    }

    /// Device milliseconds left. Zero means that the next step must not start.
    pub fn gpu_remaining_ms(&self) -> u64 {
        self.gpu_budget_ms.saturating_sub(self.meter.snapshot().gpu_ms())
    }

    /// `Cancelled` or `BudgetExhausted` when another step must not start.
    pub fn check_may_continue(&self) -> StageResult<()> {
        self.check_cancelled()?;
        if self.gpu_remaining_ms() == 0 {
            return Err(StageError::BudgetExhausted { budget_ms: self.gpu_budget_ms });
        }
        Ok(())
    }
}
