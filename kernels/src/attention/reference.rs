//! Plain attention: all scores of a row at once, f64 sums.

use super::AttentionShape;
use crate::linear::dot;

/// q [tq, heads·hd], k and v [tk, heads·hd], bias [heads, tq, tk] → [tq, heads·hd].
pub(super) fn attention(q: &[f32], k: &[f32], v: &[f32], shape: AttentionShape, bias: Option<&[f32]>) -> Vec<f32> {
    let AttentionShape { queries, keys, visible, heads, head_dim, scale } = shape;
    let width = heads * head_dim;
    let mut out = vec![0.0; queries * width];
    for row in 0..queries {
        for head in 0..heads {
            let at = head * head_dim;
            let query = &q[row * width + at..][..head_dim];
            let score = |key: usize| {
                let bias = bias.map_or(0.0, |b| f64::from(b[(head * queries + row) * keys + key]));
                dot(query, &k[key * width + at..][..head_dim]) * f64::from(scale) + bias
            };
            let scores: Vec<f64> = (0..visible).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..head_dim {
                let sum: f64 = weights.iter().enumerate().map(|(t, w)| w * f64::from(v[t * width + at + d])).sum();
                out[row * width + at + d] = (sum / total) as f32;
            }
        }
    }
    out
}
