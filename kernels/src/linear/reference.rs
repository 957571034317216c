//! Plain matrix products: the meaning of `linear` and `linear_residual`. Sums are f64.

use super::PackedLinear;
use crate::activation::Activation;

/// x [m, k] → [m, n].
pub(super) fn linear(x: &[f32], weight: &PackedLinear, m: usize, activation: Activation) -> Vec<f32> {
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

/// residual [m, n] += gate `[n]` · linear(x).
pub(super) fn linear_residual(x: &[f32], weight: &PackedLinear, m: usize, gate: Option<&[f32]>, residual: &mut [f32]) {
    let n = weight.n();
    for (i, y) in linear(x, weight, m, Activation::None).into_iter().enumerate() {
        residual[i] += gate.map_or(1.0, |g| g[i % n]) * y;
    }
}

/// Σ aᵢ·bᵢ in f64.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
