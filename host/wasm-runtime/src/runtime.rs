//! The runtime: what the host wires once and every call uses.

use crate::components::Components;
use crate::error::{RuntimeError, ValidationError};
use crate::function_log::LogSink;
use crate::limits::Limits;
use crate::linkers::FunctionKind;
use crate::validate::World;
use pipeline::{Condition, Diffuse, Digest, FunctionCatalog, FunctionRef, Interpolate, StageResult};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Semaphore;
use wasmtime::Engine;

/// How the runtime is set up.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Folder for compiled components; made if it is not there, readable by this user only.
    pub cache_dir: PathBuf,
    /// Limits of every call.
    pub limits: Limits,
}

/// What components reach through their host calls, and where their bytes come from.
#[derive(Clone)]
pub struct Services {
    /// Finds components.
    pub catalog: Arc<dyn FunctionCatalog>,
    /// Behind `diffusion.generate`.
    pub condition: Arc<dyn Condition>,
    /// Behind `diffusion.generate`.
    pub diffuse: Arc<dyn Diffuse>,
    /// Behind `interpolation.in-between`.
    pub interpolate: Arc<dyn Interpolate>,
    /// Takes what components log.
    pub log: Arc<dyn LogSink>,
}

/// A component that may be deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValidFunction {
    /// The world that it is made for.
    pub kind: FunctionKind,
    /// Its identity.
    pub digest: Digest,
}

/// Runs tenants' components. Implements `Plan`, `ApplyEffects` and `Direct`.
pub struct WasmRuntime {
    pub(crate) engine: Engine,
    pub(crate) limits: Limits,
    pub(crate) services: Services,
    /// Places of the pool; a call waits for one.
    pub(crate) places: Arc<Semaphore>,
    components: Components,
}

impl WasmRuntime {
    /// Starts the engine and its epoch thread, and opens the cache of compiled components.
    pub fn new(config: RuntimeConfig, services: Services) -> Result<Self, RuntimeError> {
        let engine = crate::engine::start(&config.limits)?;
        Ok(Self {
            components: Components::new(&engine, &config.cache_dir, &config.limits)?,
            places: Arc::new(Semaphore::new(config.limits.calls_max as usize)),
            limits: config.limits,
            engine,
            services,
        })
    }

    /// Checks an upload against our worlds and compiles it, so that its first call finds it ready. Runs none of it.
    pub async fn validate(&self, wasm: &[u8]) -> Result<ValidFunction, ValidationError> {
        let (digest, world) = self.components.add(wasm.to_vec()).await?;
        Ok(ValidFunction { kind: world.kind(), digest })
    }

    pub(crate) async fn load(&self, function: &FunctionRef) -> StageResult<Arc<World>> {
        self.components.load(function.name.as_str(), &function.digest, self.services.catalog.as_ref()).await
    }
}
