//! The job queue: what a job is, and the store that holds it.
//!
//! ```text
//! admit ──► queued ──claim──► running ──settle──► completed | failed
//!             ▲  └──cancel──────────────────────► failed (cancelled)
//!             ├──────recover───┤└──recover──────► failed (worker_lost, cancelled)
//!             └─────give_back──┘
//! ```
//!
//! A worker holds a running job by a lease. The lease's epoch is a fencing token: after the job went to another worker
//! or ended, the old holder's heartbeats and results are refused.

mod admission;
mod leases;
mod queries;
mod removal;
mod row;
mod sqlite;

use crate::error::ControlResult;
use crate::ledger::UsageSegment;
use async_trait::async_trait;
use pipeline::{Digest, JobId, JobSpec, Lane, ObjectKey, Stage, StoredVideo, TenantId};
use std::fmt;
use std::str::FromStr;
use tokio::sync::watch;

/// The `code` of a job that was cancelled.
pub const CODE_CANCELLED: &str = "cancelled";
/// The `code` of a job whose workers were all lost.
pub const CODE_WORKER_LOST: &str = "worker_lost";

/// The durable queue of jobs. One call is one transaction.
#[async_trait]
pub trait JobStore: Send + Sync {
    /// Checks the quotas, reserves and enqueues, or refuses and changes nothing.
    async fn admit(&self, admission: Admission) -> ControlResult<Admitted>;

    /// Hands out the next job under a new lease of `lease_ms`: that of the tenant with the fewest running jobs, among
    /// those the one served longest ago, its oldest first. None when nothing may run.
    async fn claim(&self, worker: &WorkerName, lease_ms: u64) -> ControlResult<Option<ClaimedJob>>;

    /// Says that the worker is alive and how far it is; the lease ends `lease_ms` from now.
    async fn heartbeat(
        &self,
        lease: &Lease,
        stage: Stage,
        progress_permille: u16,
        lease_ms: u64,
    ) -> ControlResult<Continue>;

    /// Finishes the job, appends `usage` to the ledger and ends the reservation. A second call is a `StaleLease`.
    async fn settle(&self, lease: &Lease, outcome: JobOutcome, usage: &[UsageSegment]) -> ControlResult<()>;

    /// Puts a running job back into the queue: its run came to nothing through no fault of the job, and is not billed. With
    /// `counts` the run is one of its `attempts_max`; otherwise it is as if it had never begun. [`GivenBack::Refused`] when
    /// no attempt is left or the job was cancelled: it is still the caller's, to be settled.
    async fn give_back(&self, lease: &Lease, counts: bool) -> ControlResult<GivenBack>;

    /// Ends a waiting job at once and asks a running one to stop. A finished job stays as it is.
    async fn cancel(&self, tenant: &TenantId, id: &JobId) -> ControlResult<JobRecord>;

    /// Takes back the jobs whose lease has run out and, given a name, those that a worker of that name held: queued
    /// again, or failed after `attempts_max` runs. At a process's start the name is its own; later there is none.
    async fn recover(&self, worker: Option<&WorkerName>) -> ControlResult<Recovered>;

    /// A job; none for another tenant's.
    async fn get(&self, tenant: &TenantId, id: &JobId) -> ControlResult<Option<JobRecord>>;

    /// A page of a tenant's jobs by age. An unknown `after` is `NotFound`.
    async fn list(&self, tenant: &TenantId, page: &PageRequest) -> ControlResult<JobPage>;

    /// Forgets a finished job. Returns the objects that no other job needs, to be removed from the object store.
    async fn delete(&self, tenant: &TenantId, id: &JobId) -> ControlResult<Vec<ObjectKey>>;

    /// Forgets up to `limit` jobs whose time to be kept is over, and idempotency keys likewise. Returns objects as
    /// `delete` does.
    async fn expire(&self, limit: u32) -> ControlResult<Vec<ObjectKey>>;

    /// How full the queue is.
    async fn queue_stats(&self) -> ControlResult<QueueStats>;

    /// Changes whenever a job was enqueued or ended in this process. A hint: other processes do not show here.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// What is to be admitted.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Who asks and pays.
    pub tenant: TenantId,
    /// What is to be made.
    pub spec: JobSpec,
    /// Device milliseconds set aside; the job's budget.
    pub reserve_gpu_ms: u64,
    /// Bytes of the pictures that came with the request, already stored.
    pub input_bytes: u64,
    /// The finished job that this one varies.
    pub remixed_from: Option<JobId>,
    /// Makes a repeated request the same job.
    pub idempotency: Option<Idempotency>,
}

/// A client's idempotency key and what it was sent with.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The key, scoped to a route by the caller and to the tenant by the store.
    pub key: String,
    /// SHA-256 of the request.
    pub body: Digest,
}

/// An admitted job.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// The job.
    pub job: JobRecord,
    /// Whether an earlier request with the same idempotency key made it.
    pub replayed: bool,
}

/// Who runs jobs: one name for each process, kept over its restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerName(String);

impl WorkerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkerName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let valid = (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err("a worker name is 1-128 visible ASCII characters".to_owned())
        }
    }
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The right to run a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The job.
    pub job: JobId,
    /// The fencing token.
    pub epoch: u64,
    /// Which run this is, from 1.
    pub attempt: u32,
}

/// A job to run.
#[derive(Debug, Clone)]
pub struct ClaimedJob {
    /// The right to run it.
    pub lease: Lease,
    /// Whose it is.
    pub tenant: TenantId,
    /// The tenant's lane in the device queue.
    pub lane: Lane,
    /// What to make.
    pub spec: JobSpec,
    /// Device milliseconds that it may use.
    pub reserved_gpu_ms: u64,
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Continue {
    /// Go on.
    Yes,
    /// Someone cancelled the job: stop and settle it as failed with [`CODE_CANCELLED`].
    Cancelled,
}

/// What became of a job that was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum GivenBack {
    /// It waits again.
    Queued,
    /// It still runs: settle it.
    Refused,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub enum JobOutcome {
    /// With a video.
    Completed(StoredVideo),
    /// Without one.
    Failed(JobFailure),
}

/// Why there is no video.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFailure {
    /// Machine-readable: a `StageError::code`, or one of this module's.
    pub code: String,
    /// For the tenant.
    pub message: String,
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// It waits.
    Queued,
    /// A worker runs it.
    Running,
    /// Its video is there.
    Completed(StoredVideo),
    /// There will be no video. A cancelled job is one that failed with [`CODE_CANCELLED`].
    Failed(JobFailure),
}

impl JobState {
    /// Whether it will not change any more.
    pub fn is_finished(&self) -> bool {
        matches!(self, Self::Completed(_) | Self::Failed(_))
    }
}

/// A job as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    /// Its name.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Where it stands.
    pub state: JobState,
    /// What is to be made.
    pub spec: JobSpec,
    /// The job that it varies.
    pub remixed_from: Option<JobId>,
    /// The stage that it has reached.
    pub stage: Stage,
    /// How far it is in all, 0 to 1000.
    pub progress_permille: u16,
    /// Runs started so far, without those that were given back and do not count.
    pub attempt: u32,
    /// Device milliseconds set aside for it.
    pub reserved_gpu_ms: u64,
    /// Whether it was asked to stop.
    pub cancel_requested: bool,
    /// When it was admitted.
    pub created_ms: u64,
    /// When its first run began.
    pub started_ms: Option<u64>,
    /// When it completed or failed.
    pub completed_ms: Option<u64>,
    /// When it and its files will be removed.
    pub expires_ms: Option<u64>,
}

/// Which way a list runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListOrder {
    /// Oldest first.
    Ascending,
    /// Newest first.
    #[default]
    Descending,
}

/// Which part of a list.
#[derive(Debug, Clone)]
pub struct PageRequest {
    /// The last job of the page before.
    pub after: Option<JobId>,
    /// Most jobs on the page.
    pub limit: u32,
    /// Which way.
    pub order: ListOrder,
}

/// A page of jobs.
#[derive(Debug, Clone)]
pub struct JobPage {
    /// The jobs.
    pub jobs: Vec<JobRecord>,
    /// Whether there are more.
    pub has_more: bool,
}

/// What `recover` took back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Waiting again.
    pub requeued: Vec<JobId>,
    /// Given up: out of attempts, or cancelled before.
    pub failed: Vec<JobId>,
}

/// How full the queue is, over all tenants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Jobs that wait.
    pub queued: u64,
    /// Jobs that run.
    pub running: u64,
    /// Jobs that have their video.
    pub completed: u64,
    /// Jobs without one.
    pub failed: u64,
    /// How long the oldest waiting job has waited.
    pub oldest_queued_age_ms: u64,
    /// Device milliseconds reserved by unfinished jobs.
    pub reserved_gpu_ms: u64,
    /// Device milliseconds on the ledger.
    pub recorded_gpu_ms: u64,
}
