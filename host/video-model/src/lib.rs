//! Pixels from prompts: text encoders, transformers, VAEs, samplers, interpolation, and the queue that owns the device.

mod config;
mod describe;
pub mod device_queue;
pub mod devices;
pub mod engine;
mod error;
mod files;
#[doc(hidden)]
pub mod fuzzing;
pub mod image_encoder;
pub mod interpolation;
mod json;
pub mod lora;
pub mod memory;
mod model;
pub mod noise;
pub mod picture;
mod precision;
pub mod quality;
pub mod registry;
pub mod sampler;
mod scheduler_config;
pub mod speed;
pub mod text;
pub mod transformer;
pub mod vae;
pub mod weights;

pub use config::{Conditioning, FolderConfig, SamplingDefaults};
pub use describe::PartInfo;
pub use error::{ModelError, Result};
pub use files::ModelFiles;
pub use model::VideoModel;
pub use precision::Precision;
