//! The pieces that encoder and decoder are made of. Clips are [f, h, w, c].

use crate::error::Result;
use crate::weights::Scope;
use kernels::{
    Activation, CausalConv3d, Dtype, PackedConv2d, PackedConvTranspose2d, PackedLinear, Padding, Tensor, attention,
    causal_conv3d, channel_norm_silu, conv_transpose2d, conv2d, linear, slice_channels,
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
            _ => x.slice_outer(fresh.saturating_sub(count)..fresh)?,
        };
        self.frames.insert(layer, kept);
        Ok(())
    }
}

/// Names a layer within its encoder or decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct LayerId(usize);

/// Hands out layer ids while a network loads.
#[derive(Default)]
pub(super) struct LayerIds(usize);

impl LayerIds {
    fn next(&mut self) -> LayerId {
        self.0 += 1;
        LayerId(self.0)
    }
}

/// A convolution over the current and the earlier frames.
pub(super) struct CausalConv {
    id: LayerId,
    conv: CausalConv3d,
}

impl CausalConv {
    /// A kernel of 3×3×3, or of one tap when `taps` is 1; the picture keeps its size.
    pub(super) fn load(
        scope: &Scope<'_>,
        [cin, cout]: [usize; 2],
        taps: usize,
        dtype: Dtype,
        ids: &mut LayerIds,
    ) -> Result<Self> {
        let weight = scope.tensor("weight", &[cout, cin, taps, taps, taps], dtype)?;
        Self::pack(scope, &weight, cout, 1, Padding::all(taps / 2), dtype, ids)
    }

    /// A kernel of three taps in time.
    fn load_temporal(
        scope: &Scope<'_>,
        [cin, cout]: [usize; 2],
        stride: usize,
        dtype: Dtype,
        ids: &mut LayerIds,
    ) -> Result<Self> {
        let weight = scope.tensor("weight", &[cout, cin, 3, 1, 1], dtype)?;
        Self::pack(scope, &weight, cout, stride, Padding::default(), dtype, ids)
    }

    fn pack(
        scope: &Scope<'_>,
        weight: &Tensor,
        cout: usize,
        stride: usize,
        padding: Padding,
        dtype: Dtype,
        ids: &mut LayerIds,
    ) -> Result<Self> {
        let bias = scope.vector("bias", cout)?;
        Ok(Self { id: ids.next(), conv: CausalConv3d::new(weight, Some(&bias), stride, 1, padding, dtype)? })
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
    pub(super) fn load(scope: &Scope<'_>, cin: usize, cout: usize, dtype: Dtype, ids: &mut LayerIds) -> Result<Self> {
        let shortcut = (cin != cout).then(|| CausalConv::load(&scope.at("conv_shortcut"), [cin, cout], 1, dtype, ids));
        Ok(Self {
            shortcut: shortcut.transpose()?,
            norm1: ChannelNorm::load(&scope.at("norm1"), cin, 3)?,
            conv1: CausalConv::load(&scope.at("conv1"), [cin, cout], 3, dtype, ids)?,
            norm2: ChannelNorm::load(&scope.at("norm2"), cout, 3)?,
            conv2: CausalConv::load(&scope.at("conv2"), [cout, cout], 3, dtype, ids)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, history: &mut History) -> Result<Tensor> {
        let y = self.conv1.forward(&self.norm1.silu(x)?, None, history)?;
        let y = self.norm2.silu(&y)?;
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
            let of = |t: &Tensor| t.slice_outer(rows.clone());
            mixed.push(attention(&of(&q)?, &of(&k)?, &of(&v)?, 1, scale, None, None)?);
        }
        let mixed = Tensor::concat_outer(&mixed.iter().collect::<Vec<_>>())?;
        let y = linear(&mixed, &self.proj, Activation::None, x.dtype())?.reshape(x.shape())?;
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
    pub(super) fn load(scope: &Scope<'_>, channels: usize, dtype: Dtype, ids: &mut LayerIds) -> Result<Self> {
        Ok(Self {
            before: ResidualBlock::load(&scope.at("resnets.0"), channels, channels, dtype, ids)?,
            attention: FrameAttention::load(&scope.at("attentions.0"), channels, dtype)?,
            after: ResidualBlock::load(&scope.at("resnets.1"), channels, channels, dtype, ids)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, history: &mut History) -> Result<Tensor> {
        let x = self.before.forward(x, history)?;
        self.after.forward(&self.attention.forward(&x)?, history)
    }
}

/// Doubles the picture's sides, and the frame rate when `time` is there; halves the channels.
pub(super) struct Upsample {
    conv: PackedConvTranspose2d,
    time: Option<CausalConv>,
    channels: usize,
}

impl Upsample {
    pub(super) fn load(
        scope: &Scope<'_>,
        channels: usize,
        temporal: bool,
        dtype: Dtype,
        ids: &mut LayerIds,
    ) -> Result<Self> {
        let time = temporal
            .then(|| CausalConv::load_temporal(&scope.at("time_conv"), [channels, 2 * channels], 1, dtype, ids));
        let (conv, cout) = (scope.at("resample.1"), channels / 2);
        let weight = merge_with_repetition(&conv.tensor("weight", &[cout, channels, 3, 3], Dtype::F32)?)?;
        let conv = PackedConvTranspose2d::new(&weight, Some(&conv.vector("bias", cout)?), dtype)?;
        Ok(Self { conv, time: time.transpose()?, channels })
    }

    pub(super) fn forward(&self, x: &Tensor, history: &mut History) -> Result<Tensor> {
        let doubled = match &self.time {
            Some(time) if history.past_first_chunk => Some(self.double_rate(&time.forward(x, None, history)?)?),
            _ => None,
        };
        let x = doubled.as_ref().unwrap_or(x);
        let enlarge = |frame: Tensor| -> Result<Tensor> {
            let picture = frame.reshape(&frame.shape()[1..])?;
            let larger = conv_transpose2d(&picture, &self.conv, Activation::None)?;
            let &[h, w, c] = larger.shape() else { return Ok(larger) };
            Ok(larger.reshape(&[1, h, w, c])?)
        };
        if x.shape()[0] == 1 {
            return enlarge(x.clone());
        }
        let frames = (0..x.shape()[0]).map(|i| enlarge(x.slice_outer(i..i + 1)?)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::concat_outer(&frames.iter().collect::<Vec<_>>())?)
    }

    /// [f, h, w, 2c] → [2f, h, w, c]: the halves of the channels are successive frames.
    fn double_rate(&self, x: &Tensor) -> Result<Tensor> {
        let halves = [slice_channels(x, 0, self.channels)?, slice_channels(x, self.channels, self.channels)?];
        let frames = (0..2 * x.shape()[0]).map(|i| halves[i % 2].slice_outer(i / 2..i / 2 + 1));
        let frames = frames.collect::<kernels::Result<Vec<_>>>()?;
        Ok(Tensor::concat_outer(&frames.iter().collect::<Vec<_>>())?)
    }
}

/// A 3×3 kernel [cout, cin, 3, 3] on a picture whose pixels were each repeated 2×2, as the transposed convolution
/// [cin, cout, 4, 4] on the picture itself: 2.25 times fewer operations, and the large picture is never made.
///
/// Output row 2y reads rows 2y−1, 2y, 2y+1 of the repeated picture, which are rows y−1, y, y; output row 2y+1 reads
/// y, y, y+1. The taps that meet on one row are added.
fn merge_with_repetition(kernel: &Tensor) -> Result<Tensor> {
    const MEETING: [std::ops::RangeInclusive<usize>; 4] = [2..=2, 1..=2, 0..=1, 0..=0];
    let &[cout, cin, 3, 3] = kernel.shape() else { return Ok(kernel.clone()) };
    let taps = kernel.to_vec_f32();
    let mut merged = Vec::with_capacity(cin * cout * 16);
    for c in 0..cin {
        for o in 0..cout {
            let plane = &taps[(o * cin + c) * 9..][..9];
            for rows in MEETING {
                let sum = |columns: std::ops::RangeInclusive<usize>| -> f32 {
                    rows.clone().flat_map(|y| columns.clone().map(move |x| plane[3 * y + x])).sum()
                };
                merged.extend(MEETING.map(sum));
            }
        }
    }
    Ok(Tensor::from_vec(merged, &[cin, cout, 4, 4])?)
}

/// Halves the picture's sides, and the frame rate when `time` is there.
pub(super) struct Downsample {
    conv: PackedConv2d,
    time: Option<CausalConv>,
}

impl Downsample {
    pub(super) fn load(
        scope: &Scope<'_>,
        channels: usize,
        temporal: bool,
        dtype: Dtype,
        ids: &mut LayerIds,
    ) -> Result<Self> {
        let time = temporal.then(|| CausalConv::load_temporal(&scope.at("time_conv"), [channels; 2], 2, dtype, ids));
        // Zeros to the right and below only.
        let padding = Padding { right: 1, bottom: 1, ..Padding::default() };
        let conv = scope.at("resample.1");
        let weight = conv.tensor("weight", &[channels, channels, 3, 3], dtype)?;
        let conv = PackedConv2d::new(&weight, Some(&conv.vector("bias", channels)?), 2, padding, dtype)?;
        Ok(Self { conv, time: time.transpose()? })
    }

    pub(super) fn forward(&self, x: &Tensor, history: &mut History) -> Result<Tensor> {
        let x = conv2d(x, &self.conv, Activation::None, None)?;
        let Some(time) = &self.time else { return Ok(x) };
        // The first frame passes as it is; each later pair is merged with the one frame before it, and nothing is padded.
        let merged = match history.frames.get(&time.id) {
            Some(before) => Some(causal_conv3d(&x, Some(before), &time.conv, Activation::None, None)?),
            None => None,
        };
        history.remember(time.id, &x, 1)?;
        Ok(merged.unwrap_or(x))
    }
}
