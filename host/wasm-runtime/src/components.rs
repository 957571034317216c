//! From the digest of a component to something that can be instantiated: memory, then the disk cache, then the compiler.

use crate::aot_cache::AotCache;
use crate::error::{RuntimeError, ValidationError};
use crate::limits::Limits;
use crate::linkers::Linkers;
use crate::validate::{self, World};
use pipeline::{Digest, FunctionCatalog, StageError, StageResult};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use wasmtime::Engine;
use wasmtime::component::Component;

/// All components that this process knows.
pub(crate) struct Components {
    compiler: Arc<Compiler>,
    loaded: Mutex<Loaded>,
    /// One compilation at a time: it uses all cores by itself, and nobody compiles what another is compiling.
    turn: Arc<Semaphore>,
    compile_max: Duration,
}

struct Compiler {
    engine: Engine,
    linkers: Linkers,
    aot: AotCache,
    limits: Limits,
}

impl Components {
    pub(crate) fn new(engine: &Engine, cache_dir: &Path, limits: &Limits) -> Result<Self, RuntimeError> {
        Ok(Self {
            compiler: Arc::new(Compiler {
                engine: engine.clone(),
                linkers: Linkers::new(engine)?,
                aot: AotCache::open(cache_dir, engine, limits.aot_cache_bytes_max)?,
                limits: limits.clone(),
            }),
            loaded: Mutex::new(Loaded { bytes_max: limits.loaded_bytes_max, ..Loaded::default() }),
            turn: Arc::new(Semaphore::new(1)),
            compile_max: Duration::from_millis(limits.compile_ms_max),
        })
    }

    /// Checks an upload and compiles it, so that its first call finds it ready.
    pub(crate) async fn add(&self, wasm: Vec<u8>) -> Result<(Digest, Arc<World>), ValidationError> {
        validate::check_bytes(&wasm, &self.compiler.limits)?;
        let digest = digest_of(&wasm);
        let world = self.get(&digest, async || Ok::<_, ValidationError>(wasm)).await?;
        Ok((digest, world))
    }

    /// The component with this digest. `name` is the function's, for messages.
    pub(crate) async fn load(
        &self,
        name: &str,
        digest: &Digest,
        catalog: &dyn FunctionCatalog,
    ) -> StageResult<Arc<World>> {
        let fetch = async || {
            let wasm = catalog.component(digest).await?;
            if digest_of(&wasm) != *digest {
                return Err(LoadError::Stage(StageError::Internal(format!("the bytes of component {digest} differ"))));
            }
            Ok(wasm)
        };
        self.get(digest, fetch).await.map_err(|error| match error {
            LoadError::Stage(error) => error,
            LoadError::Invalid(ValidationError::Internal(message)) => StageError::Internal(message),
            LoadError::Invalid(busy @ ValidationError::Busy) => StageError::Unavailable(busy.to_string()),
            LoadError::Invalid(error) => StageError::Function { function: name.to_owned(), message: error.to_string() },
        })
    }

    async fn get<E, F>(&self, digest: &Digest, fetch: F) -> Result<Arc<World>, E>
    where
        E: From<ValidationError>,
        F: AsyncFnOnce() -> Result<Vec<u8>, E>,
    {
        if let Some(world) = self.find(digest) {
            return Ok(world);
        }
        let (compiler, key) = (self.compiler.clone(), *digest);
        if let Some(ready) = spawn(move || compiler.cached(&key)).await? {
            return Ok(self.keep(digest, ready));
        }
        let turn = tokio::time::timeout(self.compile_max, self.turn.clone().acquire_owned());
        let Ok(Ok(turn)) = turn.await else { return Err(ValidationError::Busy.into()) };
        // Someone else may have compiled it while this call waited for its turn.
        if let Some(world) = self.find(digest) {
            return Ok(world);
        }
        let wasm = fetch().await?;
        let compiler = self.compiler.clone();
        let compiled = spawn(move || {
            // The turn ends with the compilation, not with the wait for it.
            let _turn = turn;
            compiler.compile(&key, &wasm)
        });
        match tokio::time::timeout(self.compile_max, compiled).await {
            Ok(compiled) => Ok(self.keep(digest, compiled??)),
            Err(_) => Err(ValidationError::CompileTime { ms_max: self.compile_max.as_millis() as u64 }.into()),
        }
    }

    fn keep(&self, digest: &Digest, ready: Ready) -> Arc<World> {
        let world = Arc::new(ready.world);
        self.loaded().insert(*digest, world.clone(), ready.code_bytes);
        world
    }

    fn find(&self, digest: &Digest) -> Option<Arc<World>> {
        self.loaded().find(digest)
    }

    fn loaded(&self) -> std::sync::MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ValidationError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ValidationError::Internal(error.to_string()))
}

/// Why a component could not be loaded for a call.
enum LoadError {
    Stage(StageError),
    Invalid(ValidationError),
}

impl From<StageError> for LoadError {
    fn from(error: StageError) -> Self {
        Self::Stage(error)
    }
}

impl From<ValidationError> for LoadError {
    fn from(error: ValidationError) -> Self {
        Self::Invalid(error)
    }
}

struct Ready {
    world: World,
    code_bytes: usize,
}

impl Compiler {
    fn cached(&self, digest: &Digest) -> Option<Ready> {
        let component = self.aot.load(&self.engine, digest)?;
        self.ready(&component).ok()
    }

    fn compile(&self, digest: &Digest, wasm: &[u8]) -> Result<Ready, ValidationError> {
        validate::check_bytes(wasm, &self.limits)?;
        let component = Component::from_binary(&self.engine, wasm)
            .map_err(|error| ValidationError::Broken(validate::tidy(&format!("{error:#}"))))?;
        let ready = self.ready(&component)?;
        self.aot.store(digest, &component);
        tracing::debug!(%digest, code_bytes = ready.code_bytes, "compiled a component");
        Ok(ready)
    }

    fn ready(&self, component: &Component) -> Result<Ready, ValidationError> {
        let image = component.image_range();
        let code_bytes = image.end as usize - image.start as usize;
        Ok(Ready { world: validate::link(component, &self.linkers)?, code_bytes })
    }
}

/// Compiled components in memory, bounded by bytes; the one that was not used for longest goes first.
#[derive(Default)]
struct Loaded {
    worlds: HashMap<Digest, Entry>,
    bytes: usize,
    bytes_max: usize,
    uses: u64,
}

struct Entry {
    world: Arc<World>,
    code_bytes: usize,
    last_use: u64,
}

impl Loaded {
    fn find(&mut self, digest: &Digest) -> Option<Arc<World>> {
        self.uses += 1;
        let entry = self.worlds.get_mut(digest)?;
        entry.last_use = self.uses;
        Some(entry.world.clone())
    }

    fn insert(&mut self, digest: Digest, world: Arc<World>, code_bytes: usize) {
        while self.bytes + code_bytes > self.bytes_max {
            let Some(oldest) = self.worlds.iter().min_by_key(|(_, entry)| entry.last_use).map(|(digest, _)| *digest)
            else {
                break;
            };
            self.bytes -= self.worlds.remove(&oldest).map_or(0, |entry| entry.code_bytes);
        }
        self.uses += 1;
        self.bytes += code_bytes;
        let entry = Entry { world, code_bytes, last_use: self.uses };
        self.bytes -= self.worlds.insert(digest, entry).map_or(0, |entry| entry.code_bytes);
    }
}

fn digest_of(wasm: &[u8]) -> Digest {
    Digest::new(Sha256::digest(wasm).into())
}
