//! The CPU engine: a pool of threads and an arena for tensors.

use super::{Device, DeviceFault, DeviceId, Timed};
use crate::memory::available_bytes;
use kernels::Arena;
use pipeline::{StageError, StageResult};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Instant;

/// Monotonic time in nanoseconds; its zero means nothing.
pub trait Ticks: Send + Sync {
    /// The time now.
    fn now_ns(&self) -> u64;
}

/// Monotonic time of the operating system, since this value was made.
#[derive(Debug)]
pub struct SystemTicks(Instant);

impl Default for SystemTicks {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Ticks for SystemTicks {
    fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// Steps run on a pool of threads; their tensors come from one arena. A step's time is what the clock says.
pub struct CpuDevice {
    pool: ThreadPool,
    arena: Arena,
    ticks: Arc<dyn Ticks>,
}

impl CpuDevice {
    /// With so many threads; none takes all cores.
    pub fn new(threads: Option<usize>) -> StageResult<Self> {
        Self::with_ticks(threads, Arc::new(SystemTicks::default()))
    }

    /// The same with another source of time, for simulation.
    pub fn with_ticks(threads: Option<usize>, ticks: Arc<dyn Ticks>) -> StageResult<Self> {
        let threads = threads.or_else(|| std::thread::available_parallelism().ok().map(NonZero::get)).unwrap_or(1);
        let pool = ThreadPoolBuilder::new().num_threads(threads.max(1)).thread_name(|i| format!("device-{i}")).build();
        let pool = pool.map_err(|e| StageError::Internal(format!("the device's threads did not start: {e}")))?;
        Ok(Self { pool, arena: Arena::new(), ticks })
    }
}

impl Device for CpuDevice {
    fn id(&self) -> DeviceId {
        DeviceId::Cpu
    }

    fn name(&self) -> &str {
        "cpu"
    }

    fn timed(&self, step: &mut (dyn FnMut() + Send)) -> Timed {
        let started_ns = self.ticks.now_ns();
        self.pool.install(|| self.arena.scope(step));
        Timed { busy_ns: self.ticks.now_ns().saturating_sub(started_ns), fault: None }
    }

    fn scope(&self, work: &mut (dyn FnMut() + Send)) {
        // Weights stay for the life of the process: they are no tensors of a step.
        work();
    }

    fn free_bytes(&self) -> Option<u64> {
        available_bytes()
    }

    fn peak_bytes(&self) -> usize {
        self.arena.peak_bytes()
    }

    fn scrub(&self) -> Result<(), DeviceFault> {
        // Every operation writes all of its result, and no other process sees this memory.
        Ok(())
    }

    fn trim(&self) {
        self.arena.trim();
    }

    fn reset(&self) -> Result<(), DeviceFault> {
        Ok(())
    }
}
