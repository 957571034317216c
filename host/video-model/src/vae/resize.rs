//! Layers that change a clip's size.

use super::layers::{CausalConv, History, Loading, joined};
use crate::error::Result;
use crate::weights::Scope;
use kernels::{
    Activation, Dtype, PackedConv2d, PackedConvTranspose2d, Padding, Tensor, conv_transpose2d, conv2d, slice_channels,
};

/// Doubles the picture's sides, and the frame rate when `time` is there.
pub(super) struct Upsample {
    conv: PackedConvTranspose2d,
    time: Option<CausalConv>,
    channels: usize,
}

impl Upsample {
    pub(super) fn load(
        scope: &Scope<'_>,
        [cin, cout]: [usize; 2],
        temporal: bool,
        loading: &mut Loading,
    ) -> Result<Self> {
        let time = temporal
            .then(|| CausalConv::load_temporal(&scope.at("time_conv"), [cin, 2 * cin], 1, loading))
            .transpose()?;
        let conv = scope.at("resample.1");
        let weight = merge_with_repetition(&conv.tensor("weight", &[cout, cin, 3, 3], Dtype::F32)?)?;
        let conv = PackedConvTranspose2d::new(&weight, Some(&conv.vector("bias", cout)?), loading.dtype)?;
        Ok(Self { conv, time, channels: cin })
    }

    pub(super) fn forward(&self, x: &Tensor, history: &mut History) -> Result<Tensor> {
        let doubled = match &self.time {
            Some(time) if history.is_past_first_chunk() => Some(self.double_rate(&time.forward(x, None, history)?)?),
            _ => None,
        };
        Ok(conv_transpose2d(doubled.as_ref().unwrap_or(x), &self.conv, Activation::None)?)
    }

    /// [f, h, w, 2c] → [2f, h, w, c]: the halves of the channels are successive frames.
    fn double_rate(&self, x: &Tensor) -> Result<Tensor> {
        let half = |i: usize| slice_channels(x, i * self.channels, self.channels);
        let halves = [half(0)?, half(1)?];
        let frame = |i: usize| halves[i % 2].slice_outer(i / 2..i / 2 + 1);
        match x.shape()[0] {
            1 => joined(halves.into()),
            f => joined((0..2 * f).map(frame).collect::<kernels::Result<Vec<_>>>()?),
        }
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
    pub(super) fn load(scope: &Scope<'_>, channels: usize, temporal: bool, loading: &mut Loading) -> Result<Self> {
        let time = temporal.then(|| CausalConv::load_temporal(&scope.at("time_conv"), [channels; 2], 2, loading));
        // Zeros to the right and below only.
        let padding = Padding { right: 1, bottom: 1, ..Padding::default() };
        let conv = scope.at("resample.1");
        let weight = conv.tensor("weight", &[channels, channels, 3, 3], loading.dtype)?;
        let conv = PackedConv2d::new(&weight, Some(&conv.vector("bias", channels)?), 2, padding, loading.dtype)?;
        Ok(Self { conv, time: time.transpose()? })
    }

    pub(super) fn forward(&self, x: &Tensor, history: &mut History) -> Result<Tensor> {
        let x = conv2d(x, &self.conv, Activation::None, None)?;
        match &self.time {
            Some(time) => time.halve_rate(x, history),
            None => Ok(x),
        }
    }
}
