//! Which device runs a job: the one on which it waits least. All its stages stay there.

use pipeline::UsageMeter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What a job is expected to take while none has finished yet.
const JOB_US_FIRST: u64 = 10_000_000;
/// Weights come from files and are packed on their way: about a gigabyte a second.
const LOADED_BYTES_PER_US: u64 = 1_000;

/// How much stands before a job on one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Device time of the steps that are queued, as far as known.
    pub(super) queued_us: u64,
    /// Sessions that are queued.
    pub(super) sessions: usize,
    /// Jobs placed there and not over; one without a session is between two stages, or loads.
    pub(super) jobs: usize,
    /// Weights that the job would have to load first.
    pub(super) missing_bytes: u64,
}

impl Load {
    fn wait_us(&self, job_us: u64) -> u64 {
        let without_session = self.jobs.saturating_sub(self.sessions) as u64;
        self.queued_us + without_session * job_us + self.missing_bytes / LOADED_BYTES_PER_US
    }
}

/// The devices from the shortest wait to the longest; among equals the one with fewer jobs, then the first.
pub(super) fn by_wait(loads: &[Load], job_us: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_by_key(|&i| (loads[i].wait_us(job_us), loads[i].jobs, i));
    order
}

/// What jobs take, learned from those that are over.
#[derive(Debug)]
pub(super) struct JobTime(AtomicU64);

impl Default for JobTime {
    fn default() -> Self {
        Self(AtomicU64::new(JOB_US_FIRST))
    }
}

impl JobTime {
    pub(super) fn us(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// A moving average over about four jobs. Two that end at once may lose one of them: it is an estimate.
    fn learn(&self, us: u64) {
        self.0.store((3 * self.us() + us) / 4, Ordering::Relaxed);
    }
}

/// A job's place on a device, until the job is over.
pub(super) struct Placed {
    pub(super) device: usize,
    jobs: Arc<AtomicUsize>,
    job_time: Arc<JobTime>,
    meter: Arc<UsageMeter>,
}

impl Placed {
    /// `jobs` counts those on the device.
    pub(super) fn new(
        device: usize,
        jobs: &Arc<AtomicUsize>,
        job_time: &Arc<JobTime>,
        meter: &Arc<UsageMeter>,
    ) -> Self {
        jobs.fetch_add(1, Ordering::SeqCst);
        Self { device, jobs: Arc::clone(jobs), job_time: Arc::clone(job_time), meter: Arc::clone(meter) }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        self.jobs.fetch_sub(1, Ordering::SeqCst);
        let gpu_ms = self.meter.snapshot().gpu_ms();
        // A job that was refused or given up before its first step tells nothing.
        if gpu_ms > 0 {
            self.job_time.learn(gpu_ms * 1000);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeline::UsageField;

    #[test]
    fn a_job_goes_where_it_waits_least() {
        let idle = Load::default();
        let busy = Load { queued_us: 5_000_000, sessions: 1, jobs: 1, ..idle };
        let loading = Load { jobs: 1, ..idle };
        assert_eq!(by_wait(&[busy, idle], 1), [1, 0]);
        assert_eq!(by_wait(&[loading, busy], 6_000_000), [1, 0], "a job between its stages will come back");
        assert_eq!(by_wait(&[idle, idle, idle], 1), [0, 1, 2]);
        let unknown = Load { sessions: 3, jobs: 3, ..idle };
        assert_eq!(by_wait(&[unknown, idle], 1), [1, 0], "steps of unknown length count by their number");
    }

    #[test]
    fn a_device_without_the_model_is_taken_when_the_wait_is_longer_than_loading() {
        let without = Load { missing_bytes: 3_000_000_000, ..Load::default() };
        let with = |queued_us| Load { queued_us, sessions: 1, jobs: 1, missing_bytes: 0 };
        assert_eq!(by_wait(&[without, with(2_000_000)], 1), [1, 0]);
        assert_eq!(by_wait(&[without, with(4_000_000)], 1), [0, 1]);
    }

    #[test]
    fn a_place_is_free_again_when_its_job_is_over() {
        let (jobs, time, meter) = (Arc::default(), Arc::new(JobTime::default()), Arc::new(UsageMeter::default()));
        let (first, second) = (Placed::new(0, &jobs, &time, &meter), Placed::new(0, &jobs, &time, &meter));
        assert_eq!(jobs.load(Ordering::SeqCst), 2);
        drop(first);
        assert_eq!((jobs.load(Ordering::SeqCst), time.us()), (1, JOB_US_FIRST), "a job without a step tells nothing");
        meter.add(UsageField::DiffuseGpuMs, 2_000);
        drop(second);
        assert_eq!((jobs.load(Ordering::SeqCst), time.us()), (0, 8_000_000));
    }
}
