//! Work as the device thread sees it.

use super::Life;
use super::bill::Carry;
use futures::channel::oneshot;
use pipeline::{Stage, StageContext, StageError, StageResult, UsageField};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A piece of a job that the device runs step by step.
pub trait Session: Send + 'static {
    /// What it makes.
    type Output: Send + 'static;

    /// How many steps it takes in all; fixed from the start.
    fn steps(&self) -> u32;

    /// Names sessions whose steps cost about the same; past ones tell the queue what to expect of this one.
    fn cost_class(&self) -> u64;

    /// Runs the next step, on the device's pool. The last one returns the output. Not called again after an error;
    /// `DeviceFailed` says that the device must be reset.
    fn step(&mut self) -> StageResult<Option<Self::Output>>;
}

/// Where a session's time goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bill {
    /// The stage that progress is reported for.
    pub stage: Stage,
    /// The counter that pays.
    pub field: UsageField,
}

impl Bill {
    /// Text and image encoders.
    pub const CONDITION: Self = Self { stage: Stage::Condition, field: UsageField::ConditionGpuMs };
    /// Denoising and decoding.
    pub const DIFFUSE: Self = Self { stage: Stage::Diffuse, field: UsageField::DiffuseGpuMs };
    /// Frames between key frames.
    pub const INTERPOLATE: Self = Self { stage: Stage::Interpolate, field: UsageField::InterpolateGpuMs };
    /// All of them, in the order of a job's stages.
    pub const ALL: [Self; 3] = [Self::CONDITION, Self::DIFFUSE, Self::INTERPOLATE];

    /// Its place in [`Bill::ALL`]; a stage that is not among them counts as diffusion.
    pub(super) fn index(self) -> usize {
        Self::ALL.iter().position(|bill| *bill == self).unwrap_or(1)
    }
}

/// Whether a session goes on.
pub(super) enum Turn {
    More,
    /// It has an outcome, which [`Task::finish`] tells.
    Over,
    /// The device failed under it.
    DeviceFailed,
}

/// A session that is over and whose caller does not know yet.
pub(super) struct Finished(Box<dyn FnOnce() + Send>);

impl Finished {
    /// Tells the caller; nothing happens when nobody listens any more.
    pub(super) fn answer(self) {
        (self.0)();
    }
}

/// A session with its output type erased.
pub(super) struct Task {
    pub(super) cx: StageContext,
    /// That of the device when what the session uses was made.
    pub(super) life: Life,
    pub(super) bill: Bill,
    pub(super) submitted_ns: u64,
    pub(super) carry: Carry,
    pub(super) done: u32,
    work: Box<dyn Work>,
}

trait Work: Send {
    fn steps(&self) -> u32;
    fn cost_class(&self) -> u64;
    fn is_abandoned(&self) -> bool;
    fn step(&mut self, report: &dyn Fn()) -> Turn;
    /// Ends the session with `error`, or else with the outcome of its last step.
    fn end(&mut self, error: Option<StageError>) -> Finished;
}

struct Typed<S: Session> {
    /// Gone once the session is over, so that its memory is free before its caller goes on.
    session: Option<S>,
    outcome: Option<StageResult<S::Output>>,
    reply: Option<oneshot::Sender<StageResult<S::Output>>>,
}

/// A task and the other end of its reply.
pub(super) fn task<S: Session>(
    cx: StageContext,
    life: Life,
    bill: Bill,
    session: S,
    submitted_ns: u64,
) -> (Task, oneshot::Receiver<StageResult<S::Output>>) {
    let (reply, receiver) = oneshot::channel();
    let work = Box::new(Typed { session: Some(session), outcome: None, reply: Some(reply) });
    (Task { cx, life, bill, submitted_ns, carry: Carry::default(), done: 0, work }, receiver)
}

/// Waits for a session's outcome.
pub(super) async fn outcome_of<T>(receiver: oneshot::Receiver<StageResult<T>>) -> StageResult<T> {
    receiver.await.unwrap_or_else(|_| Err(StageError::Internal("the device thread dropped a session".to_owned())))
}

impl Task {
    pub(super) fn cost_class(&self) -> u64 {
        self.work.cost_class()
    }

    /// Whether nobody wants the outcome: the job was cancelled, or its future dropped.
    pub(super) fn is_unwanted(&self) -> bool {
        self.cx.cancel.is_cancelled() || self.work.is_abandoned()
    }

    /// Runs one step and reports progress; a panic in either ends this session and no other.
    pub(super) fn step(&mut self) -> Turn {
        let (cx, stage, done) = (&self.cx, self.bill.stage, self.done + 1);
        let total = self.work.steps();
        let turn = self.work.step(&|| cx.progress.report(stage, done, total));
        self.done += 1;
        turn
    }

    pub(super) fn steps_left(&self) -> u32 {
        self.work.steps().saturating_sub(self.done)
    }

    /// Ends the session with what its last step made of it.
    pub(super) fn finish(&mut self) -> Finished {
        self.work.end(None)
    }

    pub(super) fn fail(&mut self, error: StageError) -> Finished {
        self.work.end(Some(error))
    }
}

impl<S: Session> Work for Typed<S> {
    fn steps(&self) -> u32 {
        self.session.as_ref().map_or(0, Session::steps)
    }

    fn cost_class(&self) -> u64 {
        self.session.as_ref().map_or(0, Session::cost_class)
    }

    fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_canceled)
    }

    fn step(&mut self, report: &dyn Fn()) -> Turn {
        let Some(session) = &mut self.session else { return Turn::Over };
        // A session that panicked is never touched again except to drop it, so no broken state can be seen.
        let result = catch_unwind(AssertUnwindSafe(|| {
            let outcome = session.step();
            if outcome.is_ok() {
                report();
            }
            outcome
        }));
        let outcome = match result {
            Ok(Ok(None)) => return Turn::More,
            Ok(Err(StageError::DeviceFailed { .. })) => return Turn::DeviceFailed,
            Ok(Ok(Some(output))) => Ok(output),
            Ok(Err(error)) => Err(error),
            Err(panic) => Err(panicked(&*panic)),
        };
        self.outcome = Some(outcome);
        Turn::Over
    }

    fn end(&mut self, error: Option<StageError>) -> Finished {
        self.session = None;
        let lost = || Err(StageError::Internal("a session ended without an outcome".to_owned()));
        let outcome = match (error, self.outcome.take()) {
            (Some(error), _) => Err(error),
            (None, outcome) => outcome.unwrap_or_else(lost),
        };
        let reply = self.reply.take();
        Finished(Box::new(move || {
            if let Some(reply) = reply {
                // The caller may have gone; then there is nobody to tell.
                let _ = reply.send(outcome);
            }
        }))
    }
}

fn panicked(panic: &(dyn Any + Send)) -> StageError {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    StageError::Internal(format!("a device step panicked: {}", text.unwrap_or("no message")))
}
