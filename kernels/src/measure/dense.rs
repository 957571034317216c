//! Products, attention and convolutions in float64.

use super::{Checker, DTYPES};
use crate::activation::Activation;
use crate::attention::attention;
use crate::conv::{
    CausalConv3d, PackedConv2d, PackedConvTranspose2d, Padding, causal_conv3d, conv_transpose2d, conv2d,
};
use crate::cuda::CudaDevice;
use crate::error::Result;
use crate::linear::{PackedLinear, linear, linear_residual};
use crate::tensor::Dtype;

const ACTIVATIONS: [Activation; 4] =
    [Activation::None, Activation::Gelu, Activation::GeluTanh, Activation::LeakyRelu(0.2)];

pub(super) fn check(to: &mut Checker<'_>) -> Result<()> {
    linears(to)?;
    quantised(to)?;
    attentions(to)?;
    pictures(to)?;
    clips(to)?;
    transposed(to)
}

/// x [m, k] · wᵀ [k, n] + b `[n]`.
fn product(x: &[f64], w: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let outputs = |x: &[f64]| -> Vec<f64> {
        w.chunks_exact(k).zip(b).map(|(w, b)| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() + b).collect()
    };
    x.chunks_exact(k).flat_map(outputs).collect()
}

/// `activation` of values that f32 holds well enough.
fn activated(values: Vec<f64>, activation: Activation) -> Vec<f64> {
    values.into_iter().map(|v| f64::from(activation.at(v as f32))).collect()
}

fn linears(to: &mut Checker<'_>) -> Result<()> {
    for dtype in DTYPES {
        for ([m, n, k], activation) in
            [[1, 131, 67], [77, 203, 129], [5, 8, 320], [261, 150, 97]].into_iter().zip(ACTIVATIONS)
        {
            let (x, xs) = to.inputs.tensor(&[m, k], dtype)?;
            let ((w, ws), (b, bs)) = (to.inputs.scaled(&[n, k], dtype, 0.3)?, to.inputs.f32(&[n])?);
            let packed = PackedLinear::new(&w, Some(&b), dtype)?;
            let sums = product(&xs, &ws, &bs, k);
            let expected = activated(sums.clone(), activation);
            to.close(format!("linear {m}x{n}x{k} {activation:?}"), dtype, &expected, || {
                linear(&x, &packed, activation, dtype)
            })?;
            let ((gate, gates), (residual, before)) = (to.inputs.f32(&[n])?, to.inputs.f32(&[m, n])?);
            let expected: Vec<f64> = (0..m * n).map(|i| before[i] + gates[i % n] * sums[i]).collect();
            to.close(format!("linear_residual {m}x{n}x{k}"), dtype, &expected, || {
                let mut sum = residual.clone();
                linear_residual(&x, &packed, Some(&gate), &mut sum)?;
                Ok(sum)
            })?;
        }
    }
    Ok(())
}

fn quantised(to: &mut Checker<'_>) -> Result<()> {
    for [m, n, k] in [[1, 130, 320], [67, 136, 192], [131, 72, 64]] {
        let (x, xs) = to.inputs.tensor(&[m, k], Dtype::Bf16)?;
        let ((w, ws), (b, bs)) = (to.inputs.f32(&[n, k])?, to.inputs.f32(&[n])?);
        let packed = PackedLinear::int8(&w, Some(&b))?;
        // Rounding both operands to 1/127 of their largest value: 0.2 % of each, and some for small rows.
        to.within(format!("linear {m}x{n}x{k} int8"), 2e-2, &product(&xs, &ws, &bs, k), || {
            linear(&x, &packed, Activation::None, Dtype::Bf16)
        })?;
        if multiplies_fp8() {
            let packed = PackedLinear::fp8(&w, Some(&b))?;
            // Three bits of mantissa: 2.6 % of each operand.
            to.within(format!("linear {m}x{n}x{k} fp8"), 6e-2, &product(&xs, &ws, &bs, k), || {
                linear(&x, &packed, Activation::None, Dtype::Bf16)
            })?;
        }
    }
    Ok(())
}

/// Whether the scope's device has products of e4m3.
pub(super) fn multiplies_fp8() -> bool {
    CudaDevice::current().is_some_and(|device| device.info().capability >= (8, 9))
}

fn attentions(to: &mut Checker<'_>) -> Result<()> {
    let cases = [(1, 1, 1, 64, None), (65, 77, 3, 64, None), (130, 259, 2, 128, None), (33, 100, 2, 64, Some(59))];
    for dtype in DTYPES {
        for (tq, tk, heads, width, key_len) in cases {
            let d = heads * width;
            let (q, qs) = to.inputs.scaled(&[tq, d], dtype, 2.0)?;
            let ((k, ks), (v, vs)) = (to.inputs.scaled(&[tk, d], dtype, 2.0)?, to.inputs.tensor(&[tk, d], dtype)?);
            let scale = 1.0 / (width as f32).sqrt();
            let expected = mixed([&qs, &ks, &vs], heads, f64::from(scale), key_len.unwrap_or(tk), d, None);
            to.close(format!("attention {tq}x{tk} {heads}x{width} keys {key_len:?}"), dtype, &expected, || {
                attention(&q, &k, &v, heads, scale, key_len, None)
            })?;
        }
        let (t, heads, width) = (37, 3, 64);
        let d = heads * width;
        let ((q, qs), (bias, biases)) = (to.inputs.tensor(&[t, d], dtype)?, to.inputs.f32(&[heads, t, t])?);
        let expected = mixed([&qs, &qs, &qs], heads, 0.125, t, d, Some(&biases));
        to.close(format!("attention {t}x{t} {heads}x{width} bias"), dtype, &expected, || {
            attention(&q, &q, &q, heads, 0.125, None, Some(&bias))
        })?;
    }
    Ok(())
}

/// Attention over the first `keys` keys of rows of `d` values.
fn mixed([q, k, v]: [&[f64]; 3], heads: usize, scale: f64, keys: usize, d: usize, bias: Option<&[f64]>) -> Vec<f64> {
    let (width, tq, tk) = (d / heads, q.len() / d, k.len() / d);
    let mut out = vec![0.0; q.len()];
    for row in 0..tq {
        for head in 0..heads {
            let part = |values: &[f64], row: usize| values[row * d + head * width..][..width].to_vec();
            let query = part(q, row);
            let score = |key: usize| {
                let sum: f64 = query.iter().zip(part(k, key)).map(|(q, k)| q * k).sum();
                sum * scale + bias.map_or(0.0, |bias| bias[(head * tq + row) * tk + key])
            };
            let scores: Vec<f64> = (0..keys).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (key, weight) in weights.iter().enumerate() {
                for (at, value) in part(v, key).into_iter().enumerate() {
                    out[row * d + head * width + at] += weight / total * value;
                }
            }
        }
    }
    out
}

/// A convolution of x [f, h, w, cin] with `weight` [cout, cin, kt, kh, kw]: `before` frames and `pad` pixels of zeros around.
fn convolution(
    x: &[f64],
    [f, h, w, cin]: [usize; 4],
    weight: &[f64],
    [cout, kt, k]: [usize; 3],
    stride: usize,
    before: usize,
    pad: usize,
) -> (Vec<f64>, [usize; 3]) {
    let size = |n: usize| (n + 2 * pad - k) / stride + 1;
    let [frames, height, width] = [f + before + 1 - kt, size(h), size(w)];
    let mut out = Vec::with_capacity(frames * height * width * cout);
    for at in 0..frames * height * width {
        let (t, y, x0) = (at / (height * width), at / width % height, at % width);
        for o in 0..cout {
            let mut sum = 0.0;
            for tap in 0..kt * k * k {
                let (dt, dy, dx) = (tap / (k * k), tap / k % k, tap % k);
                let place = [(t + dt, before, f), (y * stride + dy, pad, h), (x0 * stride + dx, pad, w)]
                    .map(|(at, pad, n)| at.checked_sub(pad).filter(|at| *at < n));
                let [Some(t), Some(y), Some(x0)] = place else { continue };
                for c in 0..cin {
                    sum += x[((t * h + y) * w + x0) * cin + c] * weight[(o * cin + c) * kt * k * k + tap];
                }
            }
            out.push(sum);
        }
    }
    (out, [frames, height, width])
}

fn pictures(to: &mut Checker<'_>) -> Result<()> {
    for dtype in DTYPES {
        for (i, [h, w, cin, cout, k, stride]) in
            [[7, 9, 3, 5, 3, 1], [13, 11, 17, 24, 3, 2], [6, 5, 40, 33, 1, 1], [19, 21, 8, 16, 3, 1]]
                .into_iter()
                .enumerate()
        {
            let activation = ACTIVATIONS[i];
            let (x, xs) = to.inputs.tensor(&[h, w, cin], dtype)?;
            let ((weight, ws), (b, bs)) = (to.inputs.scaled(&[cout, cin, k, k], dtype, 0.3)?, to.inputs.f32(&[cout])?);
            let conv = PackedConv2d::new(&weight, Some(&b), stride, Padding::all(k / 2), dtype)?;
            let (sums, [_, height, width]) = convolution(&xs, [1, h, w, cin], &ws, [cout, 1, k], stride, 0, k / 2);
            let (residual, residuals) = to.inputs.tensor(&[height, width, cout], dtype)?;
            let sums = (0..sums.len()).map(|i| sums[i] + bs[i % cout] + residuals[i]).collect();
            to.close(
                format!("conv2d {cin}->{cout} {h}x{w} {k}x{k}/{stride} {activation:?}"),
                dtype,
                &activated(sums, activation),
                || conv2d(&x, &conv, activation, Some(&residual)),
            )?;
        }
    }
    Ok(())
}

fn clips(to: &mut Checker<'_>) -> Result<()> {
    for dtype in DTYPES {
        for [f, h, w, cin, cout, cached] in [[3, 7, 5, 6, 9, 2], [1, 9, 11, 24, 16, 0], [2, 5, 6, 17, 8, 1]] {
            let (all, values) = to.inputs.tensor(&[cached + f, h, w, cin], dtype)?;
            let ((weight, ws), (b, bs)) =
                (to.inputs.scaled(&[cout, cin, 3, 3, 3], dtype, 0.2)?, to.inputs.f32(&[cout])?);
            let conv = CausalConv3d::new(&weight, Some(&b), 1, 1, Padding::all(1), dtype)?;
            let cache = if cached > 0 { Some(all.slice_outer(0..cached)?) } else { None };
            let x = all.slice_outer(cached..cached + f)?;
            let (sums, _) = convolution(&values, [cached + f, h, w, cin], &ws, [cout, 3, 3], 1, 2 - cached, 1);
            let expected: Vec<f64> = (0..sums.len()).map(|i| sums[i] + bs[i % cout]).collect();
            to.close(format!("causal_conv3d {cin}->{cout} {cached}+{f}x{h}x{w}"), dtype, &expected, || {
                causal_conv3d(&x, cache.as_ref(), &conv, Activation::None, None)
            })?;
        }
    }
    Ok(())
}

fn transposed(to: &mut Checker<'_>) -> Result<()> {
    for dtype in DTYPES {
        for [h, w, cin, cout] in [[3, 5, 7, 9], [6, 4, 32, 13], [9, 10, 16, 4]] {
            let (x, xs) = to.inputs.tensor(&[h, w, cin], dtype)?;
            let ((weight, ws), (b, bs)) = (to.inputs.scaled(&[cin, cout, 4, 4], dtype, 0.3)?, to.inputs.f32(&[cout])?);
            let conv = PackedConvTranspose2d::new(&weight, Some(&b), dtype)?;
            let mut expected: Vec<f64> = bs.repeat(4 * h * w);
            for (i, value) in xs.iter().enumerate() {
                let (y, x, c) = (i / cin / w, i / cin % w, i % cin);
                for tap in 0..16 {
                    // Each pixel adds to 4x4 of the result, from one to the upper left on.
                    let place = [(2 * y + tap / 4, 2 * h), (2 * x + tap % 4, 2 * w)]
                        .map(|(at, n)| at.checked_sub(1).filter(|at| *at < n));
                    let [Some(row), Some(column)] = place else { continue };
                    for o in 0..cout {
                        expected[(row * 2 * w + column) * cout + o] += value * ws[(c * cout + o) * 16 + tap];
                    }
                }
            }
            to.close(format!("conv_transpose2d {cin}->{cout} {h}x{w}"), dtype, &expected, || {
                conv_transpose2d(&x, &conv, Activation::None)
            })?;
        }
    }
    Ok(())
}
