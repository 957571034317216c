//! A linear layer that adapters can address.

use crate::error::Result;
use crate::lora::LayerAdapters;
use crate::precision::Precision;
use crate::weights::Scope;
use kernels::{Activation, Dtype, PackedLinear, Tensor, activate, linear, linear_residual};

/// A linear layer with its name within its block (or within the model, outside of blocks).
pub(super) struct Layer {
    name: String,
    weight: PackedLinear,
}

impl Layer {
    pub(super) fn load(
        scope: &Scope<'_>,
        name: impl Into<String>,
        inputs: usize,
        outputs: usize,
        precision: Precision,
    ) -> Result<Self> {
        let name = name.into();
        let weight = precision.linear(scope, &name, inputs, outputs)?;
        Ok(Self { name, weight })
    }

    /// A layer whose weights are not stored as a linear layer's.
    pub(super) fn from_packed(name: &str, weight: PackedLinear) -> Self {
        Self { name: name.to_owned(), weight }
    }

    /// `activation(W·x + b + adapters)`: x [m, inputs] → [m, outputs] of dtype `out`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        activation: Activation,
        out: Dtype,
        adapters: Option<&LayerAdapters>,
    ) -> Result<Tensor> {
        let Some(correction) = adapters.and_then(|a| a.get(&self.name)) else {
            return Ok(linear(x, &self.weight, activation, out)?);
        };
        let mut y = linear(x, &self.weight, Activation::None, Dtype::F32)?;
        correction.add_to(x, None, &mut y)?;
        Ok(match activation {
            Activation::None => y.to_dtype(out),
            other => activate(&y, other).to_dtype(out),
        })
    }

    /// `residual += gate · (W·x + b + adapters)`: x [m, inputs], residual f32 [m, outputs]; no gate means 1.
    pub(super) fn add_to(
        &self,
        x: &Tensor,
        gate: Option<&Tensor>,
        residual: &mut Tensor,
        adapters: Option<&LayerAdapters>,
    ) -> Result<()> {
        linear_residual(x, &self.weight, gate, residual)?;
        match adapters.and_then(|a| a.get(&self.name)) {
            Some(correction) => correction.add_to(x, gate, residual),
            None => Ok(()),
        }
    }
}
