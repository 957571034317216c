//! Attention of bf16 on matrix tiles.
//!
//! | | |
//! |---|---|
//! | meaning | softmax(q·kᵀ·scale)·v per head |
//! | inputs | q [tq, heads·hd], k, v [tk, heads·hd] bf16, heads side by side |
//! | outputs | [tq, heads·hd] bf16, written at a pointer; the tiles that it could not compute |
//! | preconditions | AMX; no bias; head_dim is filled with zeros up to a multiple of 32 |
//! | reference | `reference.rs`; relative RMSE ≤ 1e-2 (probabilities and result are rounded) |
//! | bound by | the exponentials' two vector ports, then the matrix unit: 4·tq·tk·heads·hd FLOP; memory O(tq + tk) |
//! | benchmark | `attention` |
//!
//! The matrix unit takes 16 cycles for 16·16·32 products and meanwhile occupies one of the two vector ports, so a score's
//! exponential must overlap with products to be affordable, and must be short. Hence
//!
//! - a pipeline of *ticks*: while the scores of one unit of 32 keys become weights, the matrix unit computes the scores of the
//!   next unit and sums the values under the weights of the previous block of keys. A few rows of weights follow each matrix
//!   instruction: that is as far ahead as the processor's own reordering sees.
//! - an exponential in 16-bit integers, 32 at a time. A fused multiply-add leaves a score (in units of ln 2) as 8.8 fixed point
//!   in the low bits of a float. Its upper byte already is the exponent of the bf16 weight, and the lower byte φ its mantissa
//!   up to 2^φ − 1 − φ, which a cubic corrects. The error is 1.2 times that of rounding an exact exponential to bf16.
//! - totals from the matrix unit: a tile of ones is appended to the values, so numerator and denominator see the same weights.
//! - no running maximum. By Cauchy and Schwarz a score is at most ‖q‖·max‖k‖; weights relative to that bound (less what f32
//!   has room for) cannot overflow. When all true scores of a query lie so far below the bound that its weights would lose
//!   precision, the total shows it, and its tile is left to the general path.
#![allow(unsafe_code, reason = "tasks write disjoint rows through one pointer")]

mod pack;
mod product;
mod soften;
mod task;

use half::bf16;
use pack::Head;
use task::Task;

use super::AttentionShape;
use crate::parallel::{self, Shared};
use crate::simd::amx;

/// Queries of a tile pair: the height of the sums on which one unit of keys works.
pub(super) const QUERIES: usize = 32;
/// Keys of a unit: two matrix tiles across for the scores, one tile deep for the values.
const KEYS: usize = 32;
/// Query tiles of a task, whose sums and the keys at hand stay in the second-level cache.
const TASK_TILES_MAX: usize = 32;
/// Lines of a matrix tile.
const TILE: usize = amx::TILE;

/// Computes all queries into `out` ([tq, heads·hd], dense), 32 at a time, and returns (head, first query) of those that it
/// could not.
///
/// # Safety
/// AMX must be available; `out` must have room for all rows.
pub(super) unsafe fn attention(
    q: &[bf16],
    k: &[bf16],
    v: &[bf16],
    shape: AttentionShape,
    out: *mut bf16,
) -> Vec<(usize, usize)> {
    let AttentionShape { queries, visible, heads, head_dim, .. } = shape;
    let operations = queries * visible * heads * head_dim / 16;
    let mut packed: Vec<Option<Head>> = Vec::new();
    packed.resize_with(heads, || None);
    parallel::for_each_piece(&mut packed, 1, operations, |head, slot| {
        // SAFETY: the caller has AMX, which comes with AVX-512.
        slot[0] = Some(unsafe { Head::pack(k, v, head * head_dim, shape) });
    });
    let packed: Vec<Head> = packed.into_iter().flatten().collect();

    let tiles = queries.div_ceil(QUERIES);
    let wanted = (4 * rayon::current_num_threads()).div_ceil(heads);
    let tasks = tiles.div_ceil(TASK_TILES_MAX).max(wanted).min(tiles);
    let out = Shared::from_pointer(out);
    let mut failed: Vec<Vec<(usize, usize)>> = vec![Vec::new(); heads * tasks];
    parallel::for_each_piece(&mut failed, 1, operations, |task, failed| {
        let (head, part) = (task / tasks, task % tasks);
        let tiles_of_task = tiles * part / tasks..tiles * (part + 1) / tasks;
        let at = head * head_dim;
        // SAFETY: as above; tasks differ in head or tiles, so they write different parts of the output.
        unsafe {
            let mut task = Task::new(q, at, &packed[head], shape, tiles_of_task);
            task.run();
            failed[0] = task.finish(out.get(), at).into_iter().map(|tile| (head, tile * QUERIES)).collect();
        }
    });
    failed.concat()
}

/// Steps of 32 dimensions.
fn steps(shape: AttentionShape) -> usize {
    shape.head_dim.div_ceil(KEYS)
}

/// A mask of the first `n` of 32 lanes.
fn first(n: usize) -> u32 {
    if n >= 32 { u32::MAX } else { (1 << n) - 1 }
}
