//! From a picture to the states that an image-to-video transformer attends to.

mod clip;
mod processor;

pub use clip::{ClipVision, ClipVisionConfig};
pub use processor::ImageProcessor;

use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use crate::precision::Precision;
use kernels::Tensor;
use pipeline::Frame;

/// A folder's vision tower with the processor that brings pictures into its form.
pub struct ImageEncoder {
    processor: ImageProcessor,
    network: ClipVision,
}

impl ImageEncoder {
    /// Loads `config.json` and the weights in `subfolder` for products in `precision` (bf16 in place of 8-bit integers),
    /// and `preprocessor_config.json` in `processor_subfolder`.
    pub fn load(files: &ModelFiles, subfolder: &str, processor_subfolder: &str, precision: Precision) -> Result<Self> {
        let path = format!("{subfolder}/config.json");
        let config: ClipVisionConfig = files.read_json(&path)?;
        config.check(&files.name_of(&path))?;
        let processor_path = format!("{processor_subfolder}/preprocessor_config.json");
        let processor: ImageProcessor = files.read_json(&processor_path)?;
        processor.check(&files.name_of(&processor_path))?;
        let (made, needed) = (processor.size(), config.image_size);
        if made != [needed, needed] {
            let detail = format!("makes pictures of {made:?}, the image encoder's image_size is {needed}");
            return Err(ModelError::config(files.name_of(&processor_path), detail));
        }
        let weights = files.weights(subfolder)?;
        Ok(Self { processor, network: ClipVision::load(&weights, config, precision.activations())? })
    }

    /// The states before the last layer (transformers' `hidden_states[-2]`, without the last norm): [tokens, width] in f32.
    pub fn encode(&self, picture: &Frame) -> Result<Tensor> {
        self.network.states(&self.processor.pixels(picture)?)
    }

    /// Rows of [`ImageEncoder::encode`]: one for the whole picture, then one a patch.
    pub fn tokens(&self) -> usize {
        self.network.config().tokens()
    }

    /// Columns of [`ImageEncoder::encode`]: the transformer's `image_dim`.
    pub fn width(&self) -> usize {
        self.network.config().hidden_size
    }

    /// Bytes of the weights in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.network.resident_bytes()
    }
}
