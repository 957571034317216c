//! IFNet: the network of RIFE 4.25 (Huang et al., ECCV 2022) at any widths.
//!
//! Five blocks refine the flow from the frame at t to both pictures, from coarse to fine; each sees the pictures warped
//! by the flow so far. Pictures are [h, w, 3] in 0..=1 with sides that are multiples of [`SIDE_MULTIPLE`].

use crate::error::{ModelError, Result};
use crate::weights::Scope;
use kernels::{
    Activation, Dtype, PackedConv2d, PackedConvTranspose2d, Padding, Tensor, backward_warp, blend_mask,
    concat_channels, conv_transpose2d, conv2d, linear_combination, pixel_shuffle2x, resize_bilinear, slice_channels,
    warp_blend,
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
        if self.scales.iter().rev().enumerate().any(|(i, &scale)| scale > 16 || scale != 1 << i) {
            return Err(ModelError::config(file, "scales must halve from block to block, from at most 16 down to 1"));
        }
        Ok(())
    }
}

/// A picture with what the network needs of it for any t.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    image: Tensor,
    /// The picture and its features: [h, w, 7].
    seen: Tensor,
}

impl Prepared {
    /// The picture itself, [h, w, 3].
    pub(super) fn image(&self) -> &Tensor {
        &self.image
    }

    /// The mean of two pictures at `t`, nothing moved.
    pub(super) fn cross_fade(&self, last: &Self, t: f32) -> Result<Tensor> {
        Ok(linear_combination(&[(1.0 - t, &self.image), (t, &last.image)])?)
    }
}

pub(super) struct IfNet {
    head: Head,
    blocks: Vec<(usize, Block)>,
}

/// What the blocks so far have found.
struct State {
    /// From the frame at t to the first picture and to the last: each [h, w, 2] in pixels, x then y.
    flows: [Tensor; 2],
    /// The blend mask before its sigmoid and the carried channels, [h/scale, w/scale, 9] of the last block's scale.
    carried: Tensor,
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
        Ok(Prepared { seen: concat_channels(&[&image, &self.head.forward(&image)?])?, image })
    }

    /// The frame at `t` in 0..=1, not clamped. `trace` as in `find`.
    pub(super) fn forward(
        &self,
        first: &Prepared,
        last: &Prepared,
        t: f32,
        trace: impl FnMut(&[Tensor; 2], &Tensor),
    ) -> Result<Tensor> {
        self.find(first, last, t, trace)?.frame(first, last)
    }

    /// What lies at `t` in 0..=1. `trace` sees each block's flows and its mask [h/scale, w/scale, 1].
    pub(super) fn find(
        &self,
        first: &Prepared,
        last: &Prepared,
        t: f32,
        mut trace: impl FnMut(&[Tensor; 2], &Tensor),
    ) -> Result<Found> {
        let mut state: Option<State> = None;
        for (scale, block) in &self.blocks {
            let next = block.refine(first, last, t, *scale, state)?;
            trace(&next.flows, &slice_channels(&next.carried, 0, 1)?);
            state = Some(next);
        }
        let State { flows, carried } = state.ok_or_else(|| ModelError::Input("an IFNet without blocks".to_owned()))?;
        Ok(Found { flows, mask: slice_channels(&carried, 0, 1)? })
    }
}

/// The network's answer for one t.
pub(super) struct Found {
    /// From the frame at t to the first picture and to the last: each [h, w, 2] in pixels, x then y.
    flows: [Tensor; 2],
    /// How much of the first picture to take, before its sigmoid: [h, w, 1].
    mask: Tensor,
}

impl Found {
    /// The same motion at twice the size.
    pub(super) fn doubled(&self) -> Result<Self> {
        let double = |flow| -> Result<Tensor> { Ok(linear_combination(&[(2.0, &enlarge(flow, 2)?)])?) };
        Ok(Self { flows: [double(&self.flows[0])?, double(&self.flows[1])?], mask: enlarge(&self.mask, 2)? })
    }

    /// The frame at t, not clamped: both pictures moved there and blended.
    fn frame(&self, first: &Prepared, last: &Prepared) -> Result<Tensor> {
        let [to_first, to_last] = &self.flows;
        Ok(warp_blend(&first.image, &last.image, to_first, to_last, &self.mask)?)
    }

    /// Moves both pictures to t: (first, last), each [h, w, 3].
    pub(super) fn warp(&self, first: &Prepared, last: &Prepared) -> Result<(Tensor, Tensor)> {
        Ok((backward_warp(&first.image, &self.flows[0])?, backward_warp(&last.image, &self.flows[1])?))
    }

    /// The frame at t, not clamped, of the pictures moved there.
    pub(super) fn blend(&self, (a, b): &(Tensor, Tensor)) -> Result<Tensor> {
        Ok(blend_mask(a, b, &self.mask)?)
    }
}

/// x at 1/scale of its size.
pub(super) fn reduce(x: &Tensor, scale: usize) -> Result<Tensor> {
    let (h, w) = sides(x);
    if scale == 1 { Ok(x.clone()) } else { Ok(resize_bilinear(x, h / scale, w / scale)?) }
}

pub(super) fn enlarge(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (h, w) = sides(x);
    if factor == 1 { Ok(x.clone()) } else { Ok(resize_bilinear(x, h * factor, w * factor)?) }
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
                first_conv(&scope.at("conv0.0.0"), inputs, width / 2, dtype)?,
                conv(&scope.at("conv0.1.0"), width / 2, width, 2, None, dtype)?,
            ],
            residuals: (0..RESIDUALS).map(residual).collect::<Result<_>>()?,
            up: conv_up(&scope.at("lastconv.0"), width, 4 * (FLOW + 1 + CARRIED), dtype)?,
        })
    }

    /// Looks at both pictures along the flows so far and refines them.
    ///
    /// RIFE brings every block's mask and carried channels to full size and back down for the next block. Each scale is
    /// half of the one before, where that is the same as doubling them.
    fn refine(&self, first: &Prepared, last: &Prepared, t: f32, scale: usize, state: Option<State>) -> Result<State> {
        let Some(State { flows, carried }) = state else {
            let (a, b) = (reduce(&first.seen, scale)?, reduce(&last.seen, scale)?);
            let out = self.forward(&[&a, &b, &plane(&a, t)?])?;
            let flow = |at| -> Result<Tensor> {
                Ok(linear_combination(&[(scale as f32, &enlarge(&slice_channels(&out, at, 2)?, scale)?)])?)
            };
            return Ok(State { flows: [flow(0)?, flow(2)?], carried: slice_channels(&out, FLOW, 1 + CARRIED)? });
        };
        let near = |picture: &Prepared, flow| reduce(&backward_warp(&picture.seen, flow)?, scale);
        let (a, b) = (near(first, &flows[0])?, near(last, &flows[1])?);
        // The flow is told in pixels of the block's own resolution.
        let told = |flow| -> Result<Tensor> { Ok(linear_combination(&[(1.0 / scale as f32, &reduce(flow, scale)?)])?) };
        let input = [&a, &b, &plane(&a, t)?, &enlarge(&carried, 2)?, &told(&flows[0])?, &told(&flows[1])?];
        let out = self.forward(&input)?;
        let moved = |flow, at| -> Result<Tensor> {
            let change = enlarge(&slice_channels(&out, at, 2)?, scale)?;
            Ok(linear_combination(&[(1.0, flow), (scale as f32, &change)])?)
        };
        let flows = [moved(&flows[0], 0)?, moved(&flows[1], 2)?];
        Ok(State { flows, carried: slice_channels(&out, FLOW, 1 + CARRIED)? })
    }

    /// The network itself, its inputs [h, w, ·] joined → [h, w, 13] in f32: change of flow (4), mask (1), carried (8).
    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        // Narrowed before they are joined: at full size the joined input is the largest tensor of all.
        let inputs: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(self.dtype)).collect();
        let mut x = concat_channels(&inputs.iter().collect::<Vec<_>>())?;
        for conv in &self.down {
            x = conv2d(&x, conv, LEAKY, None)?;
        }
        for conv in &self.residuals {
            x = conv2d(&x, conv, LEAKY, Some(&x))?;
        }
        Ok(pixel_shuffle2x(&conv_transpose2d(&x, &self.up, Activation::None)?)?.to_dtype(Dtype::F32))
    }
}

/// A block's first convolution, its inputs in our order: RIFE's is both pictures and then both feature maps, ours is each
/// picture with its own features, so that one warp moves them together.
fn first_conv(scope: &Scope<'_>, inputs: usize, outputs: usize, dtype: Dtype) -> Result<PackedConv2d> {
    let pictures = (0..3).chain(6..6 + FEATURES).chain(3..6).chain(6 + FEATURES..6 + 2 * FEATURES);
    let order: Vec<usize> = pictures.chain(6 + 2 * FEATURES..inputs).collect();
    let weight = scope.tensor("weight", &[outputs, inputs, 3, 3], Dtype::F32)?.to_vec_f32();
    let taps = |o: usize, input: usize| weight[(o * inputs + input) * 9..][..9].iter().copied();
    let reordered = (0..outputs).flat_map(|o| order.iter().flat_map(move |&input| taps(o, input))).collect();
    let weight = Tensor::from_vec(reordered, &[outputs, inputs, 3, 3])?;
    Ok(PackedConv2d::new(&weight, Some(&scope.vector("bias", outputs)?), 2, Padding::all(1), dtype)?)
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
