//! Plain pointwise loops.

use crate::activation::Activation;
use crate::tensor::F32Values;

pub(super) fn activate(x: &[f32], activation: Activation) -> Vec<f32> {
    x.iter().map(|&v| activation.at(v)).collect()
}

/// Σ factor · values; all as long as the first.
pub(super) fn linear_combination(terms: &[(f32, F32Values<'_>)]) -> Vec<f32> {
    let mut out = vec![0.0; terms[0].1.len()];
    for (factor, values) in terms {
        for (sum, v) in out.iter_mut().zip(values.iter()) {
            *sum += factor * v;
        }
    }
    out
}

/// a · b; both of one length.
pub(super) fn multiply(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}
