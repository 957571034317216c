//! Plain rotation of pairs.

use super::RopeTable;

/// x [t, heads·hd] → [t, heads·hd].
pub(super) fn rope(x: &[f32], heads: usize, table: &RopeTable) -> Vec<f32> {
    let half = table.head_dim() / 2;
    let mut out = Vec::with_capacity(x.len());
    for (i, pair) in x.chunks_exact(2).enumerate() {
        let angle = i / (heads * half) * half + i % half;
        let (cos, sin) = (table.cos[angle], table.sin[angle]);
        out.push(pair[0] * cos - pair[1] * sin);
        out.push(pair[0] * sin + pair[1] * cos);
    }
    out
}
