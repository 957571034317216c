//! The runtime with real components and a fake engine.

mod cache;
mod cancel;
mod hostile;
mod logs;
mod misbehaving;
mod support;
mod validation;
mod worlds;
