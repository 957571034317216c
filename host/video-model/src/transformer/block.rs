//! One block: modulated self-attention with rotary positions, cross-attention to the text, modulated feed-forward.

use super::config::TransformerConfig;
use crate::error::Result;
use crate::weights::Scope;
use kernels::{
    Activation, Dtype, PackedLinear, RopeTable, Tensor, add, attention, layer_norm, layer_norm_modulate, linear,
    linear_residual, rms_norm, rope,
};

/// Keys and values of one attention, [tokens, width] each, keys normalised.
#[derive(Debug, Clone)]
pub(super) struct KeysValues {
    keys: Tensor,
    values: Tensor,
}

/// Wan's attention: q and k pass an RMSNorm over all heads together.
struct Attention {
    to_q: PackedLinear,
    to_k: PackedLinear,
    to_v: PackedLinear,
    to_out: PackedLinear,
    norm_q: Tensor,
    norm_k: Tensor,
    heads: usize,
    scale: f32,
    eps: f32,
    dtype: Dtype,
}

impl Attention {
    fn load(scope: &Scope<'_>, config: &TransformerConfig, dtype: Dtype) -> Result<Self> {
        let d = config.width();
        Ok(Self {
            to_q: scope.linear("to_q", d, d, dtype)?,
            to_k: scope.linear("to_k", d, d, dtype)?,
            to_v: scope.linear("to_v", d, d, dtype)?,
            to_out: scope.linear("to_out.0", d, d, dtype)?,
            norm_q: scope.vector("norm_q.weight", d)?,
            norm_k: scope.vector("norm_k.weight", d)?,
            heads: config.num_attention_heads,
            scale: 1.0 / (config.attention_head_dim as f32).sqrt(),
            eps: config.eps,
            dtype,
        })
    }

    fn queries(&self, x: &Tensor, table: Option<&RopeTable>) -> Result<Tensor> {
        self.normed(x, &self.to_q, &self.norm_q, table)
    }

    fn keys_values(&self, x: &Tensor, table: Option<&RopeTable>) -> Result<KeysValues> {
        let keys = self.normed(x, &self.to_k, &self.norm_k, table)?;
        Ok(KeysValues { keys, values: linear(x, &self.to_v, Activation::None, self.dtype)? })
    }

    fn normed(&self, x: &Tensor, weight: &PackedLinear, norm: &Tensor, table: Option<&RopeTable>) -> Result<Tensor> {
        let y = rms_norm(&linear(x, weight, Activation::None, self.dtype)?, norm, self.eps, self.dtype)?;
        Ok(match table {
            Some(table) => rope(&y, self.heads, table)?,
            None => y,
        })
    }

    /// `residual += gate · out(attention(queries, keys, values))`; no gate means 1.
    fn attend(&self, queries: &Tensor, kv: &KeysValues, gate: Option<&Tensor>, residual: &mut Tensor) -> Result<()> {
        let mixed = attention(queries, &kv.keys, &kv.values, self.heads, self.scale, None, None)?;
        Ok(linear_residual(&mixed, &self.to_out, gate, residual)?)
    }
}

pub(super) struct Block {
    self_attention: Attention,
    cross_attention: Attention,
    /// Weight and bias of the norm before the cross-attention, when the model has one.
    cross_norm: Option<(Tensor, Tensor)>,
    ffn_in: PackedLinear,
    ffn_out: PackedLinear,
    /// [6, width], added to the shared modulation.
    table: Tensor,
    eps: f32,
    dtype: Dtype,
}

impl Block {
    pub(super) fn load(scope: &Scope<'_>, config: &TransformerConfig, dtype: Dtype) -> Result<Self> {
        let d = config.width();
        let norm = scope.at("norm2");
        let cross_norm = match config.cross_attn_norm {
            true => Some((norm.vector("weight", d)?, norm.vector("bias", d)?)),
            false => None,
        };
        Ok(Self {
            self_attention: Attention::load(&scope.at("attn1"), config, dtype)?,
            cross_attention: Attention::load(&scope.at("attn2"), config, dtype)?,
            cross_norm,
            ffn_in: scope.linear("ffn.net.0.proj", d, config.ffn_dim, dtype)?,
            ffn_out: scope.linear("ffn.net.2", config.ffn_dim, d, dtype)?,
            table: scope.tensor("scale_shift_table", &[1, 6, d], Dtype::F32)?.reshape(&[6, d])?,
            eps: config.eps,
            dtype,
        })
    }

    /// The keys and values of embedded text [text_length, width].
    pub(super) fn text_keys_values(&self, text: &Tensor) -> Result<KeysValues> {
        self.cross_attention.keys_values(text, None)
    }

    /// Updates the tokens x [tokens, width], f32, in place; `modulation` is [6, width].
    pub(super) fn forward(
        &self,
        x: &mut Tensor,
        modulation: &Tensor,
        text: &KeysValues,
        table: &RopeTable,
    ) -> Result<()> {
        let modulation = add(&self.table, modulation)?;
        let row = |i: usize| modulation.slice_outer(i..i + 1);
        let (shift, scale, gate) = (row(0)?, row(1)?, row(2)?);
        let y = layer_norm_modulate(x, &scale, &shift, self.eps, self.dtype)?;
        let queries = self.self_attention.queries(&y, Some(table))?;
        let kv = self.self_attention.keys_values(&y, Some(table))?;
        self.self_attention.attend(&queries, &kv, Some(&gate), x)?;

        let y = match &self.cross_norm {
            Some((weight, bias)) => layer_norm(x, Some(weight), Some(bias), self.eps, self.dtype)?,
            None => x.to_dtype(self.dtype),
        };
        let queries = self.cross_attention.queries(&y, None)?;
        // The handle of `y` is dropped first: `x` is updated in place only while nobody shares it.
        drop(y);
        self.cross_attention.attend(&queries, text, None, x)?;

        let (shift, scale, gate) = (row(3)?, row(4)?, row(5)?);
        let y = layer_norm_modulate(x, &scale, &shift, self.eps, self.dtype)?;
        let inner = linear(&y, &self.ffn_in, Activation::GeluTanh, self.dtype)?;
        Ok(linear_residual(&inner, &self.ffn_out, Some(&gate), x)?)
    }
}
