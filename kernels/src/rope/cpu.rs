//! Rotation of pairs on vectors.
//!
//! | | |
//! |---|---|
//! | meaning | y = x · cos + swap(x) · sin, with the table's cosines doubled and its sines signed |
//! | inputs | x [t, heads·hd] f32 or bf16; table [t, hd] f32 |
//! | outputs | [t, heads·hd] of x's dtype, a new buffer |
//! | preconditions | hd even (the table is made so) |
//! | reference | `reference.rs`; relative RMSE ≤ 1e-5 (f32), ≤ 1e-2 (bf16: the result is rounded) |
//! | bound by | memory: x is read, y written, the table is shared by the heads |
//! | benchmark | `rope` |
#![allow(unsafe_code, reason = "vector loads and stores")]

use std::mem::MaybeUninit;

use half::bf16;

use super::RopeTable;
use crate::elementwise::{load_up_to, store_up_to};
use crate::gemm::Tiles;
use crate::parallel;
use crate::simd::{Element, Isa, Kernel};
use crate::tensor::{Dtype, Tensor};

pub(super) fn rope(isa: Isa, x: &Tensor, heads: usize, table: &RopeTable) -> Tensor {
    match x.dtype() {
        Dtype::F32 => rope_as::<f32>(isa, x, heads, table),
        Dtype::Bf16 => rope_as::<bf16>(isa, x, heads, table),
    }
}

fn rope_as<T: Element>(isa: Isa, x: &Tensor, heads: usize, table: &RopeTable) -> Tensor {
    let Some(values) = T::slice(x) else { unreachable!("the caller asks for the tensor's own dtype") };
    let (head_dim, width) = (table.head_dim(), heads * table.head_dim());
    let rows = parallel::rows_per_piece(width);
    // SAFETY: the kernel writes all heads that it is given.
    let out = unsafe {
        parallel::collect_pieces(values.len(), rows * width, values.len() / 4, |piece, out| {
            let tokens = out.len() / width;
            let angles = piece * rows * head_dim..(piece * rows + tokens) * head_dim;
            isa.run(Rotate {
                x: &values[piece * rows * width..][..out.len()],
                out,
                cos: &table.cos[angles.clone()],
                sin: &table.sin[angles],
                heads,
                head_dim,
            });
        })
    };
    T::tensor(out, x.shape())
}

struct Rotate<'a, T> {
    /// [tokens, heads, head_dim]
    x: &'a [T],
    out: &'a mut [MaybeUninit<T>],
    /// [tokens, head_dim]
    cos: &'a [f32],
    sin: &'a [f32],
    heads: usize,
    head_dim: usize,
}

impl<T: Element> Kernel for Rotate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Tiles>(self, s: S) {
        let hd = self.head_dim;
        let heads = self.x.chunks_exact(hd).zip(self.out.chunks_exact_mut(hd)).enumerate();
        for (i, (x, out)) in heads {
            let token = i / self.heads * hd;
            let (cos, sin) = (&self.cos[token..][..hd], &self.sin[token..][..hd]);
            for at in (0..hd).step_by(S::LANES) {
                let n = S::LANES.min(hd - at);
                // SAFETY: at + n ≤ head_dim, the length of all four slices.
                unsafe {
                    let value = load_up_to(s, x.as_ptr().add(at), n);
                    let turned = s.mul(s.swap_pairs(value), load_up_to(s, sin.as_ptr().add(at), n));
                    let value = s.fma(value, load_up_to(s, cos.as_ptr().add(at), n), turned);
                    store_up_to(s, out.as_mut_ptr().cast::<T>().add(at), value, n);
                }
            }
        }
    }
}
