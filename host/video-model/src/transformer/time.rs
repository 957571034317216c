//! The timestep's embedding, all in f32: a few thousand operations that steer every layer.

use super::layer::Layer;
use crate::error::{ModelError, Result};
use crate::lora::LayerAdapters;
use crate::precision::Precision;
use crate::weights::Scope;
use kernels::{Activation, Dtype, Tensor, activate, add, slice_channels};

/// How noisy the latent is, 0 (clean) to 1000 (noise).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Timestep<'a> {
    /// All of the clip equally.
    Clip(f32),
    /// One value per latent frame: known frames are clean, the others are not (Wan 2.2 TI2V-5B).
    Frames(&'a [f32]),
}

impl Timestep<'_> {
    /// The timesteps of a latent of `frames` frames: one for all or one each.
    fn groups(&self, frames: usize) -> Result<Vec<f32>> {
        match *self {
            Self::Clip(timestep) => Ok(vec![timestep]),
            // Most steps' frames agree; one group costs less than many.
            Self::Frames(all) if all.len() == frames && all.iter().all(|t| *t == all[0]) => Ok(vec![all[0]]),
            Self::Frames(all) if all.len() == frames => Ok(all.to_vec()),
            Self::Frames(all) => {
                Err(ModelError::Input(format!("{} timesteps for {frames} rows of patches in time", all.len())))
            }
        }
    }
}

/// Sinusoids of a step's timesteps: the only thing in a pass that comes from the host.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Waves {
    /// [groups, frequencies]
    pub(super) values: Vec<f32>,
    pub(super) groups: usize,
}

impl Waves {
    pub(super) fn tensor(&self) -> Result<Tensor> {
        Ok(Tensor::from_f32(&self.values, &[self.groups, self.values.len() / self.groups])?)
    }
}

/// Sinusoids → two layers (`temb`) → the modulation that all blocks share.
pub(super) struct TimeEmbedding {
    frequencies: usize,
    linear_1: Layer,
    linear_2: Layer,
    projection: Layer,
}

/// What a step's timesteps do to the layers. A tensor [groups, width] has one row for all tokens, or one per frame.
#[derive(Clone)]
pub(super) struct Modulation {
    /// For the head: the embedding itself.
    pub(super) time: Tensor,
    /// For the blocks: shift, scale and gate of the self-attention, then of the feed-forward layer.
    pub(super) blocks: [Tensor; 6],
}

impl Modulation {
    /// The same for `count` clips whose tokens follow each other.
    pub(super) fn repeated(&self, count: usize) -> Result<Self> {
        let repeat = |tensor: &Tensor| -> Result<Tensor> {
            match tensor.shape()[0] {
                1 => Ok(tensor.clone()),
                _ => Ok(Tensor::concat_outer(&vec![tensor; count])?),
            }
        };
        let [a, b, c, d, e, f] = &self.blocks;
        let blocks = [repeat(a)?, repeat(b)?, repeat(c)?, repeat(d)?, repeat(e)?, repeat(f)?];
        Ok(Self { time: repeat(&self.time)?, blocks })
    }
}

impl TimeEmbedding {
    pub(super) fn load(model: &Scope<'_>, frequencies: usize, width: usize) -> Result<Self> {
        let layer = |name: &str, inputs, outputs| {
            Layer::load(model, format!("condition_embedder.{name}"), inputs, outputs, Precision::F32)
        };
        Ok(Self {
            frequencies,
            linear_1: layer("time_embedder.linear_1", frequencies, width)?,
            linear_2: layer("time_embedder.linear_2", width, width)?,
            projection: layer("time_proj", width, 6 * width)?,
        })
    }

    /// The timesteps of a clip of `frames` rows of patches in time as sinusoids [groups, frequencies].
    pub(super) fn waves(&self, timestep: Timestep<'_>, frames: usize) -> Result<Waves> {
        let timesteps = timestep.groups(frames)?;
        let values = timesteps.iter().flat_map(|t| sinusoids(*t, self.frequencies)).collect();
        Ok(Waves { values, groups: timesteps.len() })
    }

    /// What sinusoids [groups, frequencies] make of the layers.
    pub(super) fn forward(&self, waves: &Tensor, adapters: Option<&LayerAdapters>) -> Result<Modulation> {
        let hidden = self.linear_1.forward(waves, Activation::Silu, Dtype::F32, adapters)?;
        let time = self.linear_2.forward(&hidden, Activation::None, Dtype::F32, adapters)?;
        let all = activate(&time, Activation::Silu);
        let all = self.projection.forward(&all, Activation::None, Dtype::F32, adapters)?;
        let width = time.shape()[1];
        let part = |i: usize| slice_channels(&all, i * width, width);
        Ok(Modulation { time, blocks: [part(0)?, part(1)?, part(2)?, part(3)?, part(4)?, part(5)?] })
    }
}

/// A learned row [1, width] added to every group's: what one block, or the head, makes of the shared modulation.
pub(super) fn shifted(groups: &Tensor, row: &Tensor) -> Result<Tensor> {
    match groups.shape()[0] {
        1 => Ok(add(row, groups)?),
        count => Ok(add(&Tensor::concat_outer(&vec![row; count])?, groups)?),
    }
}

/// Cosines, then sines, of `timestep · 10000^(−i / half)`; f32 throughout, as the reference.
fn sinusoids(timestep: f32, count: usize) -> Vec<f32> {
    let half = count / 2;
    let step = -(10_000f64.ln() as f32);
    let angles = (0..half).map(|i| timestep * (step * i as f32 / half as f32).exp());
    angles.clone().map(f32::cos).chain(angles.map(f32::sin)).collect()
}
