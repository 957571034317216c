//! Who, how much, which function, what it cost: tenants, API keys, quotas, functions, the job queue and the ledger.
//!
//! [`SqliteStore`] is the one handle. Every decision that must not be torn apart is one transaction: admission checks
//! the quotas, reserves and enqueues; settlement finishes the job, appends to the ledger and so ends the reservation.
//! There are no pixels here, no HTTP, and no component's bytes: those are objects, known here by digest.

mod api_keys;
mod error;
mod functions;
pub mod jobs;
mod ledger;
mod quota;
mod store;
mod tenants;

pub use api_keys::{ApiKey, ApiKeyId, ApiKeySecret, Principal, Role};
pub use error::{ControlError, ControlResult, QuotaKind};
pub use functions::{FunctionKind, FunctionVersion, Published};
pub use jobs::{
    Admission, Admitted, ClaimedJob, Continue, GivenBack, Idempotency, JobFailure, JobOutcome, JobPage, JobRecord,
    JobState, JobStore, Lease, ListOrder, PageRequest, QueueStats, Recovered, WorkerName,
};
pub use ledger::{UsageFilter, UsageGroup, UsagePage, UsageRecord, UsageSegment, UsageTotal};
pub use store::{SqliteStore, StoreConfig};
pub use tenants::{Quotas, Tenant};
