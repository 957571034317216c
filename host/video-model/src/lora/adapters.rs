//! What a forward pass adds to its linear layers.

use crate::error::Result;
use kernels::{Activation, Dtype, PackedLinear, Tensor, linear, linear_residual};
use std::collections::BTreeMap;

/// The adapters of one transformer, by block and layer.
#[derive(Debug, Clone, Default)]
pub struct Adapters {
    blocks: BTreeMap<usize, LayerAdapters>,
    outside: LayerAdapters,
}

impl Adapters {
    /// Sets the correction of a layer, named as diffusers names it: `blocks.0.attn1.to_q`, `condition_embedder.time_proj`.
    pub fn insert(&mut self, layer: &str, correction: LowRank) {
        match block_and_layer(layer) {
            Some((block, name)) => self.blocks.entry(block).or_default().0.insert(name.to_owned(), correction),
            None => self.outside.0.insert(layer.to_owned(), correction),
        };
    }

    /// The corrections of block `index`, by names such as `attn1.to_q`.
    pub fn block(&self, index: usize) -> Option<&LayerAdapters> {
        self.blocks.get(&index)
    }

    /// The corrections of the layers outside of blocks.
    pub fn outside(&self) -> &LayerAdapters {
        &self.outside
    }

    /// Corrected layers.
    pub fn len(&self) -> usize {
        self.outside.0.len() + self.blocks.values().map(|block| block.0.len()).sum::<usize>()
    }

    /// Whether nothing is corrected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `blocks.3.ffn.net.2` is layer `ffn.net.2` of block 3.
fn block_and_layer(name: &str) -> Option<(usize, &str)> {
    let (block, layer) = name.strip_prefix("blocks.")?.split_once('.')?;
    Some((block.parse().ok()?, layer))
}

/// Corrections by layer name.
#[derive(Debug, Clone, Default)]
pub struct LayerAdapters(BTreeMap<String, LowRank>);

impl LayerAdapters {
    /// The correction of a layer.
    pub fn get(&self, layer: &str) -> Option<&LowRank> {
        self.0.get(layer)
    }
}

/// `up · down`: a correction of a weight [outputs, inputs] by a product of rank `down.n()`.
#[derive(Debug, Clone)]
pub struct LowRank {
    down: PackedLinear,
    up: PackedLinear,
}

impl LowRank {
    /// `down` [rank, inputs] and `up` [outputs, rank], which carries every scale; `bias` `[outputs]` is added to the layer's.
    pub fn new(down: &Tensor, up: &Tensor, bias: Option<&Tensor>, dtype: Dtype) -> Result<Self> {
        Ok(Self { down: PackedLinear::new(down, None, dtype)?, up: PackedLinear::new(up, bias, dtype)? })
    }

    /// `residual += gate · up · down · x`: x [m, inputs], residual f32 [m, outputs].
    pub fn add_to(&self, x: &Tensor, gate: Option<&Tensor>, residual: &mut Tensor) -> Result<()> {
        let narrow = linear(x, &self.down, Activation::None, self.up.dtype())?;
        Ok(linear_residual(&narrow, &self.up, gate, residual)?)
    }
}
