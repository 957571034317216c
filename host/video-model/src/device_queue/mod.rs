//! The queue that owns a device.
//!
//! One OS thread runs all model code of its device. Callers hand it sessions, each a sequence of steps, and await the
//! outcome. Between any two steps the thread picks whose turn it is (`fair`), so a lane with a hundred sessions does not hold
//! up a lane with one. Each step is measured by the device and billed to its session (`bill`); cancellation and the job's
//! budget are read before each step. There is no lock around a model and no thread per job.
//!
//! A device that fails takes everything in its memory with it. Its sessions end, their jobs get all device time of the
//! attempt back, the device is reset, and a new *life* of it begins. What was made in an earlier life is never used in a later one.

mod bill;
mod fair;
mod scheduler;
mod session;
mod share;
mod stats;
#[cfg(test)]
mod tests;

pub use session::{Bill, Session};
pub use stats::{QueueStats, STEP_MS, StepTimes};

use crate::devices::{Device, SystemTicks, Ticks};
use pipeline::{StageContext, StageError, StageResult};
use scheduler::{Ran, Scheduler};
use session::{Finished, Task, outcome_of, task};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Counts the resets of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Life(u64);

struct Inbox {
    arrived: Vec<Task>,
    /// Sessions submitted and not finished, arrived ones included.
    held: usize,
    closed: bool,
    stats: QueueStats,
    /// Submission time of the oldest session that has not run a step, as of the last step.
    oldest_ns: Option<u64>,
    life: Life,
    /// The device could not be reset: it takes no work any more.
    is_out_of_order: bool,
}

struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    ticks: Arc<dyn Ticks>,
    sessions_max: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // Nothing that can panic runs under the lock; were it poisoned all the same, its counters are still sound.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle to a device's thread. Dropping it ends the thread after the step that is running; sessions that were not
/// finished fail with `Unavailable`.
pub struct DeviceQueue {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread works with.
struct Worker {
    shared: Arc<Shared>,
    device: Arc<dyn Device>,
    after_reset: Box<dyn Fn() + Send>,
    scheduler: Scheduler,
}

impl DeviceQueue {
    /// Starts the thread. At most `sessions_max` sessions may wait or run; one more is refused. `after_reset` drops what was
    /// kept in the device's memory, and returns when nothing more of it can be handed out.
    pub fn start(
        device: Arc<dyn Device>,
        sessions_max: usize,
        after_reset: impl Fn() + Send + 'static,
    ) -> StageResult<Self> {
        Self::with_ticks(device, sessions_max, after_reset, Arc::new(SystemTicks::default()))
    }

    /// The same with another source of time for how long sessions wait, for simulation.
    pub fn with_ticks(
        device: Arc<dyn Device>,
        sessions_max: usize,
        after_reset: impl Fn() + Send + 'static,
        ticks: Arc<dyn Ticks>,
    ) -> StageResult<Self> {
        let inbox = Inbox {
            arrived: Vec::new(),
            held: 0,
            closed: false,
            stats: QueueStats::default(),
            oldest_ns: None,
            life: Life::default(),
            is_out_of_order: false,
        };
        let shared = Arc::new(Shared { inbox: Mutex::new(inbox), wake: Condvar::new(), ticks, sessions_max });
        let name = format!("queue-{}", device.id());
        let after_reset = Box::new(after_reset);
        let worker = Worker { shared: Arc::clone(&shared), device, after_reset, scheduler: Scheduler::default() };
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || worker.serve())
            .map_err(|e| StageError::Internal(format!("the device thread did not start: {e}")))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Runs `session` to its end, sharing the device with all others. Full queue: `Unavailable`, at once. `life` is that in
    /// which everything that the session uses of the device was made: in another one it fails without a step.
    ///
    /// Whoever drops this future gives the session up: it ends before its next step and only the steps it ran are
    /// billed. (A job's worker holds the future, not the client, so a client that hangs up stops nothing.)
    pub async fn run<S: Session>(
        &self,
        cx: &StageContext,
        life: Life,
        bill: Bill,
        session: S,
    ) -> StageResult<S::Output> {
        let (task, receiver) = task(cx.clone(), life, bill, session, self.shared.ticks.now_ns());
        self.submit(task)?;
        outcome_of(receiver).await
    }

    /// The life of the device that it is in. Ask before anything is made on the device.
    pub fn life(&self) -> Life {
        self.shared.lock().life
    }

    /// Whether the device takes no work any more.
    pub fn is_out_of_order(&self) -> bool {
        self.shared.lock().is_out_of_order
    }

    /// The queue's counters.
    pub fn stats(&self) -> QueueStats {
        let now = self.shared.ticks.now_ns();
        let inbox = self.shared.lock();
        let oldest = inbox.arrived.iter().map(|task| task.submitted_ns).chain(inbox.oldest_ns).min();
        let oldest_wait_ms = oldest.map_or(0, |since| now.saturating_sub(since) / 1_000_000);
        let waiting = inbox.stats.waiting + inbox.arrived.len();
        QueueStats { waiting, oldest_wait_ms, ..inbox.stats }
    }

    fn submit(&self, task: Task) -> StageResult<()> {
        let mut inbox = self.shared.lock();
        if inbox.closed {
            return Err(shutting_down());
        }
        if inbox.is_out_of_order {
            return Err(StageError::Unavailable("the device is out of order".to_owned()));
        }
        if inbox.held >= self.shared.sessions_max {
            let message = format!("the device queue is full ({} sessions); try again later", inbox.held);
            return Err(StageError::Unavailable(message));
        }
        inbox.held += 1;
        inbox.arrived.push(task);
        drop(inbox);
        self.shared.wake.notify_one();
        Ok(())
    }
}

impl Drop for DeviceQueue {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // The thread catches every panic of a session; there is nothing to learn from its result.
            let _ = thread.join();
        }
    }
}

fn shutting_down() -> StageError {
    StageError::Unavailable("the engine is shutting down; try again".to_owned())
}

impl Worker {
    /// The device thread: takes what arrived, runs one step, tells how it stands, until the queue is closed.
    fn serve(mut self) {
        while let Some((arrived, life)) = self.next_arrivals() {
            let mut finished = self.admit(arrived, life);
            let Ran { over, fault } = self.scheduler.run_one(&*self.device);
            // A session that is over has dropped its tensors by now.
            let fault = fault.or_else(|| if over.is_empty() { None } else { self.device.scrub().err() });
            finished.extend(over);
            if let Some(fault) = fault {
                tracing::error!(device = %self.device.id(), %fault, "the device failed; it is reset and its jobs run again");
                finished.extend(self.recover());
            }
            self.publish();
            // After the counters, so that whoever gets the answer also sees them.
            finished.into_iter().for_each(Finished::answer);
        }
        let (arrived, life) = self.take_arrived();
        let mut finished = self.admit(arrived, life);
        finished.extend(self.scheduler.fail_all(&shutting_down()));
        finished.into_iter().for_each(Finished::answer);
    }

    /// What was submitted since the last call; waits for something when idle. `None` once the queue is closed.
    fn next_arrivals(&self) -> Option<(Vec<Task>, Life)> {
        let idle = self.scheduler.is_empty();
        if idle {
            self.device.trim();
        }
        let mut inbox = self.shared.lock();
        while idle && inbox.arrived.is_empty() && !inbox.closed {
            inbox = self.shared.wake.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
        if inbox.closed { None } else { Some((std::mem::take(&mut inbox.arrived), inbox.life)) }
    }

    fn take_arrived(&self) -> (Vec<Task>, Life) {
        let mut inbox = self.shared.lock();
        (std::mem::take(&mut inbox.arrived), inbox.life)
    }

    /// Takes tasks up, except those that use what an earlier life of the device has left: they are over.
    fn admit(&mut self, arrived: Vec<Task>, life: Life) -> Vec<Finished> {
        let (alive, dead): (Vec<_>, Vec<_>) = arrived.into_iter().partition(|task| task.life == life);
        alive.into_iter().for_each(|task| self.scheduler.admit(task));
        dead.into_iter().map(|task| self.scheduler.give_up(task)).collect()
    }

    /// After a fault: ends all sessions, resets the device and begins a new life of it.
    fn recover(&mut self) -> Vec<Finished> {
        let finished = self.scheduler.give_up_all();
        let reset = self.device.reset();
        if let Err(fault) = &reset {
            tracing::error!(device = %self.device.id(), %fault, "the device cannot be reset; it takes no more work");
        }
        (self.after_reset)();
        let mut inbox = self.shared.lock();
        inbox.life.0 += 1;
        inbox.is_out_of_order = reset.is_err();
        finished
    }

    fn publish(&self) {
        let mut inbox = self.shared.lock();
        inbox.stats = self.scheduler.stats();
        inbox.oldest_ns = self.scheduler.oldest_waiting_ns();
        inbox.held = self.scheduler.len() + inbox.arrived.len();
    }
}
