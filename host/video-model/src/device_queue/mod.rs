//! The queue that owns the device.
//!
//! One OS thread runs all model code. Callers hand it sessions, each a sequence of steps, and await the outcome. Between
//! any two steps the thread picks whose turn it is (`fair`), so a lane with a hundred sessions does not hold up a lane
//! with one. Each step is measured and billed to its session (`bill`); cancellation and the job's budget are read
//! before each step. There is no lock around a model and no thread per job. The steps' tensors come from one arena, which
//! gives its memory back when there is nothing left to do.

mod bill;
mod fair;
mod scheduler;
mod session;
#[cfg(test)]
mod tests;

pub use session::{Bill, Session};

use kernels::Arena;
use pipeline::{StageContext, StageError, StageResult};
use rayon::{ThreadPool, ThreadPoolBuilder};
use scheduler::Scheduler;
use session::{Task, outcome_of, task};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Monotonic time in nanoseconds; its zero means nothing.
pub trait Ticks: Send + Sync {
    /// The time now.
    fn now_ns(&self) -> u64;
}

/// Monotonic time of the operating system, since this value was made.
#[derive(Debug)]
pub struct SystemTicks(Instant);

impl Default for SystemTicks {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Ticks for SystemTicks {
    fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// What a queue is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Sessions that may wait or run; one more is refused.
    pub sessions_max: usize,
    /// Threads of the pool that steps run on.
    pub threads: usize,
}

/// How the queue stands, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Sessions that have not run a step yet.
    pub waiting: usize,
    /// Sessions between their first and last step.
    pub active: usize,
    /// Device time of all steps so far.
    pub busy_ms: u64,
    /// Of `busy_ms`, what was billed to sessions; equal to it whenever nothing is active.
    pub billed_ms: u64,
    /// Steps run so far.
    pub steps: u64,
    /// For how long the oldest waiting session has waited.
    pub oldest_wait_ms: u64,
}

struct Inbox {
    arrived: Vec<Task>,
    /// Sessions submitted and not finished, arrived ones included.
    held: usize,
    closed: bool,
    stats: QueueStats,
    /// Submission time of the oldest session that has not run a step, as of the last step.
    oldest_ns: Option<u64>,
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

/// A handle to the device's thread. Dropping it ends the thread after the step that is running; sessions that were not
/// finished fail with `Unavailable`.
pub struct DeviceQueue {
    shared: Arc<Shared>,
    arena: Arena,
    thread: Option<JoinHandle<()>>,
}

impl DeviceQueue {
    /// Starts the thread.
    pub fn start(limits: QueueLimits) -> StageResult<Self> {
        Self::with_ticks(limits, Arc::new(SystemTicks::default()))
    }

    /// The same with another source of time, for simulation.
    pub fn with_ticks(limits: QueueLimits, ticks: Arc<dyn Ticks>) -> StageResult<Self> {
        let failed = |e: &dyn std::error::Error| StageError::Internal(format!("the device thread did not start: {e}"));
        let name = |i| format!("device-{i}");
        let pool =
            ThreadPoolBuilder::new().num_threads(limits.threads).thread_name(name).build().map_err(|e| failed(&e))?;
        let inbox =
            Inbox { arrived: Vec::new(), held: 0, closed: false, stats: QueueStats::default(), oldest_ns: None };
        let (wake, sessions_max) = (Condvar::new(), limits.sessions_max);
        let shared = Arc::new(Shared { inbox: Mutex::new(inbox), wake, ticks, sessions_max });
        let arena = Arena::new();
        let (for_thread, arena_of_thread) = (Arc::clone(&shared), arena.clone());
        let thread = std::thread::Builder::new()
            .name("device-queue".to_owned())
            .spawn(move || serve(&for_thread, &pool, &arena_of_thread))
            .map_err(|e| failed(&e))?;
        Ok(Self { shared, arena, thread: Some(thread) })
    }

    /// Runs `session` to its end, sharing the device with all others. Full queue: `Unavailable`, at once.
    ///
    /// Whoever drops this future gives the session up: it ends before its next step and only the steps it ran are
    /// billed. (A job's worker holds the future, not the client, so a client that hangs up stops nothing.)
    pub async fn run<S: Session>(&self, cx: &StageContext, bill: Bill, session: S) -> StageResult<S::Output> {
        let (task, receiver) = task(cx.clone(), bill, session, self.shared.ticks.now_ns());
        self.submit(task)?;
        outcome_of(receiver).await
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

    /// Where the steps' tensors come from.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    fn submit(&self, task: Task) -> StageResult<()> {
        let mut inbox = self.shared.lock();
        if inbox.closed {
            return Err(shutting_down());
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

/// The device thread: takes what arrived, runs one step, tells how it stands, until the queue is closed.
fn serve(shared: &Shared, pool: &ThreadPool, arena: &Arena) {
    let mut scheduler = Scheduler::new(Arc::clone(&shared.ticks));
    while let Some(arrived) = next_arrivals(shared, scheduler.is_empty(), arena) {
        arrived.into_iter().for_each(|task| scheduler.admit(task));
        let finished = scheduler.run_one(|step| pool.install(|| arena.scope(step)));
        publish(shared, &scheduler);
        // After the counters, so that whoever gets the answer also sees them.
        finished.into_iter().for_each(session::Finished::answer);
    }
    let arrived = std::mem::take(&mut shared.lock().arrived);
    arrived.into_iter().for_each(|task| scheduler.admit(task));
    scheduler.fail_all(&shutting_down()).into_iter().for_each(session::Finished::answer);
}

/// What was submitted since the last call; waits for something when `idle`. `None` once the queue is closed.
fn next_arrivals(shared: &Shared, idle: bool, arena: &Arena) -> Option<Vec<Task>> {
    if idle {
        arena.trim();
    }
    let mut inbox = shared.lock();
    while idle && inbox.arrived.is_empty() && !inbox.closed {
        inbox = shared.wake.wait(inbox).unwrap_or_else(PoisonError::into_inner);
    }
    if inbox.closed { None } else { Some(std::mem::take(&mut inbox.arrived)) }
}

fn publish(shared: &Shared, scheduler: &Scheduler) {
    let mut inbox = shared.lock();
    inbox.stats = scheduler.stats();
    inbox.oldest_ns = scheduler.oldest_waiting_ns();
    inbox.held = scheduler.len() + inbox.arrived.len();
}
