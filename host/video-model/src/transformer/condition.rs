//! The timestep's embedding, all in f32: a few thousand operations that steer every layer.

use crate::error::Result;
use crate::weights::Scope;
use kernels::{Activation, Dtype, PackedLinear, Tensor, activate, linear};

/// Sinusoids → two layers (`temb`) → the modulation that all blocks share.
pub(super) struct TimeEmbedding {
    frequencies: usize,
    linear_1: PackedLinear,
    linear_2: PackedLinear,
    projection: PackedLinear,
}

impl TimeEmbedding {
    pub(super) fn load(condition: &Scope<'_>, frequencies: usize, width: usize) -> Result<Self> {
        Ok(Self {
            frequencies,
            linear_1: condition.linear("time_embedder.linear_1", frequencies, width, Dtype::F32)?,
            linear_2: condition.linear("time_embedder.linear_2", width, width, Dtype::F32)?,
            projection: condition.linear("time_proj", width, 6 * width, Dtype::F32)?,
        })
    }

    /// The embedding itself [1, width], for the head, and its projection [6, width], for the blocks.
    pub(super) fn forward(&self, timestep: f32) -> Result<(Tensor, Tensor)> {
        let waves = Tensor::from_vec(sinusoids(timestep, self.frequencies), &[1, self.frequencies])?;
        let hidden = linear(&waves, &self.linear_1, Activation::Silu, Dtype::F32)?;
        let time = linear(&hidden, &self.linear_2, Activation::None, Dtype::F32)?;
        let modulation = linear(&activate(&time, Activation::Silu), &self.projection, Activation::None, Dtype::F32)?;
        let width = time.len();
        Ok((time, modulation.reshape(&[6, width])?))
    }
}

/// Cosines, then sines, of `timestep · 10000^(−i / half)`; f32 throughout, as the reference.
fn sinusoids(timestep: f32, count: usize) -> Vec<f32> {
    let half = count / 2;
    let step = -(10_000f64.ln() as f32);
    let angles = (0..half).map(|i| timestep * (step * i as f32 / half as f32).exp());
    angles.clone().map(f32::cos).chain(angles.map(f32::sin)).collect()
}
