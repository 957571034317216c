//! The device thread's own state: which sessions there are, what they cost, what was billed. No threads, no locks.

use super::Bill;
use super::bill::Account;
use super::fair::FairLanes;
use super::session::{Finished, Task, Turn};
use super::stats::{QueueStats, StepTimes};
use crate::devices::{Device, DeviceFault};
use pipeline::StageError;
use std::collections::HashMap;

/// Classes of cost remembered; when there are more, all are learnt anew.
const COST_CLASSES_MAX: usize = 1024;

#[derive(Default)]
pub(super) struct Scheduler {
    lanes: FairLanes<Task>,
    /// Expected time of a step by cost class, learned from measured ones.
    expected_us: HashMap<u64, u64>,
    account: Account,
    steps: u64,
    faults: u64,
    step_times: [StepTimes; Bill::ALL.len()],
}

/// What came of a turn.
#[derive(Default)]
pub(super) struct Ran {
    /// Sessions that are over.
    pub(super) over: Vec<Finished>,
    /// The device failed: give all other sessions up and reset it.
    pub(super) fault: Option<DeviceFault>,
}

impl Scheduler {
    pub(super) fn admit(&mut self, task: Task) {
        self.lanes.push(task.cx.lane, task);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.iter().next().is_none()
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.iter().count()
    }

    /// Drops sessions that nobody wants, then runs one step of the session whose turn it is.
    pub(super) fn run_one(&mut self, device: &dyn Device) -> Ran {
        let unwanted = self.lanes.take_where(Task::is_unwanted);
        let mut over: Vec<_> = unwanted.into_iter().map(|task| self.end(task, StageError::Cancelled)).collect();
        let expected = &self.expected_us;
        let expect = |task: &Task| expected.get(&task.cost_class()).copied().unwrap_or(0);
        let Some(task) = self.lanes.next(expect) else { return Ran { over, fault: None } };
        if let Err(error) = task.cx.check_may_continue() {
            over.extend(self.lanes.pop().map(|task| self.end(task, error)));
            return Ran { over, fault: None };
        }
        let (class, stage) = (task.cost_class(), task.bill.index());
        let mut turn = Turn::More;
        let timed = device.timed(&mut || turn = task.step());
        let ns = timed.busy_ns;
        let paid_ms = self.account.step(&mut [(&mut task.carry, 1)], ns).into_iter().sum();
        task.cx.meter.add(task.bill.field, paid_ms);
        self.steps += 1;
        self.step_times[stage].record(ns);
        self.lanes.charge(ns / 1000);
        let noticed =
            matches!(turn, Turn::DeviceFailed).then(|| DeviceFault("an operation of a step told so".to_owned()));
        let fault = timed.fault.or(noticed);
        if fault.is_some() {
            over.extend(self.lanes.pop().map(|task| self.refund(task, true)));
            return Ran { over, fault };
        }
        self.learn(class, ns / 1000);
        if let Turn::Over = turn {
            over.extend(self.lanes.pop().map(|mut task| {
                let answer = task.finish();
                self.settle(task);
                answer
            }));
        }
        Ran { over, fault: None }
    }

    /// Ends every session with `error`.
    pub(super) fn fail_all(&mut self, error: &StageError) -> Vec<Finished> {
        let all = self.lanes.take_where(|_| true);
        all.into_iter().map(|task| self.end(task, error.clone())).collect()
    }

    /// Ends every session that is left, because the device has failed.
    pub(super) fn give_up_all(&mut self) -> Vec<Finished> {
        self.faults += 1;
        let all = self.lanes.take_where(|_| true);
        all.into_iter().map(|task| self.refund(task, false)).collect()
    }

    /// Ends a session that was never admitted: what it uses was lost with the device.
    pub(super) fn give_up(&mut self, task: Task) -> Finished {
        self.refund(task, false)
    }

    pub(super) fn stats(&self) -> QueueStats {
        let waiting = self.lanes.iter().filter(|task| task.done == 0).count();
        QueueStats {
            waiting,
            active: self.len() - waiting,
            busy_ms: self.account.busy_ms(),
            billed_ms: self.account.billed_ms,
            refunded_ms: self.account.refunded_ms,
            steps: self.steps,
            oldest_wait_ms: 0,
            expected_us: self.lanes.iter().map(|task| self.expected_us_of(task)).sum(),
            faults: self.faults,
            step_times: self.step_times,
        }
    }

    pub(super) fn oldest_waiting_ns(&self) -> Option<u64> {
        self.lanes.iter().filter(|task| task.done == 0).map(|task| task.submitted_ns).min()
    }

    /// The steps that are left, as if all were like the next one; 0 when its like was never seen.
    fn expected_us_of(&self, task: &Task) -> u64 {
        self.expected_us.get(&task.cost_class()).map_or(0, |us| us * u64::from(task.steps_left()))
    }

    fn end(&mut self, mut task: Task, error: StageError) -> Finished {
        let answer = task.fail(error);
        self.settle(task);
        answer
    }

    /// Bills what is left of the session's last millisecond; before its caller is told, so that the bill is complete.
    fn settle(&mut self, task: Task) {
        task.cx.meter.add(task.bill.field, self.account.close(task.carry));
    }

    /// Ends a session that the device has failed. Its job gets back all device time of this attempt, which was all spent
    /// here: a job stays on its device.
    fn refund(&mut self, mut task: Task, own_step: bool) -> Finished {
        let answer = task.fail(StageError::DeviceFailed { own_step });
        self.account.refund(task.carry, task.cx.meter.take_gpu_ms());
        answer
    }

    /// A moving average over about four steps: quick to follow, slow to jump.
    fn learn(&mut self, class: u64, us: u64) {
        if self.expected_us.len() >= COST_CLASSES_MAX && !self.expected_us.contains_key(&class) {
            self.expected_us.clear();
        }
        let expected = self.expected_us.entry(class).or_insert(us);
        *expected = (3 * *expected + us) / 4;
    }
}
