//! The two ways of an error: out of the host into a component, and out of a component into its job.

use crate::bindings::wit;
use crate::function_log::{clipped, escaped};
use crate::state::CallState;
use pipeline::{StageContext, StageError};
use wasmtime::component::ResourceTableError;

/// Why a host function did not do what it was asked.
#[derive(Debug)]
pub enum HostError {
    /// The component gets a typed error and may go on.
    Refused(StageError),
    /// The call ends: the component broke the component model's rules.
    Trap(wasmtime::Error),
}

impl From<StageError> for HostError {
    fn from(error: StageError) -> Self {
        Self::Refused(error)
    }
}

impl From<ResourceTableError> for HostError {
    fn from(error: ResourceTableError) -> Self {
        match error {
            ResourceTableError::Full => {
                Self::Refused(StageError::invalid("handles", "too many are open; drop some that you no longer need"))
            }
            ResourceTableError::NotPresent | ResourceTableError::WrongType | ResourceTableError::HasChildren => {
                Self::Trap(error.into())
            }
        }
    }
}

impl wit::Host for CallState {
    fn convert_error(&mut self, error: HostError) -> wasmtime::Result<wit::Error> {
        match error {
            HostError::Trap(error) => Err(error),
            HostError::Refused(error) => {
                self.host_failure = Some(error.clone());
                Ok(to_guest(error))
            }
        }
    }
}

fn to_guest(error: StageError) -> wit::Error {
    match error {
        StageError::InvalidArgument { .. } => wit::Error::InvalidArgument(error.to_string()),
        StageError::Denied(text) => wit::Error::Denied(text),
        StageError::BudgetExhausted { .. } => wit::Error::BudgetExhausted,
        StageError::Cancelled => wit::Error::Cancelled,
        StageError::Unavailable(text) => wit::Error::Unavailable(text),
        StageError::DeviceFailed { .. } => wit::Error::Unavailable(error.to_string()),
        // Details are for the operator, not for tenants' code.
        StageError::Function { .. } | StageError::Internal(_) => {
            tracing::error!(%error, "a host call of a component failed");
            wit::Error::Internal("the host failed; its operator's log says more".to_owned())
        }
    }
}

/// What a component's own error means for its job. A component can claim anything; that the host failed or was busy is
/// believed only when it was.
pub(crate) fn from_guest(
    function: &str,
    cx: &StageContext,
    host_failure: Option<StageError>,
    error: wit::Error,
) -> StageError {
    let blame =
        |text: &str| StageError::Function { function: function.to_owned(), message: escaped(clipped(text, 1024)) };
    match error {
        wit::Error::BudgetExhausted => StageError::BudgetExhausted { budget_ms: cx.gpu_budget_ms },
        wit::Error::Cancelled => StageError::Cancelled,
        wit::Error::InvalidArgument(text) => blame(&text),
        wit::Error::Denied(text) => blame(&format!("denied: {text}")),
        wit::Error::Unavailable(text) => match host_failure {
            Some(error @ (StageError::Unavailable(_) | StageError::DeviceFailed { .. })) => error,
            _ => blame(&format!("unavailable: {text}")),
        },
        wit::Error::Internal(text) => match host_failure {
            Some(error @ StageError::Internal(_)) => error,
            _ => blame(&format!("internal error: {text}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeline::Lane;

    #[test]
    fn a_device_failure_passes_through_a_component_and_is_believed_only_when_it_was_one() {
        let (cx, failed) = (StageContext::unmetered(Lane(0)), StageError::DeviceFailed { own_step: false });
        let wit::Error::Unavailable(told) = to_guest(failed.clone()) else { panic!("components know no other word") };
        assert!(told.contains("nothing is billed"), "{told}");
        let again = |host_failure| from_guest("f", &cx, host_failure, wit::Error::Unavailable(told.clone()));
        assert_eq!(again(Some(failed.clone())), failed);
        assert!(matches!(again(None), StageError::Function { .. }));
    }
}
