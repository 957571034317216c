//! Wan's attention: queries and keys pass an RMSNorm over all heads together.

use super::config::TransformerConfig;
use super::context::Context;
use super::layer::Layer;
use crate::error::{ModelError, Result};
use crate::lora::LayerAdapters;
use crate::precision::Precision;
use crate::weights::Scope;
use kernels::{Activation, Dtype, RopeTable, Tensor, add, attention, rms_norm, rms_norm_rope};

/// Keys and values of one attention, [tokens, width] each, keys normalised.
#[derive(Debug, Clone)]
pub(super) struct KeysValues {
    keys: Tensor,
    values: Tensor,
}

/// What a block's cross-attention reads: the prompt, and the picture where the model takes one.
#[derive(Debug, Clone)]
pub(super) struct CrossKeysValues {
    text: KeysValues,
    image: Option<KeysValues>,
}

/// The queries, keys, values and output of one attention.
pub(super) struct Attention {
    to_q: Layer,
    to_out: Layer,
    norm_q: Tensor,
    own: KeysValuesLayers,
    /// Keys and values of the picture, which is attended to apart from the text.
    image: Option<KeysValuesLayers>,
    heads: usize,
    scale: f32,
    eps: f32,
    dtype: Dtype,
}

struct KeysValuesLayers {
    to_k: Layer,
    to_v: Layer,
    norm_k: Tensor,
}

impl KeysValuesLayers {
    fn forward(&self, x: &Tensor, norm: &Norm<'_>, adapters: Option<&LayerAdapters>) -> Result<KeysValues> {
        let keys = self.to_k.forward(x, Activation::None, norm.dtype, adapters)?;
        let values = self.to_v.forward(x, Activation::None, norm.dtype, adapters)?;
        Ok(KeysValues { keys: norm.apply(&keys, &self.norm_k)?, values })
    }
}

/// What queries and keys go through after their layer.
struct Norm<'a> {
    eps: f32,
    heads: usize,
    dtype: Dtype,
    /// Positions, where they count.
    table: Option<&'a RopeTable>,
}

impl Norm<'_> {
    fn apply(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(match self.table {
            Some(table) => rms_norm_rope(x, weight, self.eps, self.heads, table, self.dtype)?,
            None => rms_norm(x, weight, self.eps, self.dtype)?,
        })
    }
}

impl Attention {
    /// The attention `name` of a block; `image` says whether it has keys and values for a picture.
    pub(super) fn load(
        block: &Scope<'_>,
        name: &str,
        config: &TransformerConfig,
        image: bool,
        precision: Precision,
    ) -> Result<Self> {
        let d = config.width();
        let layer = |part: &str| Layer::load(block, format!("{name}.{part}"), d, d, precision);
        let norm = |part: &str| block.at(name).vector(&format!("{part}.weight"), d);
        if image && block.at(name).contains("norm_added_q.weight") {
            // Published files have it; their implementation shares the text's queries and does not use it.
            norm("norm_added_q")?;
        }
        let image = match image {
            true => Some(KeysValuesLayers {
                to_k: layer("add_k_proj")?,
                to_v: layer("add_v_proj")?,
                norm_k: norm("norm_added_k")?,
            }),
            false => None,
        };
        Ok(Self {
            to_q: layer("to_q")?,
            to_out: layer("to_out.0")?,
            norm_q: norm("norm_q")?,
            own: KeysValuesLayers { to_k: layer("to_k")?, to_v: layer("to_v")?, norm_k: norm("norm_k")? },
            image,
            heads: config.num_attention_heads,
            scale: 1.0 / (config.attention_head_dim as f32).sqrt(),
            eps: config.eps,
            dtype: precision.activations(),
        })
    }

    /// `x += gate · attention(y, y)` for clips that follow each other, each of as many tokens as `table` covers and attending
    /// to itself alone: y and x are [clips · tokens, width]; gate is as in [`kernels::linear_residual`].
    pub(super) fn attend_to_self(
        &self,
        y: Tensor,
        table: &RopeTable,
        gate: &Tensor,
        x: &mut Tensor,
        adapters: Option<&LayerAdapters>,
    ) -> Result<()> {
        let norm = self.norm(Some(table));
        let queries = self.queries(&y, &norm, adapters)?;
        let KeysValues { keys, values } = self.own.forward(&y, &norm, adapters)?;
        let clips = y.shape()[0] / table.tokens();
        // Not needed by the attention itself, which takes the most memory; and while `x` is shared it is not updated in place.
        drop(y);
        let mixed = each_clip(clips, &queries, |clip, queries| {
            let of_clip = |x: &Tensor| rows_of_clip(x, clip, table.tokens());
            self.mix(&queries, &of_clip(&keys)?, &of_clip(&values)?)
        })?;
        self.to_out.add_to(&mixed, Some(gate), x, adapters)
    }

    /// `x += attention(y, context)` for clips that follow each other, one per entry of `contexts`.
    pub(super) fn attend_to(
        &self,
        y: Tensor,
        contexts: &[&CrossKeysValues],
        x: &mut Tensor,
        adapters: Option<&LayerAdapters>,
    ) -> Result<()> {
        let queries = self.queries(&y, &self.norm(None), adapters)?;
        drop(y);
        let mixed = each_clip(contexts.len(), &queries, |clip, queries| {
            let CrossKeysValues { text, image } = contexts[clip];
            let mixed = self.mix(&queries, &text.keys, &text.values)?;
            Ok(match image {
                Some(image) => add(&mixed, &self.mix(&queries, &image.keys, &image.values)?)?,
                None => mixed,
            })
        })?;
        self.to_out.add_to(&mixed, None, x, adapters)
    }

    /// The keys and values of a context's embedded text and picture.
    pub(super) fn context(&self, context: &Context, adapters: Option<&LayerAdapters>) -> Result<CrossKeysValues> {
        let norm = self.norm(None);
        let text = self.own.forward(context.text(), &norm, adapters)?;
        let image = match (&self.image, context.image()) {
            (None, None) => None,
            (Some(layers), Some(image)) => Some(layers.forward(image, &norm, adapters)?),
            _ => return Err(ModelError::Input("the context was made by another transformer".to_owned())),
        };
        Ok(CrossKeysValues { text, image })
    }

    fn norm<'a>(&self, table: Option<&'a RopeTable>) -> Norm<'a> {
        Norm { eps: self.eps, heads: self.heads, dtype: self.dtype, table }
    }

    fn queries(&self, y: &Tensor, norm: &Norm<'_>, adapters: Option<&LayerAdapters>) -> Result<Tensor> {
        norm.apply(&self.to_q.forward(y, Activation::None, self.dtype, adapters)?, &self.norm_q)
    }

    fn mix(&self, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        Ok(attention(queries, keys, values, self.heads, self.scale, None, None)?)
    }
}

/// `work` on the rows of each of `clips` clips in turn, the results joined in order. A single clip is not copied.
fn each_clip(clips: usize, x: &Tensor, mut work: impl FnMut(usize, Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let tokens = x.shape()[0] / clips;
    let parts = (0..clips).map(|clip| work(clip, rows_of_clip(x, clip, tokens)?)).collect::<Result<Vec<_>>>()?;
    match parts.as_slice() {
        [only] => Ok(only.clone()),
        parts => Ok(Tensor::concat_outer(&parts.iter().collect::<Vec<_>>())?),
    }
}

/// Rows `clip · tokens..` of x, `tokens` of them; all of x is not copied.
pub(super) fn rows_of_clip(x: &Tensor, clip: usize, tokens: usize) -> Result<Tensor> {
    match x.shape()[0] == tokens {
        true => Ok(x.clone()),
        false => Ok(x.slice_outer(clip * tokens..(clip + 1) * tokens)?),
    }
}
