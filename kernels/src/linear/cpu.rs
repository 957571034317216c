//! `linear` and `linear_residual` on vectors.
//!
//! | | |
//! |---|---|
//! | meaning | y = activation(x·Wᵀ + b); residual += gate·(x·Wᵀ + b) |
//! | inputs | x [m, k] in the weight's dtype (either for int8), row-major; W packed in panels of outputs; bias, gate f32 `[n]` |
//! | outputs | y [m, n] f32 or bf16; the residual f32 [m, n] is updated in place |
//! | preconditions | none: odd k is padded in bf16, odd n is masked at the store |
//! | reference | `reference.rs`; relative RMSE ≤ 1e-5 (f32), ≤ 1e-2 (bf16), equal bits (int8, before activations) |
//! | bound by | arithmetic, 2·m·n·k FLOP, from m of about 16 on; below that by reading W |
//! | benchmark | `linear` |
#![allow(unsafe_code, reason = "the output is not cleared before it is written")]

use half::bf16;

use super::HostLinear;
use crate::activation::Activation;
use crate::buffer::Buffer;
use crate::gemm::{Finish, linear_product, padded_vector};
use crate::simd::{Element, Isa};
use crate::tensor::{Dtype, F32Values, Tensor};

pub(super) fn linear(
    isa: Isa,
    x: &Tensor,
    weight: &HostLinear,
    m: usize,
    activation: Activation,
    out: Dtype,
) -> Tensor {
    match out {
        Dtype::F32 => linear_as::<f32>(isa, x, weight, m, activation),
        Dtype::Bf16 => linear_as::<bf16>(isa, x, weight, m, activation),
    }
}

fn linear_as<T: Element>(isa: Isa, x: &Tensor, weight: &HostLinear, m: usize, activation: Activation) -> Tensor {
    let n = weight.n();
    let mut out = Buffer::with_capacity(m * n);
    let bias = weight.bias.as_deref();
    let scales = weight.scales();
    let finish =
        Finish { n, scales, bias, gate: None, residual: None, activation, out: out.as_mut_ptr(), row_stride: n };
    linear_product(isa, x, m, &weight.matrix, finish);
    // SAFETY: the product has written all m rows of n columns.
    unsafe { out.set_len(m * n) };
    T::tensor(out, &[m, n])
}

pub(super) fn linear_residual(
    isa: Isa,
    x: &Tensor,
    weight: &HostLinear,
    m: usize,
    gate: Option<F32Values<'_>>,
    residual: &mut [f32],
) {
    let n = weight.n();
    let gate = gate.map(padded_vector);
    let out = residual.as_mut_ptr();
    let finish = Finish {
        n,
        scales: weight.scales(),
        bias: weight.bias.as_deref(),
        gate: gate.as_deref(),
        residual: Some(out.cast_const()),
        activation: Activation::None,
        out,
        row_stride: n,
    };
    linear_product(isa, x, m, &weight.matrix, finish);
}
