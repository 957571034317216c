//! Whose turn it is: deficit round robin over lanes (Shreedhar & Varghese 1995), in device time.
//!
//! Every round each lane with work earns the same time. A lane runs a step once it has earned what the step is expected
//! to cost, and pays what the step did cost, so a wrong estimate only delays the next turn.

use pipeline::Lane;
use std::collections::VecDeque;

/// Time that a lane earns per round: short beside a step, so that lanes of quick steps take turns finely.
const QUANTUM_US: i64 = 10_000;

#[derive(Debug)]
struct LaneQueue<T> {
    lane: Lane,
    earned_us: i64,
    /// In the order of arrival: the first is served to its end before the second starts.
    items: VecDeque<T>,
}

/// Items by lane. The lane at the front is the one being served.
#[derive(Debug)]
pub(super) struct FairLanes<T> {
    rotation: VecDeque<LaneQueue<T>>,
}

impl<T> Default for FairLanes<T> {
    fn default() -> Self {
        Self { rotation: VecDeque::new() }
    }
}

impl<T> FairLanes<T> {
    /// Adds an item at the end of its lane; a lane without work joins at the end of the rotation, with nothing earned.
    pub(super) fn push(&mut self, lane: Lane, item: T) {
        match self.rotation.iter_mut().find(|l| l.lane == lane) {
            Some(queue) => queue.items.push_back(item),
            None => self.rotation.push_back(LaneQueue { lane, earned_us: 0, items: VecDeque::from([item]) }),
        }
    }

    /// Turns the rotation until the front lane has earned its next step, and returns that lane's first item. Follow it
    /// with [`Self::charge`].
    pub(super) fn next(&mut self, expected_us: impl Fn(&T) -> u64) -> Option<&mut T> {
        let missing = |l: &LaneQueue<T>| {
            let cost = l.items.front().map_or(0, |item| i64::try_from(expected_us(item)).unwrap_or(i64::MAX / 2));
            cost.saturating_sub(l.earned_us)
        };
        if self.rotation.front().is_some_and(|l| missing(l) > 0) {
            // The front lane has had its turn. Whole rounds in which nobody could run are skipped at once.
            self.rotation.rotate_left(1);
            let rounds = self.rotation.iter().map(|l| (missing(l) + QUANTUM_US - 1) / QUANTUM_US).min().unwrap_or(0);
            let earned = (rounds - 1).max(0) * QUANTUM_US;
            self.rotation.iter_mut().for_each(|l| l.earned_us += earned);
            while let Some(front) = self.rotation.front_mut() {
                front.earned_us += QUANTUM_US;
                if missing(front) <= 0 {
                    break;
                }
                self.rotation.rotate_left(1);
            }
        }
        self.rotation.front_mut().and_then(|l| l.items.front_mut())
    }

    /// Takes the time of the step just run from the front lane.
    pub(super) fn charge(&mut self, us: u64) {
        if let Some(front) = self.rotation.front_mut() {
            front.earned_us = front.earned_us.saturating_sub_unsigned(us);
        }
    }

    /// Takes out every item for which `gone`; lanes left empty go too, with what they had earned.
    pub(super) fn take_where(&mut self, mut gone: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for queue in &mut self.rotation {
            if queue.items.iter().any(&mut gone) {
                let (out, kept) = queue.items.drain(..).partition::<Vec<_>, _>(&mut gone);
                queue.items = kept.into();
                taken.extend(out);
            }
        }
        self.rotation.retain(|l| !l.items.is_empty());
        taken
    }

    /// Takes out the front lane's first item.
    pub(super) fn pop(&mut self) -> Option<T> {
        let item = self.rotation.front_mut()?.items.pop_front();
        if self.rotation.front().is_some_and(|l| l.items.is_empty()) {
            self.rotation.pop_front();
        }
        item
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.rotation.iter().flat_map(|l| &l.items)
    }
}
