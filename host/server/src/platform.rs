//! Everything that a process is made of, made once and passed down. There is no other place where parts are joined.

use crate::catalog::ComponentStore;
use crate::config::Config;
use control_plane::{ControlError, ControlResult, JobRecord, JobStore, SqliteStore, StoreConfig};
use media::{FolderStore, ObjectError, VideoEncoder};
use pipeline::life::Stages;
use pipeline::{Clock, JobId, StageError, SystemClock, TenantId};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use video_model::devices::{Device, ThisMachine};
use video_model::engine::{EngineConfig, PromptCacheConfig, VideoEngine};
use wasm_runtime::{Limits, RuntimeConfig, RuntimeError, Services, TracingLog, WasmRuntime};

/// The platform cannot start.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The data folder cannot be made.
    #[error("the data folder {path}: {source}")]
    DataDir {
        /// The folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The object store.
    #[error("the object store: {0}")]
    Objects(#[from] ObjectError),
    /// The database.
    #[error("the database: {0}")]
    Control(#[from] ControlError),
    /// The engine or one of its models.
    #[error("the engine: {0}")]
    Engine(StageError),
    /// The sandbox.
    #[error("the WebAssembly runtime: {0}")]
    Runtime(#[from] RuntimeError),
}

/// One process's parts.
pub struct Platform {
    /// What the operator set.
    pub config: Config,
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// Tenants, keys, functions, jobs, ledger.
    pub jobs: SqliteStore,
    /// Pictures and results.
    pub objects: FolderStore,
    /// Components by digest.
    pub components: ComponentStore,
    /// Validates and runs components.
    pub runtime: Arc<WasmRuntime>,
    /// Models and the device.
    pub engine: Arc<VideoEngine>,
    /// The stages of a job, as this process implements them.
    pub stages: Stages,
}

impl Platform {
    /// Opens the data folder and starts the engine. The device thread and the epoch ticker run from here on.
    pub async fn open(config: Config) -> Result<Arc<Self>, OpenError> {
        Self::open_with_clock(config, Arc::new(SystemClock)).await
    }

    /// The same with a given clock.
    pub async fn open_with_clock(config: Config, clock: Arc<dyn Clock>) -> Result<Arc<Self>, OpenError> {
        let devices = open_devices(&config)?;
        Self::open_with(config, clock, devices).await
    }

    /// The same with given devices too.
    pub async fn open_with(
        config: Config,
        clock: Arc<dyn Clock>,
        devices: Vec<Arc<dyn Device>>,
    ) -> Result<Arc<Self>, OpenError> {
        let data_dir_error = |source| OpenError::DataDir { path: config.data_dir.display().to_string(), source };
        std::fs::create_dir_all(&config.data_dir).map_err(data_dir_error)?;
        let objects = FolderStore::open(&config.data_dir.join("objects"))?;
        let jobs =
            SqliteStore::open(&config.data_dir.join("control.sqlite"), clock.clone(), StoreConfig::default()).await?;
        let components = ComponentStore::new(objects.clone());
        let engine = VideoEngine::on(devices, engine_config(&config)?).map_err(OpenError::Engine)?;
        let runtime = start_runtime(&config, &components, &engine)?;
        let stages = Stages {
            plan: runtime.clone(),
            direct: runtime.clone(),
            condition: engine.clone(),
            diffuse: engine.clone(),
            interpolate: engine.clone(),
            apply_effects: runtime.clone(),
            encode_video: Arc::new(VideoEncoder::default()),
        };
        Ok(Arc::new(Self { config, clock, jobs, objects, components, runtime, engine, stages }))
    }
}

impl Platform {
    /// Waits until the job has finished; `NotFound` when it is not there (any more).
    pub async fn wait(&self, tenant: &TenantId, id: &JobId) -> ControlResult<JobRecord> {
        let mut changes = self.jobs.changes();
        loop {
            let missing = || ControlError::NotFound { kind: "job", id: id.to_string() };
            let job = self.jobs.get(tenant, id).await?.ok_or_else(missing)?;
            if job.state.is_finished() {
                return Ok(job);
            }
            // Changes made by another process are not announced here, so look now and then.
            drop(tokio::time::timeout(WAIT_POLL, changes.changed()).await);
        }
    }
}

const WAIT_POLL: Duration = Duration::from_secs(1);

/// The engine as the configuration wants it.
pub(crate) fn start_engine(config: &Config) -> Result<Arc<VideoEngine>, OpenError> {
    VideoEngine::on(open_devices(config)?, engine_config(config)?).map_err(OpenError::Engine)
}

fn open_devices(config: &Config) -> Result<Vec<Arc<dyn Device>>, OpenError> {
    config.device.open(&ThisMachine::new(config.device_threads), config.devices_max).map_err(OpenError::Engine)
}

fn engine_config(config: &Config) -> Result<EngineConfig, OpenError> {
    let dtype = config.dtype.as_deref().map(str::parse).transpose().map_err(OpenError::Engine)?;
    let defaults = EngineConfig::default();
    Ok(EngineConfig {
        models: config.models.clone(),
        loras: config.loras.clone(),
        dtype: dtype.unwrap_or(defaults.dtype),
        prompt_cache: PromptCacheConfig {
            ram_bytes_max: config.prompt_cache_ram_bytes_max,
            disk: Some((config.data_dir.join("prompt-cache"), config.prompt_cache_disk_bytes_max)),
        },
        memory_bytes_max: config.memory_bytes_max.or(defaults.memory_bytes_max),
        ..defaults
    })
}

fn start_runtime(
    config: &Config,
    components: &ComponentStore,
    engine: &Arc<VideoEngine>,
) -> Result<Arc<WasmRuntime>, OpenError> {
    let runtime_config = RuntimeConfig { cache_dir: config.data_dir.join("aot-cache"), limits: Limits::default() };
    let services = Services {
        catalog: Arc::new(components.clone()),
        condition: engine.clone(),
        diffuse: engine.clone(),
        interpolate: engine.clone(),
        log: Arc::new(TracingLog),
    };
    Ok(Arc::new(WasmRuntime::new(runtime_config, services)?))
}
