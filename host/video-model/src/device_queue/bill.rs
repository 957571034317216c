//! From measured nanoseconds to billed milliseconds, without losing or inventing any.

const NS_PER_MS: u64 = 1_000_000;

/// What one session has used and not yet paid: less than a millisecond.
#[derive(Debug, Default)]
pub(super) struct Carry {
    ns: u64,
}

impl Carry {
    /// Whole milliseconds to bill after `ns` more.
    pub(super) fn add(&mut self, ns: u64) -> u64 {
        self.ns += ns;
        let ms = self.ns / NS_PER_MS;
        self.ns %= NS_PER_MS;
        ms
    }
}

/// All device time. Sessions that end leave their carry here; the one that fills a millisecond pays it, so that the sum
/// of all bills is the whole milliseconds of the busy time, whatever the number of sessions.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) busy_ns: u64,
    pub(super) billed_ms: u64,
    left_over: Carry,
}

impl Account {
    /// Bills a step of `ns` to the session with `carry`: the milliseconds that it pays now.
    pub(super) fn step(&mut self, carry: &mut Carry, ns: u64) -> u64 {
        self.busy_ns += ns;
        self.billed(carry.add(ns))
    }

    /// Closes the session with `carry`: the last millisecond that it pays, or 0.
    pub(super) fn close(&mut self, carry: Carry) -> u64 {
        let ms = self.left_over.add(carry.ns);
        self.billed(ms)
    }

    pub(super) fn busy_ms(&self) -> u64 {
        self.busy_ns / NS_PER_MS
    }

    fn billed(&mut self, ms: u64) -> u64 {
        self.billed_ms += ms;
        ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bills_add_up_to_the_busy_time_in_any_interleaving(
            steps in prop::collection::vec((0usize..9, 0u64..5_000_000), 0..300)
        ) {
            let mut account = Account::default();
            let mut carries: Vec<Carry> = (0..9).map(|_| Carry::default()).collect();
            let mut paid = [0u64; 9];
            let mut used = [0u64; 9];
            for (who, ns) in steps {
                used[who] += ns;
                paid[who] += account.step(&mut carries[who], ns);
            }
            for (who, carry) in carries.into_iter().enumerate() {
                paid[who] += account.close(carry);
                prop_assert!(paid[who].abs_diff(used[who] / NS_PER_MS) <= 1, "no session is off by more than 1 ms");
            }
            prop_assert_eq!(paid.iter().sum::<u64>(), account.busy_ms());
            prop_assert_eq!(account.billed_ms, account.busy_ms());
        }
    }
}
