//! IFNet: the network of RIFE 4.25 (Huang et al., ECCV 2022) at any widths.
//!
//! Five blocks refine the flow from the frame at t to both pictures, from coarse to fine; each sees the pictures warped
//! by the flow so far. Pictures are [h, w, 3] in 0..=1 with sides that are multiples of [`SIDE_MULTIPLE`].

use crate::error::{ModelError, Result};
use crate::weights::Scope;
use kernels::{
    Activation, Dtype, PackedConv2d, PackedConvTranspose2d, Padding, Tensor, add, backward_warp, blend_mask,
    concat_channels, conv_transpose2d, conv2d, linear_combination, pixel_shuffle2x, resize_bilinear, slice_channels,
};
use serde::Deserialize;

/// The coarsest scale (16) times the two halvings within a block (4).
pub(super) const SIDE_MULTIPLE: usize = 64;
/// Channels of a picture's feature map.
const FEATURES: usize = 4;
/// Channels that a block hands on beside the flow and the mask.
const CARRIED: usize = 8;
const FLOW: usize = 4;
const RESIDUALS: usize = 8;
const LEAKY: Activation = Activation::LeakyRelu(0.2);

/// `config.json` of an interpolator.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct IfNetConfig {
    #[serde(rename = "_class_name")]
    class_name: String,
    /// Width of each block.
    widths: Vec<usize>,
    /// Each block works at 1/scale of the resolution.
    scales: Vec<usize>,
    /// Width of the feature extractor.
    head: usize,
}

impl IfNetConfig {
    pub(super) fn check(&self, file: &str) -> Result<()> {
        if self.class_name != "IFNet" {
            return Err(ModelError::Unsupported(format!("interpolator {} ({file})", self.class_name)));
        }
        if self.widths.is_empty() || self.widths.len() != self.scales.len() {
            return Err(ModelError::config(file, "widths and scales must be lists of one length"));
        }
        if self.widths.iter().chain([&self.head]).any(|w| !(1..=4096).contains(w))
            || self.widths.iter().any(|w| w % 2 == 1)
        {
            return Err(ModelError::config(
                file,
                "widths must be even and between 2 and 4096, head between 1 and 4096",
            ));
        }
        if self.scales.iter().any(|s| ![1, 2, 4, 8, 16].contains(s)) {
            return Err(ModelError::config(file, "scales must be among 1, 2, 4, 8 and 16"));
        }
        Ok(())
    }
}

/// A picture with what the network needs of it for any t.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    image: Tensor,
    features: Tensor,
}

pub(super) struct IfNet {
    head: Head,
    blocks: Vec<(usize, Block)>,
}

impl IfNet {
    pub(super) fn load(scope: &Scope<'_>, config: &IfNetConfig, dtype: Dtype) -> Result<Self> {
        let first = 2 * (3 + FEATURES) + 1;
        let later = first + 1 + CARRIED + FLOW;
        let block = |(i, (&width, &scale)): (usize, (&usize, &usize))| {
            let inputs = if i == 0 { first } else { later };
            Ok((scale, Block::load(&scope.at(format!("block{i}")), inputs, width, dtype)?))
        };
        let blocks = config.widths.iter().zip(&config.scales).enumerate().map(block).collect::<Result<_>>()?;
        Ok(Self { head: Head::load(&scope.at("encode"), config.head, dtype)?, blocks })
    }

    /// Computes the features of a picture.
    pub(super) fn prepare(&self, image: Tensor) -> Result<Prepared> {
        Ok(Prepared { features: self.head.forward(&image)?, image })
    }

    /// The frame at `t` in 0..=1, not clamped. `trace` sees each block's flow [h, w, 4] (to the first picture, then to
    /// the last; x then y, in pixels) and mask [h, w, 1] before its sigmoid.
    pub(super) fn forward(
        &self,
        first: &Prepared,
        last: &Prepared,
        t: f32,
        mut trace: impl FnMut(&Tensor, &Tensor),
    ) -> Result<Tensor> {
        let mut state: Option<State> = None;
        for (scale, block) in &self.blocks {
            let next = match state {
                None => State::of(block.forward(&self.see(first, last, t, *scale)?, *scale)?)?,
                Some(state) => {
                    let seen = self.see_warped(first, last, t, &state, *scale)?;
                    let change = State::of(block.forward(&seen, *scale)?)?;
                    State { flow: add(&state.flow, &change.flow)?, ..change }
                }
            };
            trace(&next.flow, &next.mask);
            state = Some(next);
        }
        let State { flow, mask, .. } = state.ok_or_else(|| ModelError::Input("an IFNet without blocks".to_owned()))?;
        let (a, b) = (warp(&first.image, &flow, 0)?, warp(&last.image, &flow, 2)?);
        Ok(blend_mask(&a, &b, &mask)?)
    }

    fn see(&self, first: &Prepared, last: &Prepared, t: f32, scale: usize) -> Result<Tensor> {
        let joined = concat_channels(&[&first.image, &last.image, &first.features, &last.features])?;
        let seen = shrink(&joined, scale)?;
        Ok(concat_channels(&[&seen, &plane(&seen, t)?])?)
    }

    fn see_warped(&self, first: &Prepared, last: &Prepared, t: f32, state: &State, scale: usize) -> Result<Tensor> {
        let pictures = concat_channels(&[&warp(&first.image, &state.flow, 0)?, &warp(&last.image, &state.flow, 2)?])?;
        let features =
            concat_channels(&[&warp(&first.features, &state.flow, 0)?, &warp(&last.features, &state.flow, 2)?])?;
        let seen = shrink(&concat_channels(&[&pictures, &features])?, scale)?;
        let rest = shrink(&concat_channels(&[&state.mask, &state.carried])?, scale)?;
        // The flow is told in pixels of the block's own resolution.
        let flow = linear_combination(&[(1.0 / scale as f32, &shrink(&state.flow, scale)?)])?;
        Ok(concat_channels(&[&seen, &plane(&seen, t)?, &rest, &flow])?)
    }
}

/// What one block leaves for the next, all at full resolution in f32.
struct State {
    flow: Tensor,
    mask: Tensor,
    carried: Tensor,
}

impl State {
    fn of(out: Tensor) -> Result<Self> {
        Ok(Self {
            flow: slice_channels(&out, 0, FLOW)?,
            mask: slice_channels(&out, FLOW, 1)?,
            carried: slice_channels(&out, FLOW + 1, CARRIED)?,
        })
    }
}

/// Samples by channels `at` and `at + 1` of `flow`.
fn warp(image: &Tensor, flow: &Tensor, at: usize) -> Result<Tensor> {
    Ok(backward_warp(image, &slice_channels(flow, at, 2)?)?)
}

fn shrink(x: &Tensor, scale: usize) -> Result<Tensor> {
    let (h, w) = sides(x);
    if scale == 1 { Ok(x.clone()) } else { Ok(resize_bilinear(x, h / scale, w / scale)?) }
}

/// A channel that is `t` everywhere, as large as `like`.
fn plane(like: &Tensor, t: f32) -> Result<Tensor> {
    let (h, w) = sides(like);
    Ok(Tensor::from_vec(vec![t; h * w], &[h, w, 1])?)
}

fn sides(x: &Tensor) -> (usize, usize) {
    (x.shape()[0], x.shape()[1])
}

struct Head {
    down: PackedConv2d,
    middle: [PackedConv2d; 2],
    up: PackedConvTranspose2d,
}

impl Head {
    fn load(scope: &Scope<'_>, width: usize, dtype: Dtype) -> Result<Self> {
        Ok(Self {
            down: conv(&scope.at("cnn0"), 3, width, 2, None, dtype)?,
            middle: [
                conv(&scope.at("cnn1"), width, width, 1, None, dtype)?,
                conv(&scope.at("cnn2"), width, width, 1, None, dtype)?,
            ],
            up: conv_up(&scope.at("cnn3"), width, FEATURES, dtype)?,
        })
    }

    fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let mut x = conv2d(image, &self.down, LEAKY, None)?;
        for conv in &self.middle {
            x = conv2d(&x, conv, LEAKY, None)?;
        }
        Ok(conv_transpose2d(&x, &self.up, Activation::None)?)
    }
}

struct Block {
    dtype: Dtype,
    down: [PackedConv2d; 2],
    residuals: Vec<PackedConv2d>,
    up: PackedConvTranspose2d,
}

impl Block {
    fn load(scope: &Scope<'_>, inputs: usize, width: usize, dtype: Dtype) -> Result<Self> {
        let residual = |i: usize| {
            let layer = scope.at("convblock").at(i);
            let beta = layer.tensor("beta", &[1, width, 1, 1], Dtype::F32)?.to_vec_f32();
            conv(&layer.at("conv"), width, width, 1, Some(&beta), dtype)
        };
        Ok(Self {
            dtype,
            down: [
                conv(&scope.at("conv0.0.0"), inputs, width / 2, 2, None, dtype)?,
                conv(&scope.at("conv0.1.0"), width / 2, width, 2, None, dtype)?,
            ],
            residuals: (0..RESIDUALS).map(residual).collect::<Result<_>>()?,
            up: conv_up(&scope.at("lastconv.0"), width, 4 * (FLOW + 1 + CARRIED), dtype)?,
        })
    }

    /// The change of flow, the mask and the carried channels [h, w, 13] at full resolution, in f32.
    fn forward(&self, seen: &Tensor, scale: usize) -> Result<Tensor> {
        let mut x = seen.to_dtype(self.dtype);
        for conv in &self.down {
            x = conv2d(&x, conv, LEAKY, None)?;
        }
        for conv in &self.residuals {
            x = conv2d(&x, conv, LEAKY, Some(&x))?;
        }
        let out = pixel_shuffle2x(&conv_transpose2d(&x, &self.up, Activation::None)?)?.to_dtype(Dtype::F32);
        if scale == 1 {
            return Ok(out);
        }
        let (h, w) = sides(&out);
        let out = resize_bilinear(&out, h * scale, w * scale)?;
        let flow = linear_combination(&[(scale as f32, &slice_channels(&out, 0, FLOW)?)])?;
        Ok(concat_channels(&[&flow, &slice_channels(&out, FLOW, 1 + CARRIED)?])?)
    }
}

/// A 3×3 convolution; `beta` (one value per output, RIFE's learned residual strength) is folded into it.
fn conv(
    scope: &Scope<'_>,
    inputs: usize,
    outputs: usize,
    stride: usize,
    beta: Option<&[f32]>,
    dtype: Dtype,
) -> Result<PackedConv2d> {
    let mut weight = scope.tensor("weight", &[outputs, inputs, 3, 3], Dtype::F32)?.to_vec_f32();
    let mut bias = scope.vector("bias", outputs)?.to_vec_f32();
    for (o, beta) in beta.unwrap_or_default().iter().enumerate() {
        weight[o * inputs * 9..(o + 1) * inputs * 9].iter_mut().for_each(|w| *w *= beta);
        bias[o] *= beta;
    }
    let (weight, bias) = (Tensor::from_vec(weight, &[outputs, inputs, 3, 3])?, Tensor::from_vec(bias, &[outputs])?);
    Ok(PackedConv2d::new(&weight, Some(&bias), stride, Padding::all(1), dtype)?)
}

fn conv_up(scope: &Scope<'_>, inputs: usize, outputs: usize, dtype: Dtype) -> Result<PackedConvTranspose2d> {
    let weight = scope.tensor("weight", &[inputs, outputs, 4, 4], Dtype::F32)?;
    Ok(PackedConvTranspose2d::new(&weight, Some(&scope.vector("bias", outputs)?), dtype)?)
}
