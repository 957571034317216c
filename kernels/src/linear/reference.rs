//! Plain matrix products: the meaning of `linear` and `linear_residual`. Sums are f64, which is exact for int8.

use super::e4m3;
use super::host::{HostLinear, Int8};
use crate::activation::Activation;

/// x [m, k] → [m, n].
pub(super) fn linear(x: &[f32], weight: &HostLinear, m: usize, activation: Activation) -> Vec<f32> {
    if let Some(int8) = &weight.int8 {
        return linear_int8(x, weight, int8, m, activation);
    }
    if let Some(scales) = &weight.e4m3 {
        return linear_e4m3(x, weight, scales, m, activation);
    }
    let (n, k) = (weight.n(), weight.k());
    let w = weight.matrix.transposed_f32();
    let mut out = Vec::with_capacity(m * n);
    for row in 0..m {
        for col in 0..n {
            let sum = dot(&x[row * k..][..k], &w[col * k..][..k]);
            let bias = weight.bias.as_ref().map_or(0.0, |b| f64::from(b[col]));
            out.push(activation.at((sum + bias) as f32));
        }
    }
    out
}

/// x [m, k] → [m, n]: each row of x is rounded to whole multiples of 1/127 of its largest magnitude, sums are exact.
fn linear_int8(x: &[f32], weight: &HostLinear, int8: &Int8, m: usize, activation: Activation) -> Vec<f32> {
    let (n, k) = (weight.n(), weight.k());
    let w = weight.matrix.transposed_f32();
    let mut out = Vec::with_capacity(m * n);
    for row in x.chunks_exact(k).take(m) {
        let largest = row.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
        let (scale, inverse) = if largest < 1e-30 { (0.0, 0.0) } else { (largest / 127.0, 127.0 / largest) };
        let scale = if row.iter().all(|v| v.is_finite()) { scale } else { f32::NAN };
        let quantised: Vec<f32> = row.iter().map(|v| (v * inverse).round_ties_even()).collect();
        for col in 0..n {
            let sum = dot(&quantised, &w[col * k..][..k]) as f32;
            let bias = weight.bias.as_ref().map_or(0.0, |b| b[col]);
            out.push(activation.at(sum * scale * int8.scales[col] + bias));
        }
    }
    out
}

/// x [m, k] → [m, n]: each row of x is rounded to e4m3 with a scale of its own; `scales` are those of the weight's rows.
fn linear_e4m3(x: &[f32], weight: &HostLinear, scales: &[f32], m: usize, activation: Activation) -> Vec<f32> {
    let (n, k) = (weight.n(), weight.k());
    let w = weight.matrix.transposed_f32();
    let (x, row_scales) = e4m3::quantised_rows(&x[..m * k], k);
    let mut out = Vec::with_capacity(m * n);
    for (row, row_scale) in x.chunks_exact(k).zip(row_scales) {
        for col in 0..n {
            let sum = dot(row, &w[col * k..][..k]) as f32;
            let bias = weight.bias.as_ref().map_or(0.0, |b| b[col]);
            out.push(activation.at(sum * row_scale * scales[col] + bias));
        }
    }
    out
}

/// residual [m, n] += gate `[n]` · linear(x).
pub(super) fn linear_residual(x: &[f32], weight: &HostLinear, m: usize, gate: Option<&[f32]>, residual: &mut [f32]) {
    let n = weight.n();
    for (i, y) in linear(x, weight, m, Activation::None).into_iter().enumerate() {
        residual[i] += gate.map_or(1.0, |g| g[i % n]) * y;
    }
}

/// Σ aᵢ·bᵢ in f64.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
