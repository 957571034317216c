//! One block: modulated self-attention with rotary positions, cross-attention to the context, modulated feed-forward.

use super::attention::{Attention, CrossKeysValues};
use super::config::TransformerConfig;
use super::context::Context;
use super::layer::Layer;
use super::time::{Modulation, shifted};
use crate::error::Result;
use crate::lora::LayerAdapters;
use crate::precision::Precision;
use crate::weights::Scope;
use kernels::{Activation, Dtype, RopeTable, Tensor, layer_norm, layer_norm_modulate};

/// A block with its weights packed.
pub(super) struct Block {
    self_attention: Attention,
    cross_attention: Attention,
    /// Weight and bias of the norm before the cross-attention, when the model has one.
    cross_norm: Option<(Tensor, Tensor)>,
    ffn_in: Layer,
    ffn_out: Layer,
    /// [1, width] each, added to the shared modulation.
    rows: [Tensor; 6],
    eps: f32,
    dtype: Dtype,
}

impl Block {
    /// The block whose tensors are in `scope`; it needs nothing else, so blocks can be loaded one by one.
    pub(super) fn load(scope: &Scope<'_>, config: &TransformerConfig, precision: Precision) -> Result<Self> {
        let d = config.width();
        let norm = scope.at("norm2");
        let cross_norm = match config.cross_attn_norm {
            true => Some((norm.vector("weight", d)?, norm.vector("bias", d)?)),
            false => None,
        };
        let table = scope.tensor("scale_shift_table", &[1, 6, d], Dtype::F32)?.reshape(&[6, d])?;
        let row = |i: usize| table.slice_outer(i..i + 1);
        Ok(Self {
            self_attention: Attention::load(scope, "attn1", config, false, precision)?,
            cross_attention: Attention::load(scope, "attn2", config, config.image_dim.is_some(), precision)?,
            cross_norm,
            ffn_in: Layer::load(scope, "ffn.net.0.proj", d, config.ffn_dim, precision)?,
            ffn_out: Layer::load(scope, "ffn.net.2", config.ffn_dim, d, precision)?,
            rows: [row(0)?, row(1)?, row(2)?, row(3)?, row(4)?, row(5)?],
            eps: config.eps,
            dtype: precision.activations(),
        })
    }

    /// What this block's cross-attention reads of a context.
    pub(super) fn context(&self, context: &Context, adapters: Option<&LayerAdapters>) -> Result<CrossKeysValues> {
        self.cross_attention.context(context, adapters)
    }

    /// Updates the tokens x [clips · tokens, width], f32, in place: clips follow each other, one per context.
    pub(super) fn forward(
        &self,
        x: &mut Tensor,
        modulation: &Modulation,
        contexts: &[&CrossKeysValues],
        table: &RopeTable,
        adapters: Option<&LayerAdapters>,
    ) -> Result<()> {
        let part = |i: usize| shifted(&modulation.blocks[i], &self.rows[i]);
        let y = layer_norm_modulate(x, &part(1)?, &part(0)?, self.eps, self.dtype)?;
        self.self_attention.attend_to_self(y, table, &part(2)?, x, adapters)?;

        let y = match &self.cross_norm {
            Some((weight, bias)) => layer_norm(x, Some(weight), Some(bias), self.eps, self.dtype)?,
            None => x.to_dtype(self.dtype),
        };
        self.cross_attention.attend_to(y, contexts, x, adapters)?;

        let y = layer_norm_modulate(x, &part(4)?, &part(3)?, self.eps, self.dtype)?;
        let inner = self.ffn_in.forward(&y, Activation::GeluTanh, self.dtype, adapters)?;
        self.ffn_out.add_to(&inner, Some(&part(5)?), x, adapters)
    }
}
