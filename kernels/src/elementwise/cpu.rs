//! Pointwise operations on vectors.
//!
//! | | |
//! |---|---|
//! | meaning | out = activation(x), also the conversion between dtypes; out = Σ factor·term; out = a·b |
//! | inputs | f32 or bf16, dense, all of one length |
//! | outputs | f32 or bf16, dense, a new buffer |
//! | preconditions | none |
//! | reference | `reference.rs`; relative RMSE ≤ 1e-5 (f32), ≤ 1e-2 (bf16: the result is rounded) |
//! | bound by | memory: each input is read and the output written once |
//! | benchmark | `elementwise` |
#![allow(unsafe_code, reason = "vector loads and stores")]

use std::mem::MaybeUninit;

use half::bf16;

use crate::activation::Activation;
use crate::buffer::Buffer;
use crate::gemm::Tiles;
use crate::parallel;
use crate::simd::{Element, Isa, Kernel, Simd, math};
use crate::tensor::{Dtype, Tensor};

/// Elements that one task handles.
const PIECE: usize = 64 * 1024;

/// The activation of x, as `out`.
pub(super) fn activate(isa: Isa, x: &Tensor, activation: Activation, out: Dtype) -> Tensor {
    match out {
        Dtype::F32 => activate_as::<f32>(isa, x, activation),
        Dtype::Bf16 => activate_as::<bf16>(isa, x, activation),
    }
}

fn activate_as<O: Element>(isa: Isa, x: &Tensor, activation: Activation) -> Tensor {
    let out = match (x.as_f32(), x.as_bf16()) {
        (Some(values), _) => activate_slice::<f32, O>(isa, values, activation),
        (_, Some(values)) => activate_slice::<bf16, O>(isa, values, activation),
        _ => unreachable!("a tensor is f32 or bf16"),
    };
    O::tensor(out, x.shape())
}

fn activate_slice<I: Element, O: Element>(isa: Isa, x: &[I], activation: Activation) -> Buffer<O> {
    // SAFETY: the kernel writes as many elements as it is given.
    unsafe {
        parallel::collect_pieces(x.len(), PIECE, x.len(), |i, out| {
            isa.run(Activate { x: &x[i * PIECE..][..out.len()], out, activation });
        })
    }
}

struct Activate<'a, I, O> {
    x: &'a [I],
    out: &'a mut [MaybeUninit<O>],
    activation: Activation,
}

impl<I: Element, O: Element> Kernel for Activate<'_, I, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Tiles>(self, s: S) {
        let len = self.out.len();
        assert_eq!(self.x.len(), len);
        for at in (0..len).step_by(S::LANES) {
            let n = S::LANES.min(len - at);
            // SAFETY: at + n ≤ len, the length of both slices.
            unsafe {
                let value = load_up_to(s, self.x.as_ptr().add(at), n);
                store_up_to(s, self.out.as_mut_ptr().cast::<O>().add(at), math::activate(s, value, self.activation), n);
            }
        }
    }
}

/// Σ factor·term in `like`'s shape and dtype.
pub(super) fn linear_combination(isa: Isa, terms: &[(f32, &Tensor)], like: &Tensor) -> Tensor {
    let terms: Vec<(f32, Tensor)> = terms.iter().map(|&(factor, t)| (factor, t.to_dtype(like.dtype()))).collect();
    match like.dtype() {
        Dtype::F32 => combine_as::<f32>(isa, &terms, like),
        Dtype::Bf16 => combine_as::<bf16>(isa, &terms, like),
    }
}

fn combine_as<T: Element>(isa: Isa, terms: &[(f32, Tensor)], like: &Tensor) -> Tensor {
    let slices: Vec<(f32, &[T])> = terms.iter().filter_map(|(factor, t)| Some((*factor, T::slice(t)?))).collect();
    // SAFETY: the kernel writes as many elements as it is given.
    let out = unsafe {
        parallel::collect_pieces(like.len(), PIECE, like.len(), |i, out| {
            let cut = slices.iter().map(|&(factor, values)| (factor, &values[i * PIECE..][..out.len()]));
            isa.run(Combine { terms: cut.collect(), out });
        })
    };
    T::tensor(out, like.shape())
}

struct Combine<'a, T> {
    /// Slices as long as `out`.
    terms: Vec<(f32, &'a [T])>,
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Element> Kernel for Combine<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Tiles>(self, s: S) {
        let len = self.out.len();
        assert!(self.terms.iter().all(|(_, values)| values.len() == len));
        for at in (0..len).step_by(S::LANES) {
            let n = S::LANES.min(len - at);
            let mut sum = s.splat(0.0);
            for &(factor, values) in &self.terms {
                // SAFETY: at + n ≤ len, the length of every slice.
                sum = s.fma(s.splat(factor), unsafe { load_up_to(s, values.as_ptr().add(at), n) }, sum);
            }
            // SAFETY: as above.
            unsafe { store_up_to(s, self.out.as_mut_ptr().cast::<T>().add(at), sum, n) };
        }
    }
}

/// a·b in a's dtype.
pub(super) fn multiply(isa: Isa, a: &Tensor, b: &Tensor) -> Tensor {
    let b = b.to_dtype(a.dtype());
    match a.dtype() {
        Dtype::F32 => multiply_as::<f32>(isa, a, &b),
        Dtype::Bf16 => multiply_as::<bf16>(isa, a, &b),
    }
}

fn multiply_as<T: Element>(isa: Isa, a: &Tensor, b: &Tensor) -> Tensor {
    let (Some(left), Some(right)) = (T::slice(a), T::slice(b)) else { unreachable!("both have the dtype of a") };
    // SAFETY: the kernel writes as many elements as it is given.
    let out = unsafe {
        parallel::collect_pieces(a.len(), PIECE, a.len(), |i, out| {
            let (a, b) = (&left[i * PIECE..][..out.len()], &right[i * PIECE..][..out.len()]);
            isa.run(Multiply { a, b, out });
        })
    };
    T::tensor(out, a.shape())
}

struct Multiply<'a, T> {
    /// As long as `out`, like b.
    a: &'a [T],
    b: &'a [T],
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Element> Kernel for Multiply<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Tiles>(self, s: S) {
        let len = self.out.len();
        assert!(self.a.len() == len && self.b.len() == len);
        for at in (0..len).step_by(S::LANES) {
            let n = S::LANES.min(len - at);
            // SAFETY: at + n ≤ len, the length of all three slices.
            unsafe {
                let (a, b) = (load_up_to(s, self.a.as_ptr().add(at), n), load_up_to(s, self.b.as_ptr().add(at), n));
                store_up_to(s, self.out.as_mut_ptr().cast::<T>().add(at), s.mul(a, b), n);
            }
        }
    }
}

/// Loads `n` ≤ LANES elements, zeros in the other lanes.
///
/// # Safety
/// `n` elements must be readable.
#[inline(always)]
pub(crate) unsafe fn load_up_to<S: Simd, T: Element>(s: S, from: *const T, n: usize) -> S::F {
    // SAFETY: the same contract.
    unsafe { if n == S::LANES { T::load(s, from) } else { T::load_first(s, from, n) } }
}

/// Stores the first `n` ≤ LANES lanes.
///
/// # Safety
/// There must be room for `n` elements.
#[inline(always)]
pub(crate) unsafe fn store_up_to<S: Simd, T: Element>(s: S, to: *mut T, value: S::F, n: usize) {
    // SAFETY: the same contract.
    unsafe { if n == S::LANES { T::store(s, to, value) } else { T::store_first(s, to, value, n) } }
}
