//! Plain normalisations with f64 statistics.

use crate::activation::Activation;

/// `(x − mean) / √(var + eps) · weight + bias`; weight and bias hold d values for each of g groups of successive rows.
pub(super) fn layer_norm(x: &[f32], rows: usize, d: usize, weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows * d);
    for (row, values) in x.chunks_exact(d).enumerate() {
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / d as f64;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / d as f64;
        let inverse = 1.0 / (variance + f64::from(eps)).sqrt();
        for (col, &v) in values.iter().enumerate() {
            let group = row / (rows * d / weight.len());
            let at = |p: &[f32]| f64::from(p[group * d + col]);
            out.push(((f64::from(v) - mean) * inverse * at(weight) + at(bias)) as f32);
        }
    }
    out
}

/// `x / √(mean(x²) + eps) · weight`.
pub(crate) fn rms_norm(x: &[f32], rows: usize, d: usize, weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows * d);
    for values in x.chunks_exact(d) {
        let inverse = 1.0 / (sum_of_squares(values) / d as f64 + f64::from(eps)).sqrt();
        out.extend(values.iter().zip(weight).map(|(&v, &w)| (f64::from(v) * inverse * f64::from(w)) as f32));
    }
    out
}

/// `x / max(‖x‖₂, 1e-12) · √c · gamma`, then the activation.
pub(super) fn channel_norm(x: &[f32], rows: usize, c: usize, gamma: &[f32], activation: Activation) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows * c);
    for values in x.chunks_exact(c) {
        let factor = (c as f64).sqrt() / sum_of_squares(values).sqrt().max(1e-12);
        let scaled = values.iter().zip(gamma).map(|(&v, &g)| (f64::from(v) * factor * f64::from(g)) as f32);
        out.extend(scaled.map(|v| activation.at(v)));
    }
    out
}

fn sum_of_squares(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}
