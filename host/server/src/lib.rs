//! The platform as one process: wiring, HTTP, the worker that runs jobs, and the tools that need no server.
//!
//! Start at [`platform::Platform::open`], which makes everything and passes it down; then [`http::router`] for what
//! comes from outside and [`worker::Worker`] for what runs. [`local`] is the same engine for the command line.

pub mod bench;
pub mod catalog;
pub mod config;
pub mod functions;
pub mod http;
pub mod local;
pub mod model_list;
pub mod models;
pub mod platform;
pub mod serve;
pub mod submission;
pub mod telemetry;
pub mod worker;

/// The control plane, for programs that embed the platform.
pub use control_plane as control;

pub use config::{Config, ConfigError, ConfigFile, Role};
pub use functions::PublishError;
pub use platform::{OpenError, Platform};
pub use submission::{FlowSubmission, FunctionCall, Submission, SubmitError};
