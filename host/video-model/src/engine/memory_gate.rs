//! Jobs that diffuse at the same time share the memory that there is: one whose peak does not fit beside the others' waits.

use futures::channel::oneshot;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Hands out memory in the order of asking.
#[derive(Clone, Default)]
pub(super) struct MemoryGate(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    reserved_bytes: u64,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    bytes: u64,
    capacity_bytes: u64,
    go: oneshot::Sender<Reservation>,
}

/// Memory that a job may use until this is dropped.
pub(super) struct Reservation {
    gate: MemoryGate,
    bytes: u64,
}

impl MemoryGate {
    /// Waits until `bytes` fit into `capacity_bytes` beside what others have reserved. A job that is alone always fits: whether
    /// it may run at all was decided before.
    pub(super) async fn reserve(&self, bytes: u64, capacity_bytes: u64) -> Reservation {
        let (go, turn) = oneshot::channel();
        self.lock().waiting.push_back(Waiting { bytes, capacity_bytes, go });
        self.admit();
        // The sender is dropped only with the gate, which we hold.
        turn.await.unwrap_or_else(|_| Reservation { gate: self.clone(), bytes: 0 })
    }

    /// Lets those in who fit, first come first served.
    fn admit(&self) {
        loop {
            let mut state = self.lock();
            let Some(first) = state.waiting.front() else { return };
            let fits = state.reserved_bytes == 0 || state.reserved_bytes + first.bytes <= first.capacity_bytes;
            if !fits && !first.go.is_canceled() {
                return;
            }
            let Some(Waiting { bytes, go, .. }) = state.waiting.pop_front() else { return };
            if !go.is_canceled() {
                state.reserved_bytes += bytes;
                drop(state);
                // Whoever has gone in between gives the reservation back by dropping it.
                drop(go.send(Reservation { gate: self.clone(), bytes }));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.gate.lock().reserved_bytes -= self.bytes;
        self.gate.admit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_job_that_does_not_fit_beside_another_waits_for_it_and_those_who_left_are_passed_over() {
        let gate = MemoryGate::default();
        let first = gate.reserve(60, 100).now_or_never().unwrap();
        let beside = gate.reserve(40, 100).now_or_never().unwrap();
        let mut second = Box::pin(gate.reserve(50, 100));
        assert!((&mut second).now_or_never().is_none());
        let mut gone = Box::pin(gate.reserve(100, 100));
        assert!((&mut gone).now_or_never().is_none());
        let mut third = Box::pin(gate.reserve(10, 100));
        assert!((&mut third).now_or_never().is_none(), "nobody overtakes");
        drop(gone);
        drop(first);
        let second = (&mut second).now_or_never().unwrap();
        let third = (&mut third).now_or_never().unwrap();
        drop((beside, second, third));
        assert_eq!(gate.lock().reserved_bytes, 0);
    }

    #[test]
    fn a_job_that_is_alone_is_let_in_whatever_it_needs() {
        let gate = MemoryGate::default();
        assert!(gate.reserve(1000, 1).now_or_never().is_some());
    }
}
