//! One model folder, loaded: the networks and how they like to be sampled.

use crate::config::FolderConfig;
use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use crate::image_encoder::ImageEncoder;
use crate::precision::Precision;
use crate::text::{TextEncoder, load_text_encoder};
use crate::transformer::{Residency, WanTransformer};
use crate::vae::WanVae;
use pipeline::PicturesTaken;

/// The parts of a model, checked to fit together.
pub struct VideoModel {
    /// Prompts to states.
    pub text_encoder: Box<dyn TextEncoder>,
    /// Pictures to states, for transformers that attend to them.
    pub image_encoder: Option<ImageEncoder>,
    /// States and noise to velocity: one network, or one for high noise and one for low.
    pub experts: Vec<Expert>,
    /// Latents to pictures and back.
    pub vae: WanVae,
    /// What the folder says of itself.
    pub config: FolderConfig,
}

/// A transformer and the part of the noise schedule that it was trained for.
pub struct Expert {
    /// The network.
    pub transformer: WanTransformer,
    /// The lowest timestep (0 to 1000) that is its own.
    pub timestep_min: f32,
}

impl VideoModel {
    /// Loads a folder in diffusers' layout for products in `precision`.
    pub fn load(files: &ModelFiles, precision: Precision) -> Result<Self> {
        Self::load_with(files, precision, Residency::Resident)
    }

    /// Like [`VideoModel::load`], with the transformers' blocks where `residency` says.
    pub fn load_with(files: &ModelFiles, precision: Precision, residency: Residency) -> Result<Self> {
        let config = FolderConfig::load(files)?;
        let expert = |folder: &str, timestep_min| -> Result<Expert> {
            Ok(Expert { transformer: WanTransformer::load_with(files, folder, precision, residency)?, timestep_min })
        };
        let experts = match config.boundary_ratio {
            None => vec![expert("transformer", 0.0)?],
            Some(ratio) => vec![expert("transformer", ratio * 1000.0)?, expert("transformer_2", 0.0)?],
        };
        let image_encoder = match config.transformer.image_dim {
            None => None,
            Some(_) => Some(ImageEncoder::load(files, "image_encoder", "image_processor", precision)?),
        };
        let text_encoder = load_text_encoder(files, config.defaults.text_length, precision)?;
        let vae = WanVae::load(files, "vae", precision.activations())?;
        let model = Self { text_encoder, image_encoder, experts, vae, config };
        model.check(files)?;
        Ok(model)
    }

    /// The index of the transformer for a timestep.
    pub fn expert_at(&self, timestep: f32) -> usize {
        let found = self.experts.iter().position(|expert| timestep >= expert.timestep_min);
        found.unwrap_or(self.experts.len() - 1)
    }

    /// Pictures that the model takes in the place of key frames.
    pub fn pictures(&self) -> PicturesTaken {
        self.config.pictures()
    }

    /// Latent frames of `pictures` pictures; `None` unless pictures are 1 + a multiple of the VAE's temporal factor.
    pub fn latent_frames(&self, pictures: usize) -> Option<usize> {
        let factor = self.vae.config().temporal_factor();
        let rest = pictures.checked_sub(1)?;
        rest.is_multiple_of(factor).then_some(1 + rest / factor)
    }

    fn check(&self, files: &ModelFiles) -> Result<()> {
        let refused = |detail: String| Err(ModelError::config(files.name_of("transformer/config.json"), detail));
        let (needed, given) = (self.config.transformer.text_dim, self.text_encoder.width());
        if needed != given {
            return refused(format!("text_dim is {needed}, the text encoder gives {given}"));
        }
        if let (Some(needed), Some(encoder)) = (self.config.transformer.image_dim, &self.image_encoder) {
            let given = encoder.width();
            if needed != given {
                return refused(format!("image_dim is {needed}, the image encoder gives {given}"));
            }
        }
        let outputs =
            |expert: &Expert| (expert.transformer.config().in_channels, expert.transformer.config().out_channels());
        if self.experts.iter().any(|expert| outputs(expert) != outputs(&self.experts[0])) {
            return refused("the two transformers differ in their channels".to_owned());
        }
        Ok(())
    }
}
