//! Normalisations on vectors.
//!
//! | | |
//! |---|---|
//! | meaning | y = activation((x − mean) · factor · weight + bias) per row; mean is 0 except for LayerNorm |
//! | inputs | x [rows, d] f32 or bf16; weight, bias f32 `[d]` or [g, d] for g groups of successive rows |
//! | outputs | [rows, d] f32 or bf16, a new buffer |
//! | preconditions | d > 0 |
//! | reference | `reference.rs`; relative RMSE ≤ 1e-5 (f32: order of summation), ≤ 1e-2 (bf16: the result is rounded) |
//! | bound by | memory: x is read from memory once (its row stays in the first-level cache), y is written once |
//! | benchmark | `layer_norm_modulate`, `rms_norm`, `channel_norm_silu` |
#![allow(unsafe_code, reason = "vector loads and stores")]

use std::mem::MaybeUninit;

use half::bf16;

use crate::activation::Activation;
use crate::buffer::Buffer;
use crate::elementwise::{load_up_to, store_up_to};
use crate::gemm::Tiles;
use crate::parallel;
use crate::simd::{Element, Isa, Kernel, math};
use crate::tensor::{Dtype, Tensor};

/// What a row is divided by.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Norm {
    /// Centred, then √(variance + eps).
    Layer(f32),
    /// √(mean square + eps).
    Rms(f32),
    /// max(‖x‖₂, 1e-12) / √d.
    L2,
}

/// What every row goes through.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spec<'a> {
    pub(super) norm: Norm,
    /// `[d]`, or [g, d] where each row is for rows / g successive rows of x
    pub(super) weight: &'a [f32],
    /// As long as the weight.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) activation: Activation,
}

/// Normalises x over its last dimension `d`.
pub(super) fn normalise(isa: Isa, x: &Tensor, d: usize, spec: Spec<'_>, out: Dtype) -> Tensor {
    match out {
        Dtype::F32 => normalise_as::<f32>(isa, x, d, spec),
        Dtype::Bf16 => normalise_as::<bf16>(isa, x, d, spec),
    }
}

fn normalise_as<O: Element>(isa: Isa, x: &Tensor, d: usize, spec: Spec<'_>) -> Tensor {
    let out = match (x.as_f32(), x.as_bf16()) {
        (Some(values), _) => normalise_slice::<f32, O>(isa, values, d, spec),
        (_, Some(values)) => normalise_slice::<bf16, O>(isa, values, d, spec),
        _ => unreachable!("a tensor is f32 or bf16"),
    };
    O::tensor(out, x.shape())
}

fn normalise_slice<I: Element, O: Element>(isa: Isa, x: &[I], d: usize, spec: Spec<'_>) -> Buffer<O> {
    let rows = parallel::rows_per_piece(d);
    let group_rows = (x.len() / spec.weight.len()).max(1);
    // SAFETY: the kernel writes all rows that it is given.
    unsafe {
        parallel::collect_pieces(x.len(), rows * d, x.len() / 2, |piece, out| {
            let first_row = piece * rows;
            isa.run(Rows { x: &x[first_row * d..][..out.len()], out, d, first_row, group_rows, spec });
        })
    }
}

struct Rows<'a, I, O> {
    x: &'a [I],
    out: &'a mut [MaybeUninit<O>],
    d: usize,
    first_row: usize,
    /// Rows that share a weight and a bias.
    group_rows: usize,
    spec: Spec<'a>,
}

impl<I: Element, O: Element> Kernel for Rows<'_, I, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Tiles>(self, s: S) {
        let d = self.d;
        for (i, (x, out)) in self.x.chunks_exact(d).zip(self.out.chunks_exact_mut(d)).enumerate() {
            let (mean, factor) = statistics(s, x, self.spec.norm);
            let group = (self.first_row + i) / self.group_rows * d;
            let weight = &self.spec.weight[group..][..d];
            let bias = self.spec.bias.map(|b| &b[group..][..d]);
            let (mean, factor) = (s.splat(mean), s.splat(factor));
            for at in (0..d).step_by(S::LANES) {
                let n = S::LANES.min(d - at);
                // SAFETY: at + n ≤ d, the length of x, out, weight and bias.
                unsafe {
                    let value = s.mul(s.sub(load_up_to(s, x.as_ptr().add(at), n), mean), factor);
                    let weight = load_up_to(s, weight.as_ptr().add(at), n);
                    let value = match bias {
                        Some(bias) => s.fma(value, weight, load_up_to(s, bias.as_ptr().add(at), n)),
                        None => s.mul(value, weight),
                    };
                    store_up_to(
                        s,
                        out.as_mut_ptr().cast::<O>().add(at),
                        math::activate(s, value, self.spec.activation),
                        n,
                    );
                }
            }
        }
    }
}

/// Mean to subtract and factor to multiply with.
#[inline(always)]
pub(crate) fn statistics<S: Tiles, I: Element>(s: S, x: &[I], norm: Norm) -> (f32, f32) {
    let d = x.len() as f32;
    match norm {
        Norm::Layer(eps) => {
            let mean = sum(s, x) / d;
            (mean, 1.0 / (squared_distance(s, x, mean) / d + eps).sqrt())
        }
        Norm::Rms(eps) => (0.0, 1.0 / (squared_distance(s, x, 0.0) / d + eps).sqrt()),
        Norm::L2 => (0.0, d.sqrt() / squared_distance(s, x, 0.0).sqrt().max(1e-12)),
    }
}

#[inline(always)]
fn sum<S: Tiles, I: Element>(s: S, x: &[I]) -> f32 {
    fold(s, x, |sum, value, _| s.add(sum, value))
}

/// Σ (x − centre)².
#[inline(always)]
fn squared_distance<S: Tiles, I: Element>(s: S, x: &[I], centre: f32) -> f32 {
    let shift = s.splat(centre);
    fold(s, x, |sum, value, n| {
        // Lanes past n are loaded as zero: only a centre elsewhere moves them, and clearing them goes through memory.
        let distance = if centre == 0.0 { value } else { math::keep_first(s, s.sub(value, shift), n, 0.0) };
        s.fma(distance, distance, sum)
    })
}

/// The sum of what `step(sum, value, lanes that count)` adds for each vector of x, zeros past its end. Four sums in turn hide
/// the latency of one.
#[inline(always)]
fn fold<S: Tiles, I: Element>(s: S, x: &[I], step: impl Fn(S::F, S::F, usize) -> S::F) -> f32 {
    let mut sums = [s.splat(0.0); 4];
    let whole = x.len() / (4 * S::LANES) * (4 * S::LANES);
    for at in (0..whole).step_by(4 * S::LANES) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: whole groups of four vectors lie within the slice.
            *sum = step(*sum, unsafe { I::load(s, x.as_ptr().add(at + i * S::LANES)) }, S::LANES);
        }
    }
    for at in (whole..x.len()).step_by(S::LANES) {
        let n = S::LANES.min(x.len() - at);
        // SAFETY: at + n ≤ the slice's length.
        sums[0] = step(sums[0], unsafe { load_up_to(s, x.as_ptr().add(at), n) }, n);
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}
