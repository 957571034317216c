//! Plain convolutions: a loop per output value, f64 sums.

use super::transpose::HostPhases;
use super::{ConvCall, ConvKernel, Geometry};
use crate::activation::Activation;

/// input [frames, h, w, cin] → [call.frames.len(), h', w', cout]; residual has the shape of the result.
pub(super) fn conv(call: &ConvCall<'_>, input: &[f32], residual: Option<&[f32]>) -> Vec<f32> {
    let kernel = call.kernel;
    let weights = kernel.matrix.transposed_f32();
    let [out_h, out_w] = call.output;
    let mut out = Vec::with_capacity(call.frames.len() * out_h * out_w * kernel.cout());
    for sources in &call.frames {
        for y in 0..out_h {
            for x in 0..out_w {
                for o in 0..kernel.cout() {
                    let taps = &weights[o * kernel.matrix.k()..][..kernel.matrix.k()];
                    let mut sum = kernel.bias.as_ref().map_or(0.0, |b| f64::from(b[o]));
                    for (t, source) in sources.iter().enumerate() {
                        sum += source.map_or(0.0, |f| plane(kernel, call.source, input, f, taps, [t, y, x]));
                    }
                    sum += residual.map_or(0.0, |r| f64::from(r[out.len()]));
                    out.push(call.activation.at(sum as f32));
                }
            }
        }
    }
    out
}

/// Sum over the taps of time index `t` for the output pixel (y, x), reading source frame `frame`.
fn plane(
    kernel: &ConvKernel,
    [h, w]: [usize; 2],
    input: &[f32],
    frame: usize,
    taps: &[f32],
    [t, y, x]: [usize; 3],
) -> f64 {
    let Geometry { taps: [_, kh, kw], cin, stride, padding, .. } = kernel.geometry;
    let mut sum = 0.0;
    for ky in 0..kh {
        for kx in 0..kw {
            let row = (y * stride + ky).wrapping_sub(padding.top);
            let col = (x * stride + kx).wrapping_sub(padding.left);
            if row < h && col < w {
                let pixel = &input[((frame * h + row) * w + col) * cin..][..cin];
                let weights = &taps[((t * kh + ky) * kw + kx) * kernel.cin_padded..][..cin];
                sum += crate::linear::dot(pixel, weights);
            }
        }
    }
    sum
}

/// input [h, w, cin] → [2h, 2w, cout]: every input pixel adds to the 4×4 outputs around it.
pub(super) fn conv_transpose2d(
    input: &[f32],
    h: usize,
    w: usize,
    weight: &HostPhases,
    activation: Activation,
) -> Vec<f32> {
    let (cin, cout) = (weight.weight.shape()[0], weight.weight.shape()[1]);
    let values = weight.weight.f32_values();
    let mut sums = vec![0f64; 4 * h * w * cout];
    for (i, pixel) in input.chunks_exact(cin).enumerate() {
        for tap in 0..16 {
            let row = (2 * (i / w) + tap / 4).wrapping_sub(1);
            let col = (2 * (i % w) + tap % 4).wrapping_sub(1);
            if row >= 2 * h || col >= 2 * w {
                continue;
            }
            for (c, &v) in pixel.iter().enumerate() {
                for o in 0..cout {
                    let product = f64::from(v) * f64::from(values[(c * cout + o) * 16 + tap]);
                    sums[(row * 2 * w + col) * cout + o] += product;
                }
            }
        }
    }
    let bias = |i: usize| weight.bias.as_ref().map_or(0.0, |b| f64::from(b[i % cout]));
    sums.iter().enumerate().map(|(i, s)| activation.at((s + bias(i)) as f32)).collect()
}
