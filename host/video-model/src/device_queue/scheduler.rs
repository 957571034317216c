//! The device thread's own state: which sessions there are, what they cost, what was billed. No threads, no locks.

use super::bill::Account;
use super::fair::FairLanes;
use super::session::{Finished, Task, Turn};
use super::{QueueStats, Ticks};
use pipeline::StageError;
use std::collections::HashMap;
use std::sync::Arc;

/// Classes of cost remembered; when there are more, all are learnt anew.
const COST_CLASSES_MAX: usize = 1024;

pub(super) struct Scheduler {
    lanes: FairLanes<Task>,
    /// Expected time of a step by cost class, learned from measured ones.
    expected_us: HashMap<u64, u64>,
    account: Account,
    steps: u64,
    ticks: Arc<dyn Ticks>,
}

impl Scheduler {
    pub(super) fn new(ticks: Arc<dyn Ticks>) -> Self {
        let (lanes, account) = (FairLanes::default(), Account::default());
        Self { lanes, expected_us: HashMap::new(), account, steps: 0, ticks }
    }

    pub(super) fn admit(&mut self, task: Task) {
        self.lanes.push(task.cx.lane, task);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.iter().next().is_none()
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.iter().count()
    }

    /// Drops sessions that nobody wants, then runs one step of the session whose turn it is. `on_device` is where the
    /// step runs. Returns the sessions that are over.
    pub(super) fn run_one(&mut self, on_device: impl Fn(&mut (dyn FnMut() + Send))) -> Vec<Finished> {
        let unwanted = self.lanes.take_where(Task::is_unwanted);
        let mut finished: Vec<_> = unwanted.into_iter().map(|task| self.end(task, StageError::Cancelled)).collect();
        let expected = &self.expected_us;
        let expect = |task: &Task| expected.get(&task.cost_class()).copied().unwrap_or(0);
        let Some(task) = self.lanes.next(expect) else { return finished };
        if let Err(error) = task.cx.check_may_continue() {
            finished.extend(self.lanes.pop().map(|task| self.end(task, error)));
            return finished;
        }
        let class = task.cost_class();
        let started_ns = self.ticks.now_ns();
        let mut turn = Turn::More;
        on_device(&mut || turn = task.step());
        let ns = self.ticks.now_ns().saturating_sub(started_ns);
        task.cx.meter.add(task.bill.field, self.account.step(&mut task.carry, ns));
        self.steps += 1;
        self.lanes.charge(ns / 1000);
        self.learn(class, ns / 1000);
        if let Turn::Over(answer) = turn {
            if let Some(task) = self.lanes.pop() {
                self.settle(task);
            }
            finished.push(answer);
        }
        finished
    }

    /// Ends every session with `error`.
    pub(super) fn fail_all(&mut self, error: &StageError) -> Vec<Finished> {
        let all = self.lanes.take_where(|_| true);
        all.into_iter().map(|task| self.end(task, error.clone())).collect()
    }

    pub(super) fn stats(&self) -> QueueStats {
        let waiting = self.lanes.iter().filter(|task| task.done == 0).count();
        QueueStats {
            waiting,
            active: self.len() - waiting,
            busy_ms: self.account.busy_ms(),
            billed_ms: self.account.billed_ms,
            steps: self.steps,
            oldest_wait_ms: 0,
        }
    }

    pub(super) fn oldest_waiting_ns(&self) -> Option<u64> {
        self.lanes.iter().filter(|task| task.done == 0).map(|task| task.submitted_ns).min()
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

    /// A moving average over about four steps: quick to follow, slow to jump.
    fn learn(&mut self, class: u64, us: u64) {
        if self.expected_us.len() >= COST_CLASSES_MAX && !self.expected_us.contains_key(&class) {
            self.expected_us.clear();
        }
        let expected = self.expected_us.entry(class).or_insert(us);
        *expected = (3 * *expected + us) / 4;
    }
}
