//! Why a stage did not return its output. The same cases as the `error` variant of the WIT package, plus the one that
//! only the host can see: a tenant's component that broke.

use thiserror::Error;

/// The outcome of a stage.
pub type StageResult<T> = Result<T, StageError>;

/// One failed stage. `Display` is for the tenant: it says what to do and never carries host internals.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StageError {
    /// The caller asked for something impossible; `field` names the request field.
    #[error("{field}: {message}")]
    InvalidArgument {
        /// The request field at fault, in the API's spelling.
        field: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
    /// The component asked for something that its grants do not cover.
    #[error("not granted: {0}")]
    Denied(String),
    /// The job's device budget is used up; what was used stays billed.
    #[error("the job's budget of {budget_ms} GPU ms is used up; ask for fewer steps or frames, or raise the quota")]
    BudgetExhausted {
        /// The budget that ran out, in device milliseconds.
        budget_ms: u64,
    },
    /// Someone asked the job to stop.
    #[error("the job was cancelled")]
    Cancelled,
    /// A part that the job needs cannot serve at the moment; the same request may work later.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The device failed under the job. Its device time is given back, and the job may run again.
    #[error("the device failed while the job ran on it; nothing is billed for its device time")]
    DeviceFailed {
        /// Whether it failed in a step of this job, rather than in another's.
        own_step: bool,
    },
    /// A tenant's component trapped, overran a limit or broke its contract.
    #[error("function `{function}` failed: {message}")]
    Function {
        /// The function's name.
        function: String,
        /// What it did, and the limit that stopped it if one did.
        message: String,
    },
    /// The host's own fault. The message is for the operator's log.
    #[error("internal error: {0}")]
    Internal(String),
}

impl StageError {
    /// An `InvalidArgument` for `field`.
    pub fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self::InvalidArgument { field, message: message.into() }
    }

    /// A stable machine-readable code, used in job records and API errors.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidArgument { .. } => "invalid_argument",
            Self::Denied(_) => "denied",
            Self::BudgetExhausted { .. } => "budget_exhausted",
            Self::Cancelled => "cancelled",
            Self::Unavailable(_) => "unavailable",
            Self::DeviceFailed { .. } => "device_failed",
            Self::Function { .. } => "function_failed",
            Self::Internal(_) => "internal",
        }
    }
}
