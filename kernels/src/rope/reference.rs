//! Plain rotation of pairs.

use super::RopeTable;

/// x [t, heads·hd] → [t, heads·hd].
pub(super) fn rope(x: &[f32], heads: usize, table: &RopeTable) -> Vec<f32> {
    let head_dim = table.head_dim();
    let mut out = Vec::with_capacity(x.len());
    for (i, pair) in x.chunks_exact(2).enumerate() {
        let token = 2 * i / (heads * head_dim);
        let at = token * head_dim + 2 * i % head_dim;
        let (cos, sin) = (table.cos[at], table.sin[at + 1]);
        out.push(pair[0] * cos - pair[1] * sin);
        out.push(pair[0] * sin + pair[1] * cos);
    }
    out
}
