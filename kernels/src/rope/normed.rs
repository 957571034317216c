//! RMSNorm and rotation in one pass over queries or keys.
//!
//! | | |
//! |---|---|
//! | meaning | y = v · cos + swap(v) · sin for v = x · weight / √(mean(x²) + eps) over a whole row |
//! | inputs | x [n·t, heads·hd] f32 or bf16; weight `[heads·hd]` f32; table [t, hd] f32 |
//! | outputs | [n·t, heads·hd] f32 or bf16, a new buffer |
//! | preconditions | hd even (the table is made so) |
//! | reference | `norm::reference` then `rope::reference`; relative RMSE ≤ 1e-5 (f32), ≤ 1e-2 (bf16: the result is rounded) |
//! | bound by | memory: x is read once (its row stays in the first-level cache), y is written once |
//! | benchmark | `rms_norm_rope` |
#![allow(unsafe_code, reason = "vector loads and stores")]

use std::mem::MaybeUninit;

use half::bf16;

use super::RopeTable;
use crate::elementwise::{load_up_to, store_up_to};
use crate::gemm::Tiles;
use crate::norm::{Norm, statistics};
use crate::parallel;
use crate::simd::{Element, Isa, Kernel};
use crate::tensor::{Dtype, Tensor};

/// What every row goes through.
#[derive(Clone, Copy)]
pub(super) struct Spec<'a> {
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
    pub(super) heads: usize,
    pub(super) table: &'a RopeTable,
}

pub(super) fn rms_norm_rope(isa: Isa, x: &Tensor, spec: Spec<'_>, out: Dtype) -> Tensor {
    match (x.as_f32(), x.as_bf16(), out) {
        (Some(values), _, Dtype::F32) => run::<f32, f32>(isa, values, x.shape(), spec),
        (Some(values), _, Dtype::Bf16) => run::<f32, bf16>(isa, values, x.shape(), spec),
        (_, Some(values), Dtype::F32) => run::<bf16, f32>(isa, values, x.shape(), spec),
        (_, Some(values), Dtype::Bf16) => run::<bf16, bf16>(isa, values, x.shape(), spec),
        _ => unreachable!("a tensor is f32 or bf16"),
    }
}

fn run<I: Element, O: Element>(isa: Isa, x: &[I], shape: &[usize], spec: Spec<'_>) -> Tensor {
    let width = spec.weight.len();
    let rows = parallel::rows_per_piece(width);
    // SAFETY: the kernel writes all rows that it is given.
    let out = unsafe {
        parallel::collect_pieces(x.len(), rows * width, x.len() / 2, |piece, out| {
            let first_row = piece * rows;
            isa.run(Rows { x: &x[first_row * width..][..out.len()], out, first_row, spec });
        })
    };
    O::tensor(out, shape)
}

struct Rows<'a, I, O> {
    x: &'a [I],
    out: &'a mut [MaybeUninit<O>],
    first_row: usize,
    spec: Spec<'a>,
}

impl<I: Element, O: Element> Kernel for Rows<'_, I, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Tiles>(self, s: S) {
        let Spec { weight, eps, heads, table } = self.spec;
        let (width, head_dim) = (weight.len(), table.head_dim());
        for (i, (x, out)) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)).enumerate() {
            let factor = s.splat(statistics(s, x, Norm::Rms(eps)).1);
            let angles = (self.first_row + i) % table.tokens() * head_dim;
            let (cos, sin) = (&table.cos[angles..][..head_dim], &table.sin[angles..][..head_dim]);
            for at in (0..head_dim).step_by(S::LANES) {
                let n = S::LANES.min(head_dim - at);
                // SAFETY: at + n ≤ head_dim, the length of both slices.
                let (cos, sin) =
                    unsafe { (load_up_to(s, cos.as_ptr().add(at), n), load_up_to(s, sin.as_ptr().add(at), n)) };
                for at in (at..heads * head_dim).step_by(head_dim) {
                    // SAFETY: at + n is within the head's part of x, weight and out.
                    unsafe {
                        let value = s.mul(load_up_to(s, x.as_ptr().add(at), n), factor);
                        let value = s.mul(value, load_up_to(s, weight.as_ptr().add(at), n));
                        let value = s.fma(value, cos, s.mul(s.swap_pairs(value), sin));
                        store_up_to(s, out.as_mut_ptr().cast::<O>().add(at), value, n);
                    }
                }
            }
        }
    }
}
