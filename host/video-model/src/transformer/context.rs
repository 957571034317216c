//! What a video is conditioned on besides its own latents: the prompt, and a picture in Wan 2.1's image-to-video models.

use super::attention::CrossKeysValues;
use super::block::Block;
use super::config::TransformerConfig;
use super::layer::Layer;
use crate::error::{ModelError, Result};
use crate::lora::LayerAdapters;
use crate::precision::Precision;
use crate::weights::Scope;
use kernels::{Activation, Dtype, Tensor, add, layer_norm};
use std::sync::{Arc, OnceLock};

/// A prompt, and a picture, embedded for one transformer. The keys and values that each block makes of them depend on nothing
/// else, so they are computed when a block first needs them and serve all steps of a job. Clones share them.
#[derive(Debug, Clone)]
pub struct Context {
    text: Tensor,
    image: Option<Tensor>,
    blocks: Arc<[OnceLock<CrossKeysValues>]>,
}

impl Context {
    pub(super) fn new(text: Tensor, image: Option<Tensor>, blocks: usize) -> Self {
        Self { text, image, blocks: (0..blocks).map(|_| OnceLock::new()).collect() }
    }

    /// The embedded text [text_length, width].
    pub(super) fn text(&self) -> &Tensor {
        &self.text
    }

    /// The embedded picture [tokens, width].
    pub(super) fn image(&self) -> Option<&Tensor> {
        self.image.as_ref()
    }

    /// Blocks of the transformer that it was made by.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// What block `index` attends to.
    pub(super) fn keys_values(
        &self,
        index: usize,
        block: &Block,
        adapters: Option<&LayerAdapters>,
    ) -> Result<&CrossKeysValues> {
        let slot = &self.blocks[index];
        if let Some(made) = slot.get() {
            return Ok(made);
        }
        let made = block.context(self, adapters)?;
        Ok(slot.get_or_init(|| made))
    }
}

/// The layers that prompt and picture pass before the blocks: they are embedded once a job.
pub(super) struct ContextEmbedding {
    text_in: Layer,
    text_out: Layer,
    image: Option<ImageEmbedding>,
    dtype: Dtype,
}

impl ContextEmbedding {
    pub(super) fn load(model: &Scope<'_>, config: &TransformerConfig, precision: Precision) -> Result<Self> {
        let d = config.width();
        // Embedders run once a job: integers would save nothing and cost accuracy in everything that follows.
        let precision = precision.without_integers();
        let layer = |name: &str, inputs| {
            Layer::load(model, format!("condition_embedder.text_embedder.{name}"), inputs, d, precision)
        };
        Ok(Self {
            text_in: layer("linear_1", config.text_dim)?,
            text_out: layer("linear_2", d)?,
            image: match config.image_dim {
                Some(width) => Some(ImageEmbedding::load(model, width, config, precision)?),
                None => None,
            },
            dtype: precision.activations(),
        })
    }

    /// Text states [text_length, text_dim] → [text_length, width].
    pub(super) fn text(&self, states: &Tensor, adapters: Option<&LayerAdapters>) -> Result<Tensor> {
        let x = self.text_in.forward(states, Activation::GeluTanh, self.dtype, adapters)?;
        self.text_out.forward(&x, Activation::None, self.dtype, adapters)
    }

    /// CLIP states [tokens, image_dim] → [tokens, width], for models that look at a picture; such models must get one.
    pub(super) fn image(&self, states: Option<&Tensor>, adapters: Option<&LayerAdapters>) -> Result<Option<Tensor>> {
        match (&self.image, states) {
            (None, None) => Ok(None),
            (Some(embedding), Some(states)) => embedding.forward(states, adapters).map(Some),
            (Some(_), None) => Err(ModelError::Input("this transformer needs the states of a picture".to_owned())),
            (None, Some(_)) => Err(ModelError::Input("this transformer takes no states of a picture".to_owned())),
        }
    }
}

/// The published files' norms around the picture's layers keep torch's default, whatever `eps` the config has.
const IMAGE_NORM_EPS: f32 = 1e-5;

/// Norm, two layers, norm; learned positions first where a model takes the first and the last frame.
struct ImageEmbedding {
    /// [tokens, image_dim]
    positions: Option<Tensor>,
    norm_in: (Tensor, Tensor),
    layer_in: Layer,
    layer_out: Layer,
    norm_out: (Tensor, Tensor),
    dtype: Dtype,
}

impl ImageEmbedding {
    fn load(model: &Scope<'_>, image_dim: usize, config: &TransformerConfig, precision: Precision) -> Result<Self> {
        const NAME: &str = "condition_embedder.image_embedder";
        let scope = model.at(NAME);
        let norm = |name: &str, width| -> Result<(Tensor, Tensor)> {
            let norm = scope.at(name);
            Ok((norm.vector("weight", width)?, norm.vector("bias", width)?))
        };
        let layer =
            |name: &str, outputs| Layer::load(model, format!("{NAME}.ff.net.{name}"), image_dim, outputs, precision);
        let positions = match config.pos_embed_seq_len {
            Some(tokens) => {
                Some(scope.tensor("pos_embed", &[1, tokens, image_dim], Dtype::F32)?.reshape(&[tokens, image_dim])?)
            }
            None => None,
        };
        Ok(Self {
            positions,
            norm_in: norm("norm1", image_dim)?,
            layer_in: layer("0.proj", image_dim)?,
            layer_out: layer("2", config.width())?,
            norm_out: norm("norm2", config.width())?,
            dtype: precision.activations(),
        })
    }

    fn forward(&self, states: &Tensor, adapters: Option<&LayerAdapters>) -> Result<Tensor> {
        let states = states.to_dtype(Dtype::F32);
        let states = match &self.positions {
            Some(positions) if positions.shape() != states.shape() => {
                let (found, needed) = (states.shape(), positions.shape());
                return Err(ModelError::Input(format!(
                    "picture states are {found:?}, this transformer needs {needed:?}: those of two pictures in turn"
                )));
            }
            Some(positions) => add(&states, positions)?,
            None => states,
        };
        let normed = |x: &Tensor, (weight, bias): &(Tensor, Tensor)| {
            layer_norm(x, Some(weight), Some(bias), IMAGE_NORM_EPS, self.dtype)
        };
        let x = normed(&states, &self.norm_in)?;
        let x = self.layer_in.forward(&x, Activation::Gelu, self.dtype, adapters)?;
        let x = self.layer_out.forward(&x, Activation::None, Dtype::F32, adapters)?;
        Ok(normed(&x, &self.norm_out)?)
    }
}
