//! How a queue stands, for metrics and for placing jobs.

use super::Bill;

/// Upper ends of the classes of step times, in milliseconds; a last class takes what is longer.
pub const STEP_MS: [u64; 13] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 20_000];

/// Times of the steps of one stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Steps by class of [`STEP_MS`]; the last one holds what is longer than all.
    pub counts: [u64; STEP_MS.len() + 1],
    /// Time of all steps.
    pub sum_ns: u64,
}

impl StepTimes {
    /// Counts a step.
    pub(super) fn record(&mut self, ns: u64) {
        let class = STEP_MS.iter().position(|end| ns <= end * 1_000_000).unwrap_or(STEP_MS.len());
        self.counts[class] += 1;
        self.sum_ns += ns;
    }
}

/// How the queue stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Sessions that have not run a step yet.
    pub waiting: usize,
    /// Sessions between their first and last step.
    pub active: usize,
    /// Device time of all steps so far.
    pub busy_ms: u64,
    /// Of `busy_ms`, what was billed to sessions and stays billed.
    pub billed_ms: u64,
    /// Of `busy_ms`, what the operator carries: faults of the device. Together with `billed_ms` it is `busy_ms` whenever
    /// nothing is active.
    pub refunded_ms: u64,
    /// Steps run so far.
    pub steps: u64,
    /// For how long the oldest waiting session has waited.
    pub oldest_wait_ms: u64,
    /// Device time that the steps ahead are expected to take, as far as their like has been seen.
    pub expected_us: u64,
    /// How often the device failed and was reset.
    pub faults: u64,
    /// Times of steps by stage, in the order of [`Bill::ALL`].
    pub step_times: [StepTimes; Bill::ALL.len()],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_counted_in_the_first_class_that_it_fits() {
        let mut times = StepTimes::default();
        [0, 1_000_000, 1_000_001, 20_000_000_000, 20_000_000_001].into_iter().for_each(|ns| times.record(ns));
        assert_eq!((times.counts[0], times.counts[1], times.counts[12], times.counts[13]), (2, 1, 1, 1));
        assert_eq!(times.counts.iter().sum::<u64>(), 5);
    }
}
