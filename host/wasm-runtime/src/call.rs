//! One call of a component: a fresh store, its limits, its bill, and the reasons for which it is stopped.

use crate::cpu_clock::{CpuClock, Metered};
use crate::function_log::{FunctionLog, clipped, escaped};
use crate::limits::{EPOCH_MS, HANDOVER_BYTES_MAX, Limits};
use crate::runtime::WasmRuntime;
use crate::state::CallState;
use pipeline::{CancelToken, FunctionRef, StageContext, StageError, StageResult, UsageField, UsageMeter};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::component::ResourceTableError;
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, UpdateDeadline};
use wasmtime_wasi::I32Exit;

/// What a call may use and where it is billed.
pub(crate) struct Terms {
    pub(crate) field: UsageField,
    pub(crate) cpu_ms_max: u64,
    /// Largest frame that the component hands over in one call.
    pub(crate) frame_bytes_max: usize,
}

/// Everything about a call that stands outside its store.
pub(crate) struct Call {
    function: String,
    cancel: CancelToken,
    clock: Arc<CpuClock>,
    log: Arc<FunctionLog>,
    in_engine: Arc<AtomicBool>,
    limits: Limits,
    terms: Terms,
    meter: Arc<UsageMeter>,
    _turn: OwnedSemaphorePermit,
}

/// Why the host stopped a call.
#[derive(Debug, Clone, Copy, Error)]
enum Stop {
    #[error("the job was cancelled")]
    Cancelled,
    #[error("out of CPU time")]
    CpuTime,
    #[error("out of wall-clock time")]
    WallTime,
}

impl Call {
    /// Waits for a free place and sets up a store with every limit on.
    pub(crate) async fn open(
        runtime: &WasmRuntime,
        cx: &StageContext,
        function: &FunctionRef,
        terms: Terms,
    ) -> StageResult<(Self, Store<CallState>)> {
        let turn = runtime.places.clone().acquire_owned().await;
        let turn = turn.map_err(|_| StageError::Unavailable("the wasm runtime is shutting down".to_owned()))?;
        cx.check_cancelled()?;
        let clock = CpuClock::new();
        let state = CallState::new(&runtime.limits, &runtime.services, cx, function, clock.clone());
        let call = Self {
            function: function.name.to_string(),
            cancel: cx.cancel.clone(),
            clock,
            log: state.log.clone(),
            in_engine: state.engine.in_use.clone(),
            limits: runtime.limits.clone(),
            meter: cx.meter.clone(),
            terms,
            _turn: turn,
        };
        let mut store = Store::new(&runtime.engine, state);
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(call.handover_bytes_max());
        store.set_max_component_handles(call.limits.handles_max);
        call.watch_epoch(&mut store);
        Ok((call, store))
    }

    /// Looks at running code once an epoch: it goes on, after others had their turn, or it traps.
    fn watch_epoch(&self, store: &mut Store<CallState>) {
        let (cancel, clock) = (self.cancel.clone(), self.clock.clone());
        let cpu_max = Duration::from_millis(self.terms.cpu_ms_max);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |_| {
            if cancel.is_cancelled() {
                return Err(Stop::Cancelled.into());
            }
            if clock.used() > cpu_max {
                return Err(Stop::CpuTime.into());
            }
            Ok(UpdateDeadline::Yield(1))
        });
    }

    /// Runs the component's side of a call. Epochs only see code that runs; this also ends a component that waits.
    pub(crate) async fn drive<T>(
        &self,
        guest: impl Future<Output = wasmtime::Result<T>> + Send,
    ) -> wasmtime::Result<T> {
        let guest = Metered { future: Box::pin(guest), clock: self.clock.clone() };
        tokio::select! {
            biased;
            outcome = guest => outcome,
            stop = self.watch_wait() => Err(stop.into()),
        }
    }

    async fn watch_wait(&self) -> Stop {
        let wall_max = Duration::from_millis(self.terms.cpu_ms_max) * self.limits.wall_per_cpu_max;
        let (mut wall, mut last) = (Duration::ZERO, Instant::now());
        loop {
            tokio::time::sleep(Duration::from_millis(EPOCH_MS)).await;
            let now = Instant::now();
            // The engine watches the token and the clock itself while it works for this call.
            if !self.in_engine.load(Ordering::SeqCst) {
                wall += now - last;
                if self.cancel.is_cancelled() {
                    return Stop::Cancelled;
                }
                if wall > wall_max {
                    return Stop::WallTime;
                }
            }
            last = now;
        }
    }

    /// What the outcome means for the job.
    pub(crate) fn judge<T>(&self, outcome: wasmtime::Result<T>, store: &Store<CallState>) -> StageResult<T> {
        outcome.map_err(|error| self.explain(&error, store.data()))
    }

    /// The component broke its contract.
    pub(crate) fn blame(&self, message: impl Into<String>) -> StageError {
        StageError::Function { function: self.function.clone(), message: message.into() }
    }

    fn explain(&self, error: &wasmtime::Error, state: &CallState) -> StageError {
        if let Some(stop) = error.downcast_ref::<Stop>() {
            return match stop {
                Stop::Cancelled => StageError::Cancelled,
                Stop::CpuTime => self.blame(format!("ran longer than {} ms of CPU", self.terms.cpu_ms_max)),
                Stop::WallTime => {
                    let ms = self.terms.cpu_ms_max * u64::from(self.limits.wall_per_cpu_max);
                    self.blame(format!("took longer than {ms} ms by the clock; do not sleep or wait"))
                }
            };
        }
        if error.is::<PoolConcurrencyLimitError>() {
            return StageError::Unavailable("all places for components are taken".to_owned());
        }
        if state.limiter.memory_refused {
            return self.blame(format!("asked for more than {} of memory", mib(self.limits.memory_bytes_max)));
        }
        if state.limiter.table_refused {
            let max = self.limits.table_elements_max;
            return self.blame(format!("asked for a table of more than {max} elements"));
        }
        self.blame(self.fault(error))
    }

    /// A trap, or a breach of the component model's rules.
    fn fault(&self, error: &wasmtime::Error) -> String {
        if error.is::<I32Exit>() {
            return "called exit instead of returning".to_owned();
        }
        if let Some(ResourceTableError::Full) = error.downcast_ref() {
            return format!("held more than {} handles", self.limits.handles_max);
        }
        if let Some(Trap::StackOverflow) = error.downcast_ref() {
            let kib = self.limits.stack_bytes_max >> 10;
            return format!("used more than {kib} KiB of stack; look for recursion without an end");
        }
        let cause = error.root_cause().to_string();
        // wasmtime keeps this error's type to itself.
        if cause.contains("fuel allocated for hostcalls has been exhausted") {
            return format!("handed over more than {} in one call", mib(self.handover_bytes_max()));
        }
        let last_words = self.log.last_words();
        match last_words.as_str() {
            "" => format!("trapped: {}", escaped(clipped(&cause, 300))),
            words => format!("trapped: {words}"),
        }
    }

    fn handover_bytes_max(&self) -> usize {
        self.terms.frame_bytes_max + HANDOVER_BYTES_MAX
    }
}

impl Drop for Call {
    /// The bill is written however the call ended, or was dropped.
    fn drop(&mut self) {
        self.meter.add(self.terms.field, self.clock.used_ms());
        self.log.finish();
    }
}

/// Bytes as MiB, rounded up.
fn mib(bytes: usize) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
