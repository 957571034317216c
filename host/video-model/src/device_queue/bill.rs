//! From measured nanoseconds to billed milliseconds, without losing or inventing any.

use super::share::share;

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

/// All device time. Sessions that end leave their carry here; the one that fills a millisecond pays it, so that bills and
/// refunds together are the whole milliseconds of the busy time, whatever the number of sessions.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) busy_ns: u64,
    /// Billed and not refunded.
    pub(super) billed_ms: u64,
    /// Carried by the operator: attempts that ended by a fault of the device.
    pub(super) refunded_ms: u64,
    left_over: Carry,
}

impl Account {
    /// Bills a step of `ns` to the sessions that took it together, by weight: the milliseconds that each pays now.
    pub(super) fn step(&mut self, batch: &mut [(&mut Carry, u32)], ns: u64) -> Vec<u64> {
        self.busy_ns += ns;
        let weights: Vec<u32> = batch.iter().map(|(_, weight)| *weight).collect();
        let parts = share(ns, &weights);
        batch.iter_mut().zip(parts).map(|((carry, _), ns)| self.billed(carry.add(ns))).collect()
    }

    /// Closes the session with `carry`: the last millisecond that it pays, or 0.
    pub(super) fn close(&mut self, carry: Carry) -> u64 {
        let ms = self.left_over.add(carry.ns);
        self.billed(ms)
    }

    /// Closes the session with `carry`, whose job pays nothing: neither what it has yet to pay nor the `billed_ms` that it,
    /// and the sessions before it, have.
    pub(super) fn refund(&mut self, carry: Carry, billed_ms: u64) {
        self.billed_ms -= billed_ms;
        self.refunded_ms += billed_ms + self.left_over.add(carry.ns);
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

    const SESSIONS: usize = 9;

    proptest! {
        #[test]
        fn bills_and_refunds_add_up_to_the_busy_time_of_any_batches_in_any_interleaving(
            steps in prop::collection::vec((prop::collection::vec(0u32..5, SESSIONS), 0u64..5_000_000), 0..300),
            broken in prop::collection::vec(any::<bool>(), SESSIONS),
        ) {
            let mut account = Account::default();
            let mut carries: Vec<Carry> = (0..SESSIONS).map(|_| Carry::default()).collect();
            let mut paid = [0u64; SESSIONS];
            let mut used = [0u64; SESSIONS];
            for (weights, ns) in steps {
                // Who has no weight is not in the batch; a batch of nobody is no step.
                let members: Vec<usize> = (0..SESSIONS).filter(|who| weights[*who] > 0).collect();
                if members.is_empty() {
                    continue;
                }
                let in_batch = carries.iter_mut().zip(&weights).filter(|(_, weight)| **weight > 0);
                let mut batch: Vec<_> = in_batch.map(|(carry, weight)| (carry, *weight)).collect();
                let shares = share(ns, &members.iter().map(|who| weights[*who]).collect::<Vec<_>>());
                for ((who, ms), ns) in members.iter().zip(account.step(&mut batch, ns)).zip(shares) {
                    paid[*who] += ms;
                    used[*who] += ns;
                }
            }
            prop_assert_eq!(used.iter().sum::<u64>(), account.busy_ns);
            let mut given_back = 0;
            for (who, carry) in carries.into_iter().enumerate() {
                if broken[who] {
                    given_back += paid[who];
                    account.refund(carry, std::mem::take(&mut paid[who]));
                } else {
                    paid[who] += account.close(carry);
                    prop_assert!(paid[who].abs_diff(used[who] / NS_PER_MS) <= 1, "no session is off by more than 1 ms");
                }
            }
            prop_assert_eq!(account.billed_ms, paid.iter().sum::<u64>());
            prop_assert_eq!(account.billed_ms + account.refunded_ms, account.busy_ms());
            prop_assert!(account.refunded_ms >= given_back);
        }
    }
}
