//! What a forward pass adds to its linear layers.

use super::file::{Correction, LoraFile};
use crate::error::Result;
use kernels::{Activation, Dtype, PackedLinear, Tensor, concat_channels, linear, linear_combination, linear_residual};
use std::collections::{BTreeMap, BTreeSet};

/// The adapters of one transformer, by block and layer.
#[derive(Debug, Clone, Default)]
pub struct Adapters {
    blocks: BTreeMap<usize, LayerAdapters>,
    outside: LayerAdapters,
}

impl Adapters {
    /// The sum of several files, each at its strength (1 is what its authors meant; 0 and negative numbers are possible),
    /// packed for products in `dtype`.
    pub fn new(files: &[(&LoraFile, f32)], dtype: Dtype) -> Result<Self> {
        let mut adapters = Self::default();
        for layer in files.iter().flat_map(|(file, _)| file.layers()).collect::<BTreeSet<_>>() {
            let mut corrections = Vec::new();
            for (file, strength) in files {
                corrections.extend(file.correction(layer, *strength)?);
            }
            let low_rank = LowRank::sum(&corrections, dtype)?;
            match block_and_layer(layer) {
                Some((block, name)) => adapters.blocks.entry(block).or_default().0.insert(name.to_owned(), low_rank),
                None => adapters.outside.0.insert(layer.to_owned(), low_rank),
            };
        }
        Ok(adapters)
    }

    /// The corrections of block `index`, by names such as `attn1.to_q`.
    pub fn block(&self, index: usize) -> Option<&LayerAdapters> {
        self.blocks.get(&index)
    }

    /// The corrections of the layers outside of blocks.
    pub fn outside(&self) -> &LayerAdapters {
        &self.outside
    }

    /// Bytes of memory that the packed matrices take.
    pub fn stored_bytes(&self) -> usize {
        let layers = self.blocks.values().chain([&self.outside]).flat_map(|layers| layers.0.values());
        layers.map(|layer| layer.down.stored_bytes() + layer.up.stored_bytes()).sum()
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

/// `up · down`: a correction of a weight [outputs, inputs] by a product of low rank.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// [rank, inputs]
    down: PackedLinear,
    /// [outputs, rank], with every scale, and what is added to the layer's bias.
    up: PackedLinear,
}

impl LowRank {
    /// Several corrections are one of the sum of their ranks.
    fn sum(corrections: &[Correction], dtype: Dtype) -> Result<Self> {
        let down = Tensor::concat_outer(&corrections.iter().map(|c| &c.down).collect::<Vec<_>>())?;
        let up = concat_channels(&corrections.iter().map(|c| &c.up).collect::<Vec<_>>())?;
        let biases: Vec<_> = corrections.iter().filter_map(|c| c.bias.as_ref()).map(|bias| (1.0, bias)).collect();
        let bias = if biases.is_empty() { None } else { Some(linear_combination(&biases)?) };
        Ok(Self { down: PackedLinear::new(&down, None, dtype)?, up: PackedLinear::new(&up, bias.as_ref(), dtype)? })
    }

    /// `residual += gate · (up · down · x + bias)`: x [m, inputs], residual f32 [m, outputs].
    pub fn add_to(&self, x: &Tensor, gate: Option<&Tensor>, residual: &mut Tensor) -> Result<()> {
        let narrow = linear(x, &self.down, Activation::None, self.up.dtype())?;
        Ok(linear_residual(&narrow, &self.up, gate, residual)?)
    }
}
