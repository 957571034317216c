//! CPU time of the current thread: what `encode_cpu_ms` bills, so waiting for a core costs the tenant nothing.

use pipeline::{UsageField, UsageMeter};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;

/// Adds the CPU time between its making and its drop to the meter: after success, failure and panic alike.
/// It must stay on the thread that made it, and the measured work must not spread over others.
pub(crate) struct CpuTimer {
    meter: Arc<UsageMeter>,
    field: UsageField,
    started_us: u64,
    // A raw pointer is not `Send`: the timer cannot be dropped on another thread's clock.
    _this_thread: std::marker::PhantomData<*const ()>,
}

impl CpuTimer {
    pub(crate) fn start(meter: Arc<UsageMeter>, field: UsageField) -> Self {
        Self { meter, field, started_us: thread_cpu_us(), _this_thread: std::marker::PhantomData }
    }
}

impl Drop for CpuTimer {
    fn drop(&mut self) {
        let used_us = thread_cpu_us().saturating_sub(self.started_us);
        // Rounded up: work that ran is never free.
        self.meter.add(self.field, used_us.div_ceil(1000));
    }
}

fn thread_cpu_us() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // Both parts of a CPU clock are non-negative by definition.
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn metered_ms(work: impl FnOnce()) -> u64 {
        let meter = Arc::<UsageMeter>::default();
        let timer = CpuTimer::start(meter.clone(), UsageField::EncodeCpuMs);
        work();
        drop(timer);
        meter.snapshot().encode_cpu_ms
    }

    #[test]
    fn work_is_billed_and_waiting_is_not() {
        let waited = metered_ms(|| std::thread::sleep(Duration::from_millis(120)));
        assert!((1..60).contains(&waited), "a sleep of 120 ms was billed as {waited} ms");
        let worked = metered_ms(|| {
            let timer = CpuTimer::start(Arc::default(), UsageField::EncodeCpuMs);
            while thread_cpu_us() - timer.started_us < 50_000 {
                std::hint::spin_loop();
            }
        });
        assert!((50..200).contains(&worked), "50 ms of work were billed as {worked} ms");
    }

    #[test]
    fn a_panic_is_billed_too() {
        let meter = Arc::<UsageMeter>::default();
        let inside = meter.clone();
        let outcome = std::thread::spawn(move || {
            let _timer = CpuTimer::start(inside, UsageField::EncodeCpuMs);
            let until = Instant::now() + Duration::from_millis(5);
            while Instant::now() < until {}
            std::panic::resume_unwind(Box::new("broken"));
        })
        .join();
        assert!(outcome.is_err() && meter.snapshot().encode_cpu_ms > 0);
    }
}
