//! CPU time of one call: what a component is billed for and what its limit counts.
//!
//! Guest code runs only inside `poll` of its call's future, so the time of the thread between the start and the end of
//! each `poll` is the component's, with the short host functions that it called. Waiting (for the engine, for a timer,
//! for a turn on a busy machine) happens between polls or off the CPU, and does not count.

use rustix::time::{ClockId, clock_gettime};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// No poll is under way.
const IDLE: u64 = u64::MAX;

/// Counts one call's CPU time.
#[derive(Debug)]
pub(crate) struct CpuClock {
    used_ns: AtomicU64,
    poll_start_ns: AtomicU64,
    /// Time of the engine inside the component's polls: it is metered by the engine.
    engine_ns: AtomicU64,
}

impl CpuClock {
    pub(crate) fn new() -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        Arc::new(Self { used_ns: zero(), poll_start_ns: AtomicU64::new(IDLE), engine_ns: zero() })
    }

    /// Time used so far. During a poll, only the polling thread may ask: clocks of threads do not compare.
    pub(crate) fn used(&self) -> Duration {
        let start_ns = self.poll_start_ns.load(Ordering::Relaxed);
        let running_ns = if start_ns == IDLE { 0 } else { thread_time_ns().saturating_sub(start_ns) };
        let all_ns = self.used_ns.load(Ordering::Relaxed) + running_ns;
        Duration::from_nanos(all_ns.saturating_sub(self.engine_ns.load(Ordering::Relaxed)))
    }

    /// Time used so far in milliseconds; a started millisecond counts.
    pub(crate) fn used_ms(&self) -> u64 {
        self.used().as_nanos().div_ceil(1_000_000) as u64
    }
}

/// A future whose polls are counted.
pub(crate) struct Metered<'a, T> {
    pub(crate) future: Pin<Box<dyn Future<Output = T> + Send + 'a>>,
    pub(crate) clock: Arc<CpuClock>,
}

impl<T> Future for Metered<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let start_ns = thread_time_ns();
        self.clock.poll_start_ns.store(start_ns, Ordering::Relaxed);
        let outcome = self.future.as_mut().poll(cx);
        self.clock.poll_start_ns.store(IDLE, Ordering::Relaxed);
        self.clock.used_ns.fetch_add(thread_time_ns().saturating_sub(start_ns), Ordering::Relaxed);
        outcome
    }
}

/// A future of the engine inside a metered one: its polls do not count.
pub(crate) struct Unmetered<'a, T> {
    pub(crate) future: Pin<Box<dyn Future<Output = T> + Send + 'a>>,
    pub(crate) clock: Arc<CpuClock>,
}

impl<T> Future for Unmetered<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let start_ns = thread_time_ns();
        let outcome = self.future.as_mut().poll(cx);
        self.clock.engine_ns.fetch_add(thread_time_ns().saturating_sub(start_ns), Ordering::Relaxed);
        outcome
    }
}

fn thread_time_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
