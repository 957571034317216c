//! Attention in blocks of queries and keys, with the softmax kept running.
//!
//! | | |
//! |---|---|
//! | meaning | softmax(q·kᵀ·scale + bias)·v per head |
//! | inputs | q [tq, heads·hd], k, v [tk, heads·hd] of one dtype, heads side by side; bias f32 [heads, tq, tk] |
//! | outputs | [tq, heads·hd] of the same dtype, a new buffer |
//! | preconditions | bf16 needs an even head_dim (the dispatcher computes odd ones in f32) |
//! | reference | `reference.rs`; relative RMSE ≤ 1e-5 (f32), ≤ 1e-2 (bf16: probabilities and result are rounded) |
//! | bound by | arithmetic: 4·tq·tk·heads·hd FLOP; scratch per task is bounded, whatever tk is |
//! | benchmark | `attention` |
#![allow(unsafe_code, reason = "tiles read rows through raw pointers; tasks write disjoint parts of one output")]

use std::f32::consts::LOG2_E;

use half::bf16;

use super::AttentionShape;
use crate::buffer::Buffer;
use crate::elementwise::{load_up_to, store_up_to};
use crate::gemm::{Bf16Product, Epilogue, F32Product, Left, Product, Segment, Tiles, block};
use crate::packed::{LINE, PANEL, PackedMatrix, panel_width, steps_of};
use crate::parallel::{self, Shared};
use crate::simd::{Element, Isa, Kernel, Simd, math};
use crate::tensor::{Dtype, Tensor};

/// Queries of a task: two matrix tiles of 32 rows.
const QUERIES: usize = 64;
/// Keys whose scores a task holds at a time; even, and whole panels.
const KEYS: usize = 512;

/// The caller has checked shapes and dtypes.
pub(super) fn attention(
    isa: Isa,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: AttentionShape,
    bias: Option<&[f32]>,
) -> Tensor {
    match (q.as_f32(), k.as_f32(), v.as_f32(), q.as_bf16(), k.as_bf16(), v.as_bf16()) {
        (Some(q), Some(k), Some(v), ..) => run(isa, &Operands { q, k, v, shape, bias }, |_| all_pieces(shape)),
        (.., Some(q), Some(k), Some(v)) => {
            let operands = Operands { q, k, v, shape, bias };
            run(isa, &operands, |out| on_matrix_tiles(isa, &operands, out))
        }
        _ => unreachable!("the caller checks that q, k and v have one dtype"),
    }
}

/// What one call reads.
struct Operands<'a, T> {
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
    shape: AttentionShape,
    bias: Option<&'a [f32]>,
}

/// Some queries of one head.
#[derive(Clone, Copy)]
struct Piece {
    head: usize,
    first: usize,
    queries: usize,
}

/// All queries of all heads.
fn all_pieces(shape: AttentionShape) -> Vec<Piece> {
    let of_head = |head| {
        (0..shape.queries).step_by(QUERIES).map(move |first| Piece {
            head,
            first,
            queries: QUERIES.min(shape.queries - first),
        })
    };
    (0..shape.heads).flat_map(of_head).collect()
}

/// Computes what matrix tiles can, and returns the rest.
#[cfg(target_arch = "x86_64")]
fn on_matrix_tiles(isa: Isa, operands: &Operands<'_, bf16>, out: *mut bf16) -> Vec<Piece> {
    use super::amx;
    let Operands { q, k, v, shape, bias } = *operands;
    if !isa.has_matrix_tiles() || bias.is_some() {
        return all_pieces(shape);
    }
    // SAFETY: the level in force has AMX; the caller gives room for all rows.
    let left = unsafe { amx::attention(q, k, v, shape, out) };
    let piece = |(head, first)| Piece { head, first, queries: amx::QUERIES.min(shape.queries - first) };
    left.into_iter().map(piece).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn on_matrix_tiles(_: Isa, operands: &Operands<'_, bf16>, _: *mut bf16) -> Vec<Piece> {
    all_pieces(operands.shape)
}

/// Runs `first_pass`, which writes some queries and returns the others, and then those.
fn run<T: Element>(isa: Isa, operands: &Operands<'_, T>, first_pass: impl FnOnce(*mut T) -> Vec<Piece>) -> Tensor {
    let AttentionShape { queries, heads, head_dim, .. } = operands.shape;
    let len = queries * heads * head_dim;
    let mut out = Buffer::with_capacity(len);
    let left = first_pass(out.as_mut_ptr());
    attend(isa, operands, &left, out.as_mut_ptr());
    // SAFETY: all queries of all heads have been written.
    unsafe { out.set_len(len) };
    T::tensor(out, &[queries, heads * head_dim])
}

fn attend<T: Element>(isa: Isa, operands: &Operands<'_, T>, pieces: &[Piece], out: *mut T) {
    let Operands { q, k, v, shape, bias } = *operands;
    let AttentionShape { visible, head_dim, .. } = shape;
    let width = shape.heads * head_dim;
    let operations = pieces.iter().map(|p| p.queries).sum::<usize>() * visible * head_dim / 4;
    let mut packed: Vec<Option<(PackedMatrix, PackedMatrix)>> = vec![None; shape.heads];
    parallel::for_each_piece(&mut packed, 1, operations, |head, slot| {
        if pieces.iter().any(|p| p.head == head) {
            let at = head * head_dim;
            slot[0] = Some((pack_keys(k, width, at, shape), pack_values(v, width, at, shape)));
        }
    });
    let shared = Shared::<T>::from_pointer(out);
    parallel::for_each(pieces.len(), operations, |task| {
        let Piece { head, first, queries } = pieces[task];
        let Some((keys, values)) = &packed[head] else { unreachable!("the heads of all pieces are packed") };
        let at = first * width + head * head_dim;
        isa.run(Block {
            q: &q[at..],
            keys,
            values,
            bias: bias.map(|b| &b[(head * shape.queries + first) * shape.keys..]),
            shape,
            queries,
            out: shared.get().wrapping_add(at),
        });
    });
}

/// The words of `row[at..at + n]`: one f32 or a pair of bf16 each.
#[inline(always)]
fn words_of<T: Element>(row: &[T]) -> *const u32 {
    row.as_ptr().cast()
}

/// kᵀ of one head: column j is key j.
fn pack_keys<T: Element>(k: &[T], width: usize, at: usize, shape: AttentionShape) -> PackedMatrix {
    let AttentionShape { visible, head_dim, .. } = shape;
    let mut packed = PackedMatrix::zeros(head_dim, visible, T::DTYPE);
    for panel in 0..visible.div_ceil(PANEL) {
        let lines_per_step = panel_width(visible, panel) / LINE;
        let lines = packed.panel_mut(panel);
        for line in 0..lines_per_step {
            let first = panel * PANEL + line * LINE;
            for lane in 0..LINE.min(visible - first) {
                let words = words_of(&k[(first + lane) * width + at..][..head_dim]);
                for step in 0..steps_of(head_dim, T::DTYPE) {
                    // SAFETY: the step's word lies within the head's part of the row.
                    let word = unsafe { words.add(step).read_unaligned() };
                    lines[step * lines_per_step + line].0[lane] = word;
                }
            }
        }
    }
    packed
}

/// v of one head: row i is key i. In bf16 a step joins the rows of two keys.
fn pack_values<T: Element>(v: &[T], width: usize, at: usize, shape: AttentionShape) -> PackedMatrix {
    let AttentionShape { visible, head_dim, .. } = shape;
    let mut packed = PackedMatrix::zeros(visible, head_dim, T::DTYPE);
    let keys_per_step = 4 / T::DTYPE.size_bytes();
    for panel in 0..head_dim.div_ceil(PANEL) {
        let lines_per_step = panel_width(head_dim, panel) / LINE;
        let columns = PANEL.min(head_dim - panel * PANEL);
        for (step, lines) in packed.panel_mut(panel).chunks_exact_mut(lines_per_step).enumerate() {
            for part in 0..keys_per_step.min(visible - step * keys_per_step) {
                let row = &v[(step * keys_per_step + part) * width + at + panel * PANEL..][..columns];
                for (line, values) in lines.iter_mut().zip(row.chunks(LINE)) {
                    for (word, value) in line.0.iter_mut().zip(values) {
                        *word |= value.word() << (16 * part);
                    }
                }
            }
        }
    }
    packed
}

/// One task: some queries of one head against all its keys.
struct Block<'a, T> {
    /// From the first query's part of its row on.
    q: &'a [T],
    keys: &'a PackedMatrix,
    values: &'a PackedMatrix,
    /// From the first query's row on.
    bias: Option<&'a [f32]>,
    shape: AttentionShape,
    queries: usize,
    /// Where the first query's result goes.
    out: *mut T,
}

/// What a task keeps between blocks of keys.
struct Running<T: Copy> {
    /// [queries, KEYS] scores of a block of keys; not cleared, since a block writes what it then reads.
    scores: Buffer<f32>,
    /// [queries, KEYS] of the same, exponentiated: the left operand of the product with v.
    weights: Buffer<T>,
    /// [queries, head_dim up to whole lines], not yet divided by the totals.
    sums: Buffer<f32>,
    /// Of the scores in units of ln 2.
    largest: [f32; QUERIES],
    total: [f32; QUERIES],
}

impl<T: Element> Kernel for Block<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Tiles>(self, s: S) {
        match T::DTYPE {
            Dtype::F32 => self.attend::<S, F32Product>(s),
            Dtype::Bf16 => self.attend::<S, Bf16Product>(s),
        }
    }
}

impl<T: Element> Block<'_, T> {
    #[inline(always)]
    fn attend<S: Tiles, P: Product>(&self, s: S) {
        let AttentionShape { visible, head_dim, heads, .. } = self.shape;
        let pitch = head_dim.next_multiple_of(LINE);
        let mut running = Running {
            scores: Buffer::with_capacity(self.queries * KEYS),
            weights: Buffer::with_capacity(self.queries * KEYS),
            sums: Buffer::zeros(self.queries * pitch),
            largest: [f32::NEG_INFINITY; QUERIES],
            total: [0.0; QUERIES],
        };
        let steps_per_row = steps_of(heads * head_dim, T::DTYPE);
        let q_segments = [Segment { a: 0, b: 0 }];
        let q = Left {
            words: words_of(self.q),
            row_stride: steps_per_row,
            segments: &q_segments,
            steps: self.keys.steps(),
        };
        for first in (0..visible).step_by(KEYS) {
            let keys = KEYS.min(visible - first);
            let panels = first / PANEL..(first + keys).div_ceil(PANEL);
            let scores = Scores { to: running.scores.as_mut_ptr().cast(), first };
            // SAFETY: q has the rows; the scores have room for KEYS columns, which whole panels do not exceed.
            unsafe { block::<S, P, _>(s, &q, self.queries, self.keys, panels, &scores) };
            for row in 0..self.queries {
                self.soften(s, &mut running, row, first, keys, pitch);
            }
            let v_segments = [Segment { a: 0, b: steps_of(first, T::DTYPE) }];
            let weights = Left {
                words: running.weights.as_ptr().cast(),
                row_stride: steps_of(KEYS, T::DTYPE),
                segments: &v_segments,
                steps: steps_of(keys, T::DTYPE),
            };
            let sums = Sums { to: running.sums.as_mut_ptr(), pitch };
            // SAFETY: the weights have the rows; the sums have room for head_dim rounded up to whole lines.
            unsafe { block::<S, P, _>(s, &weights, self.queries, self.values, 0..head_dim.div_ceil(PANEL), &sums) };
        }
        self.finish(s, &running, pitch);
    }

    /// Turns a row of scores into weights exp(score − largest so far), and rescales what was summed under a smaller one.
    #[inline(always)]
    fn soften<S: Tiles>(&self, s: S, running: &mut Running<T>, row: usize, first: usize, keys: usize, pitch: usize) {
        // SAFETY: a row of scores and weights has KEYS ≥ keys values.
        let (scores, weights) = unsafe {
            let (scores, weights) = (running.scores.as_mut_ptr(), running.weights.as_mut_ptr());
            (scores.add(row * KEYS).cast::<f32>(), weights.add(row * KEYS).cast::<T>())
        };
        // Exponents of 2 are cheaper than of e: scores are taken in units of ln 2.
        let unit = s.splat(self.shape.scale * LOG2_E);
        let bias = self.bias.map(|b| &b[row * self.shape.keys + first..][..keys]);
        let before = running.largest[row];
        let mut largest = s.splat(before);
        for at in (0..keys).step_by(S::LANES) {
            let n = S::LANES.min(keys - at);
            // SAFETY: the product has written whole lines of scores; at + n ≤ keys, the length of the bias.
            unsafe {
                let mut score = s.mul(s.load(scores.add(at)), unit);
                if let Some(bias) = bias {
                    score = s.fma(load_up_to(s, bias.as_ptr().add(at), n), s.splat(LOG2_E), score);
                }
                let score = math::keep_first(s, score, n, f32::NEG_INFINITY);
                s.store(scores.add(at), score);
                largest = s.max(largest, score);
            }
        }
        // A row of −∞ (a bias may ask for it) keeps a finite reference, so that no ∞ − ∞ arises.
        let after = s.largest(largest).max(f32::MIN);
        let shift = s.splat(after);
        let mut total = s.splat(0.0);
        for at in (0..keys).step_by(S::LANES) {
            let n = S::LANES.min(keys - at);
            // SAFETY: as above.
            unsafe {
                let weight = math::exp2(s, s.sub(s.load(scores.add(at)), shift));
                store_up_to(s, weights.add(at), weight, n);
                total = s.add(total, weight);
            }
        }
        if keys % 2 == 1 {
            // The other half of the last bf16 pair. SAFETY: KEYS is even, so keys < KEYS.
            unsafe { weights.add(keys).write(T::default()) };
        }
        let factor = (before - after).exp2();
        running.total[row] = running.total[row] * factor + s.sum(total);
        running.largest[row] = after;
        if factor != 1.0 && first > 0 {
            let factor = s.splat(factor);
            for at in (row * pitch..(row + 1) * pitch).step_by(S::LANES) {
                // SAFETY: a row of sums is a whole number of lines.
                unsafe {
                    let sums = running.sums.as_mut_ptr().add(at);
                    s.store(sums, s.mul(s.load(sums), factor));
                }
            }
        }
    }

    /// Divides by the totals and stores the result.
    #[inline(always)]
    fn finish<S: Tiles>(&self, s: S, running: &Running<T>, pitch: usize) {
        let AttentionShape { head_dim, heads, .. } = self.shape;
        for row in 0..self.queries {
            let inverse = s.splat(1.0 / running.total[row]);
            for at in (0..head_dim).step_by(S::LANES) {
                let n = S::LANES.min(head_dim - at);
                // SAFETY: the row of sums has `pitch` ≥ at + LANES values; the output has the head's part of the row.
                unsafe {
                    let sum = s.load(running.sums.as_ptr().add(row * pitch + at));
                    store_up_to(s, self.out.wrapping_add(row * heads * head_dim + at), s.mul(sum, inverse), n);
                }
            }
        }
    }
}

/// Stores scores at [row, column − first] of a matrix of KEYS columns.
struct Scores {
    to: *mut f32,
    first: usize,
}

impl Epilogue for Scores {
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize, columns: usize, tile: *const f32) {
        for r in 0..rows {
            for c in (0..columns).step_by(S::LANES) {
                // SAFETY: the block's panels start at `first` and hold at most KEYS columns.
                unsafe {
                    s.store(self.to.add((row + r) * KEYS + column - self.first + c), s.load(tile.add(r * columns + c)));
                }
            }
        }
    }
}

/// Adds to a matrix of `pitch` columns.
struct Sums {
    to: *mut f32,
    pitch: usize,
}

impl Epilogue for Sums {
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize, columns: usize, tile: *const f32) {
        for r in 0..rows {
            for c in (0..columns).step_by(S::LANES) {
                // SAFETY: columns reach at most to the end of the last line, which the pitch includes.
                unsafe {
                    let to = self.to.add((row + r) * self.pitch + column + c);
                    s.store(to, s.add(s.load(to), s.load(tile.add(r * columns + c))));
                }
            }
        }
    }
}
