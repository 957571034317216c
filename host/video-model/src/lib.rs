//! Pixels from prompts: text encoders, transformers, VAEs, samplers, interpolation, and the queue that owns the device.

mod error;
mod files;
pub mod device_queue;
pub mod noise;
pub mod picture;
pub mod quality;
pub mod sampler;
pub mod weights;

pub use error::{ModelError, Result};
pub use files::ModelFiles;
