//! Why the control plane refused. `Display` is for whoever asked, except for the last three variants.

use pipeline::JobId;
use std::fmt;
use thiserror::Error;

/// The outcome of a call.
pub type ControlResult<T> = Result<T, ControlError>;

/// A quota that can run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaKind {
    /// Device milliseconds in one UTC day: used and reserved.
    GpuMsPerDay,
    /// Jobs that wait.
    JobsQueued,
    /// Bytes of results, given pictures and components.
    StoredBytes,
}

impl QuotaKind {
    /// The quota's name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GpuMsPerDay => "gpu_ms_per_day",
            Self::JobsQueued => "jobs_queued_max",
            Self::StoredBytes => "stored_bytes_max",
        }
    }
}

impl fmt::Display for QuotaKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A refused or failed call.
#[derive(Debug, Error)]
pub enum ControlError {
    /// There is no such thing, or it is another tenant's: the two look the same.
    #[error("there is no {kind} `{id}`")]
    NotFound {
        /// `job`, `function`, `tenant` or `API key`.
        kind: &'static str,
        /// The identifier that was asked for.
        id: String,
    },
    /// The identifier is taken.
    #[error("the {kind} `{id}` exists already")]
    AlreadyExists {
        /// What it is.
        kind: &'static str,
        /// The identifier.
        id: String,
    },
    /// Admission would go over a quota. Nothing was enqueued and nothing is billed.
    #[error("over the quota {which}: {limit} allowed, {used} in use, {asked} asked for")]
    QuotaExceeded {
        /// The quota.
        which: QuotaKind,
        /// Its limit.
        limit: u64,
        /// In use or reserved.
        used: u64,
        /// What this request needs on top.
        asked: u64,
        /// When to try again; none when waiting does not help.
        retry_after_ms: Option<u64>,
    },
    /// The idempotency key was used before, for another request.
    #[error("the idempotency key was used for a different request; use a new key")]
    IdempotencyMismatch,
    /// Only finished jobs can be deleted.
    #[error("the job `{0}` has not finished; cancel it first")]
    NotFinished(JobId),
    /// The worker no longer holds the job: it was given to another, requeued or ended. Its result must be dropped.
    #[error("the lease {epoch} of job `{job}` is no longer valid")]
    StaleLease {
        /// The job.
        job: JobId,
        /// The epoch that the worker holds.
        epoch: u64,
    },
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// The database could not be brought to this program's schema.
    #[error("the database's schema could not be brought up to date")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A stored value cannot be read: written by a newer version, or damaged.
    #[error("the stored {what} cannot be read: {reason}")]
    Corrupt {
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl ControlError {
    pub(crate) fn not_found(kind: &'static str, id: impl fmt::Display) -> Self {
        Self::NotFound { kind, id: id.to_string() }
    }

    pub(crate) fn corrupt(what: &'static str, reason: impl fmt::Display) -> Self {
        Self::Corrupt { what, reason: reason.to_string() }
    }
}
