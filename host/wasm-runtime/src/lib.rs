//! Runs tenants' components: the engine, its limits, the cache of compiled code, and the host functions of
//! `wit/zoetrope-video.wit`. The only crate that knows wasmtime.
//!
//! [`WasmRuntime`] implements the stages [`Plan`](pipeline::Plan), [`ApplyEffects`](pipeline::ApplyEffects) and
//! [`Direct`](pipeline::Direct). Each call gets a store and an instance of its own, with every limit of [`Limits`] on;
//! nothing of it remains afterwards but its frames, its log lines and its bill.
//!
//! CPU time is what the calling thread spent inside the component's code and the short host functions that it called,
//! without waiting and without the engine's work; a started millisecond counts. It is billed however a call ends.

mod aot_cache;
mod bindings;
mod call;
mod components;
mod cpu_clock;
mod engine;
mod error;
mod function_log;
mod host;
mod limits;
mod linkers;
mod request;
mod runtime;
mod stages;
mod state;
mod validate;

pub use error::{RuntimeError, ValidationError};
pub use function_log::{LogLevel, LogLine, LogSink, TracingLog};
pub use limits::Limits;
pub use linkers::FunctionKind;
pub use runtime::{RuntimeConfig, Services, ValidFunction, WasmRuntime};
