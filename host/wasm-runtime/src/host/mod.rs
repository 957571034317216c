//! Host functions, one file per interface of the contract and named like it. Each checks its arguments, calls the
//! engine's trait and returns its error; nothing is computed here.

pub(crate) mod config;
pub(crate) mod diffusion;
pub(crate) mod error;
pub(crate) mod frames;
pub(crate) mod interpolation;
pub(crate) mod logging;
pub(crate) mod usage;
pub(crate) mod wasi;

pub(crate) use error::HostError;

use crate::cpu_clock::{CpuClock, Unmetered};
use crate::runtime::Services;
use pipeline::{StageContext, StageError, StageResult};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The way from a host function to the engine.
#[derive(Clone)]
pub(crate) struct EngineAccess {
    pub(crate) cx: StageContext,
    pub(crate) services: Services,
    pub(crate) clock: Arc<CpuClock>,
    /// Set while an engine call is under way.
    pub(crate) in_use: Arc<AtomicBool>,
    pub(crate) call_max: Duration,
}

impl EngineAccess {
    /// Waits for the engine. Its own time is not billed as the component's, and the watcher of cancellation leaves it
    /// alone: the engine reads the same token, and ends with its last step metered.
    pub(crate) async fn call<T>(&self, call: impl Future<Output = StageResult<T>> + Send) -> StageResult<T> {
        let _flag = Raised::new(&self.in_use);
        let call = Unmetered { future: Box::pin(call), clock: self.clock.clone() };
        match tokio::time::timeout(self.call_max, call).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let seconds = self.call_max.as_secs();
                Err(StageError::Unavailable(format!("the engine did not answer within {seconds} s")))
            }
        }
    }
}

/// A flag that is up for as long as this lives.
struct Raised(Arc<AtomicBool>);

impl Raised {
    fn new(flag: &Arc<AtomicBool>) -> Self {
        flag.store(true, Ordering::SeqCst);
        Self(flag.clone())
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}
