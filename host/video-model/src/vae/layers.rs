//! The pieces that encoder and decoder are made of. Clips are [f, h, w, c].

use crate::error::Result;
use crate::weights::Scope;
use kernels::{
    Activation, CausalConv3d, Dtype, PackedLinear, Padding, Tensor, attention, causal_conv3d, channel_norm_silu, linear,
};
use std::collections::HashMap;

/// What a clip's earlier chunks left behind: for each convolution with a memory, the last frames of its input.
#[derive(Default)]
pub(super) struct History {
    /// Set once the first chunk is through. Layers that change the frame rate let the first chunk pass unchanged and
    /// never remember it: diffusers calls that state "Rep".
    past_first_chunk: bool,
    frames: HashMap<LayerId, Tensor>,
}

impl History {
    pub(super) fn is_past_first_chunk(&self) -> bool {
        self.past_first_chunk
    }

    /// To be called after each chunk.
    pub(super) fn end_chunk(&mut self) {
        self.past_first_chunk = true;
    }

    /// Keeps the newest `count` frames of what `layer` has seen.
    fn remember(&mut self, layer: LayerId, x: &Tensor, count: usize) -> Result<()> {
        let fresh = x.shape()[0];
        let kept = match self.frames.get(&layer) {
            Some(old) if fresh < count => {
                let from = (old.shape()[0] + fresh).saturating_sub(count);
                Tensor::concat_outer(&[&old.slice_outer(from..old.shape()[0])?, x])?
            }
            // A chunk that is kept whole shares its storage.
            _ if fresh <= count => x.clone(),
            _ => x.slice_outer(fresh - count..fresh)?,
        };
        self.frames.insert(layer, kept);
        Ok(())
    }
}

/// Names a layer within its encoder or decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct LayerId(usize);

/// What loading a network carries from layer to layer.
pub(super) struct Loading {
    /// Of the products.
    pub(super) dtype: Dtype,
    layers: usize,
}

impl Loading {
    pub(super) fn new(dtype: Dtype) -> Self {
        Self { dtype, layers: 0 }
    }

    fn next_id(&mut self) -> LayerId {
        self.layers += 1;
        LayerId(self.layers)
    }
}

/// A convolution over the current and the earlier frames.
pub(super) struct CausalConv {
    id: LayerId,
    conv: CausalConv3d,
}

impl CausalConv {
    /// A kernel of 3×3×3, or of one tap when `taps` is 1; the picture keeps its size.
    pub(super) fn load(scope: &Scope<'_>, [cin, cout]: [usize; 2], taps: usize, loading: &mut Loading) -> Result<Self> {
        let weight = scope.tensor("weight", &[cout, cin, taps, taps, taps], loading.dtype)?;
        Self::pack(&weight, &scope.vector("bias", cout)?, loading)
    }

    /// A kernel over the picture of 3×3×3 or of one tap, with its bias.
    pub(super) fn pack(weight: &Tensor, bias: &Tensor, loading: &mut Loading) -> Result<Self> {
        let padding = Padding::all(weight.shape()[weight.shape().len() - 1] / 2);
        let conv = CausalConv3d::new(weight, Some(bias), 1, 1, padding, loading.dtype)?;
        Ok(Self { id: loading.next_id(), conv })
    }

    /// A kernel of three taps in time.
    pub(super) fn load_temporal(
        scope: &Scope<'_>,
        [cin, cout]: [usize; 2],
        stride: usize,
        loading: &mut Loading,
    ) -> Result<Self> {
        let weight = scope.tensor("weight", &[cout, cin, 3, 1, 1], loading.dtype)?;
        let bias = scope.vector("bias", cout)?;
        let conv = CausalConv3d::new(&weight, Some(&bias), stride, 1, Padding::default(), loading.dtype)?;
        Ok(Self { id: loading.next_id(), conv })
    }

    /// `conv(x) + residual`, with earlier frames from the history.
    pub(super) fn forward(&self, x: &Tensor, residual: Option<&Tensor>, history: &mut History) -> Result<Tensor> {
        let y = causal_conv3d(x, history.frames.get(&self.id), &self.conv, Activation::None, residual)?;
        // A kernel without weight on earlier frames needs no memory of them.
        if !self.conv.is_per_frame() {
            history.remember(self.id, x, self.conv.history())?;
        }
        Ok(y)
    }

    /// The convolution of a clip whose first frame passes as it is: each later pair is merged with the one frame before
    /// it, and nothing is padded.
    pub(super) fn halve_rate(&self, x: Tensor, history: &mut History) -> Result<Tensor> {
        let merged = match history.frames.get(&self.id) {
            Some(before) => Some(causal_conv3d(&x, Some(before), &self.conv, Activation::None, None)?),
            None => None,
        };
        history.remember(self.id, &x, 1)?;
        Ok(merged.unwrap_or(x))
    }
}

/// RMS norm over a pixel's channels.
pub(super) struct ChannelNorm(Tensor);

impl ChannelNorm {
    /// `gamma` has `unit_dims` dimensions of length 1 after the channels: 3 in clips, 2 in pictures.
    pub(super) fn load(scope: &Scope<'_>, channels: usize, unit_dims: usize) -> Result<Self> {
        let shape: Vec<usize> = [channels].into_iter().chain(std::iter::repeat_n(1, unit_dims)).collect();
        Ok(Self(scope.tensor("gamma", &shape, Dtype::F32)?.reshape(&[channels])?))
    }

    pub(super) fn silu(&self, x: &Tensor) -> Result<Tensor> {
        Ok(channel_norm_silu(x, &self.0, true)?)
    }
}

/// Two convolutions around a shortcut.
pub(super) struct ResidualBlock {
    norm1: ChannelNorm,
    conv1: CausalConv,
    norm2: ChannelNorm,
    conv2: CausalConv,
    shortcut: Option<CausalConv>,
}

impl ResidualBlock {
    pub(super) fn load(scope: &Scope<'_>, cin: usize, cout: usize, loading: &mut Loading) -> Result<Self> {
        let shortcut = (cin != cout).then(|| CausalConv::load(&scope.at("conv_shortcut"), [cin, cout], 1, loading));
        Ok(Self {
            shortcut: shortcut.transpose()?,
            norm1: ChannelNorm::load(&scope.at("norm1"), cin, 3)?,
            conv1: CausalConv::load(&scope.at("conv1"), [cin, cout], 3, loading)?,
            norm2: ChannelNorm::load(&scope.at("norm2"), cout, 3)?,
            conv2: CausalConv::load(&scope.at("conv2"), [cout, cout], 3, loading)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, history: &mut History) -> Result<Tensor> {
        // In one expression: what lies between is dropped before the second convolution, where a level needs the most memory.
        let y = self.norm2.silu(&self.conv1.forward(&self.norm1.silu(x)?, None, history)?)?;
        match &self.shortcut {
            Some(shortcut) => self.conv2.forward(&y, Some(&shortcut.forward(x, None, history)?), history),
            None => self.conv2.forward(&y, Some(x), history),
        }
    }
}

/// Attention of one head between the pixels of each frame.
struct FrameAttention {
    norm: ChannelNorm,
    to_q: PackedLinear,
    to_k: PackedLinear,
    to_v: PackedLinear,
    proj: PackedLinear,
}

impl FrameAttention {
    fn load(scope: &Scope<'_>, c: usize, dtype: Dtype) -> Result<Self> {
        let qkv = scope.at("to_qkv");
        let weight = qkv.tensor("weight", &[3 * c, c, 1, 1], dtype)?.reshape(&[3 * c, c])?;
        let bias = qkv.vector("bias", 3 * c)?;
        let part = |i: usize| -> Result<PackedLinear> {
            let rows = i * c..(i + 1) * c;
            Ok(PackedLinear::new(&weight.slice_outer(rows.clone())?, Some(&bias.slice_outer(rows)?), dtype)?)
        };
        let proj = scope.at("proj");
        let proj_weight = proj.tensor("weight", &[c, c, 1, 1], dtype)?.reshape(&[c, c])?;
        Ok(Self {
            norm: ChannelNorm::load(&scope.at("norm"), c, 2)?,
            to_q: part(0)?,
            to_k: part(1)?,
            to_v: part(2)?,
            proj: PackedLinear::new(&proj_weight, Some(&proj.vector("bias", c)?), dtype)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let &[f, h, w, c] = x.shape() else { return Ok(x.clone()) };
        let dtype = self.to_q.dtype();
        let y = channel_norm_silu(x, &self.norm.0, false)?.reshape(&[f * h * w, c])?;
        let project = |weight: &PackedLinear| linear(&y, weight, Activation::None, dtype);
        let (q, k, v) = (project(&self.to_q)?, project(&self.to_k)?, project(&self.to_v)?);
        let scale = 1.0 / (c as f32).sqrt();
        let mut mixed = Vec::with_capacity(f);
        for frame in 0..f {
            let rows = frame * h * w..(frame + 1) * h * w;
            let of = |t: &Tensor| if f == 1 { Ok(t.clone()) } else { t.slice_outer(rows.clone()) };
            mixed.push(attention(&of(&q)?, &of(&k)?, &of(&v)?, 1, scale, None, None)?);
        }
        let y = linear(&joined(mixed)?, &self.proj, Activation::None, x.dtype())?.reshape(x.shape())?;
        Ok(kernels::add(x, &y)?)
    }
}

/// Residual block, attention, residual block.
pub(super) struct MidBlock {
    before: ResidualBlock,
    attention: FrameAttention,
    after: ResidualBlock,
}

impl MidBlock {
    pub(super) fn load(scope: &Scope<'_>, channels: usize, loading: &mut Loading) -> Result<Self> {
        Ok(Self {
            before: ResidualBlock::load(&scope.at("resnets.0"), channels, channels, loading)?,
            attention: FrameAttention::load(&scope.at("attentions.0"), channels, loading.dtype)?,
            after: ResidualBlock::load(&scope.at("resnets.1"), channels, channels, loading)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, history: &mut History) -> Result<Tensor> {
        let x = self.before.forward(x, history)?;
        self.after.forward(&self.attention.forward(&x)?, history)
    }
}

/// Parts of a clip as one; a single part is not copied.
pub(super) fn joined(mut parts: Vec<Tensor>) -> Result<Tensor> {
    match parts.len() {
        1 => Ok(parts.swap_remove(0)),
        _ => Ok(Tensor::concat_outer(&parts.iter().collect::<Vec<_>>())?),
    }
}
