//! One model folder, loaded: the networks and how they like to be sampled.

use crate::config::{Conditioning, SamplingDefaults};
use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use crate::precision::Precision;
use crate::text::{TextEncoder, load_text_encoder};
use crate::transformer::WanTransformer;
use crate::vae::WanVae;

/// The parts of a text-to-video model, checked to fit together.
pub struct VideoModel {
    /// Prompts to states.
    pub text_encoder: Box<dyn TextEncoder>,
    /// States and noise to velocity.
    pub transformer: WanTransformer,
    /// Latents to pictures and back.
    pub vae: WanVae,
    /// What the model does when a request is silent.
    pub defaults: SamplingDefaults,
}

impl VideoModel {
    /// Loads a folder in diffusers' layout for products in `precision`.
    pub fn load(files: &ModelFiles, precision: Precision) -> Result<Self> {
        let defaults = SamplingDefaults::load(files)?;
        let model = Self {
            text_encoder: load_text_encoder(files, defaults.text_length)?,
            transformer: WanTransformer::load(files, "transformer", precision)?,
            vae: WanVae::load(files, "vae", precision.activations())?,
            defaults,
        };
        model.check(files)?;
        Ok(model)
    }

    /// Latent frames of `pictures` pictures; `None` unless pictures are 1 + a multiple of the VAE's temporal factor.
    pub fn latent_frames(&self, pictures: usize) -> Option<usize> {
        let factor = self.vae.config().temporal_factor();
        let rest = pictures.checked_sub(1)?;
        rest.is_multiple_of(factor).then_some(1 + rest / factor)
    }

    /// Sides of pictures must be multiples of this: latent pixels form whole patches.
    pub fn size_multiple_px(&self) -> usize {
        let [_, height, width] = self.transformer.config().patch_size;
        self.vae.config().spatial_factor() * height.max(width)
    }

    fn check(&self, files: &ModelFiles) -> Result<()> {
        let (config, z) = (self.transformer.config(), self.vae.config().z_dim);
        let refused = |detail: String| Err(ModelError::config(files.name_of("transformer/config.json"), detail));
        if config.text_dim != self.text_encoder.width() {
            return refused(format!(
                "text_dim is {}, the text encoder gives {}",
                config.text_dim,
                self.text_encoder.width()
            ));
        }
        if config.out_channels() != z {
            return refused(format!("out_channels is {}, the VAE's z_dim {z}", config.out_channels()));
        }
        let expected = z + self.defaults.conditioning.channels(z);
        if config.in_channels != expected && self.defaults.conditioning == Conditioning::None {
            return Err(ModelError::Unsupported(format!(
                "in_channels {} ({z} latent channels and unknown conditioning)",
                config.in_channels
            )));
        }
        if config.in_channels != expected {
            return refused(format!("in_channels is {}, the conditioning needs {expected}", config.in_channels));
        }
        Ok(())
    }
}
