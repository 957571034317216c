//! How a command fails: a message for the user and an exit code.

use pipeline::StageError;
use std::fmt;

/// The exit codes that `--help` documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    /// The host's or the network's fault.
    Failed = 1,
    /// A value was refused.
    Refused = 3,
    /// The job ran and failed.
    JobFailed = 4,
}

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// What the process returns.
    pub code: ExitCode,
    /// What the user reads.
    pub message: String,
}

/// The outcome of a command.
pub type CommandResult = Result<(), Failure>;

impl Failure {
    /// A refused value.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { code: ExitCode::Refused, message: message.into() }
    }

    /// Somebody's fault, not the user's.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { code: ExitCode::Failed, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<StageError> for Failure {
    fn from(error: StageError) -> Self {
        let code = match &error {
            StageError::InvalidArgument { .. } | StageError::Denied(_) => ExitCode::Refused,
            StageError::Function { .. } | StageError::BudgetExhausted { .. } | StageError::Cancelled => {
                ExitCode::JobFailed
            }
            StageError::Unavailable(_) | StageError::DeviceFailed { .. } | StageError::Internal(_) => ExitCode::Failed,
        };
        Self { code, message: error.to_string() }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}
