//! What one call owns: made for it, dropped with it. Nothing here outlives a call or is seen by another.

use crate::cpu_clock::CpuClock;
use crate::function_log::{FunctionLog, LogStream, Stream};
use crate::host::EngineAccess;
use crate::limits::Limits;
use crate::runtime::Services;
use pipeline::{FunctionRef, GenerationRequest, StageContext, StageError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use wasmtime::ResourceLimiter;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

/// The data of a call's store.
pub(crate) struct CallState {
    pub(crate) table: ResourceTable,
    pub(crate) wasi: WasiCtx,
    pub(crate) limiter: MemoryLimiter,
    pub(crate) log: Arc<FunctionLog>,
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) engine: EngineAccess,
    pub(crate) frames: Arc<FrameBudget>,
    /// What the caller asked for: the seed of a diffusion that names none, and whatever the contract does not know.
    pub(crate) asked: GenerationRequest,
    /// The host's last failure, so that a component that hands it on does not take the blame.
    pub(crate) host_failure: Option<StageError>,
}

impl CallState {
    pub(crate) fn new(
        limits: &Limits,
        services: &Services,
        cx: &StageContext,
        function: &FunctionRef,
        clock: Arc<CpuClock>,
    ) -> Self {
        let log = Arc::new(FunctionLog {
            sink: services.log.clone(),
            function: function.name.clone(),
            lane: cx.lane,
            lines_max: limits.log_lines_max,
            line_bytes_max: limits.log_line_bytes_max,
            state: Default::default(),
        });
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles_max);
        Self {
            table,
            wasi: wasi(limits, &log),
            limiter: MemoryLimiter::new(limits),
            log,
            config: function.config.clone(),
            engine: EngineAccess {
                cx: cx.clone(),
                services: services.clone(),
                clock,
                in_use: Arc::default(),
                call_max: Duration::from_millis(limits.engine_call_ms_max),
            },
            frames: Arc::new(FrameBudget { used_bytes: AtomicU64::new(0), bytes_max: limits.frames_bytes_max }),
            asked: GenerationRequest::default(),
            host_failure: None,
        }
    }
}

/// No directories, no environment, no arguments, no network; output goes to the function's log.
fn wasi(limits: &Limits, log: &Arc<FunctionLog>) -> WasiCtx {
    WasiCtx::builder()
        .stdout(LogStream { log: log.clone(), stream: Stream::Out })
        .stderr(LogStream { log: log.clone(), stream: Stream::Err })
        .max_random_size(limits.random_bytes_max)
        .allow_tcp(false)
        .allow_udp(false)
        .build()
}

impl WasiView for CallState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Counts all linear memories of a call together.
pub(crate) struct MemoryLimiter {
    memory_bytes: usize,
    memory_bytes_max: usize,
    table_elements_max: usize,
    /// Growth that was allowed last, in case it fails afterwards.
    last_growth_bytes: usize,
    pub(crate) memory_refused: bool,
    pub(crate) table_refused: bool,
}

impl MemoryLimiter {
    fn new(limits: &Limits) -> Self {
        Self {
            memory_bytes: 0,
            memory_bytes_max: limits.memory_bytes_max,
            table_elements_max: limits.table_elements_max,
            last_growth_bytes: 0,
            memory_refused: false,
            table_refused: false,
        }
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.last_growth_bytes = 0;
        let growth = desired.saturating_sub(current);
        let total = self.memory_bytes.saturating_add(growth);
        if total > self.memory_bytes_max {
            self.memory_refused = true;
            return Ok(false);
        }
        (self.memory_bytes, self.last_growth_bytes) = (total, growth);
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_bytes -= std::mem::take(&mut self.last_growth_bytes);
        Ok(())
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.table_refused |= desired > self.table_elements_max;
        Ok(desired <= self.table_elements_max)
    }
}

/// Bytes of frames that a call's handles hold.
#[derive(Debug)]
pub(crate) struct FrameBudget {
    used_bytes: AtomicU64,
    bytes_max: u64,
}

impl FrameBudget {
    /// Room for `bytes`, given back when the reservation is dropped; what is free when there is not enough.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<FrameReservation, u64> {
        let add = |used: u64| used.checked_add(bytes).filter(|&all| all <= self.bytes_max);
        match self.used_bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add) {
            Ok(_) => Ok(FrameReservation { budget: self.clone(), bytes }),
            Err(used) => Err(self.bytes_max - used),
        }
    }
}

/// A part of the frame budget.
#[derive(Debug)]
pub(crate) struct FrameReservation {
    budget: Arc<FrameBudget>,
    bytes: u64,
}

impl FrameReservation {
    /// Takes over another part.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Gives back all but `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let free = self.bytes.saturating_sub(bytes);
        self.bytes -= free;
        self.budget.used_bytes.fetch_sub(free, Ordering::SeqCst);
    }
}

impl Drop for FrameReservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}
