//! Matrix products with prepacked weights and fused epilogues.

mod cpu;
mod reference;

pub(crate) use reference::dot;

use crate::activation::Activation;
use crate::error::{Result, shape_error};
use crate::gemm::padded_vector;
use crate::packed::PackedMatrix;
use crate::simd::Isa;
use crate::tensor::{Dtype, Tensor};

/// The weight and bias of a linear layer, packed once at load time.
///
/// Its dtype decides how the product is computed: activations are converted to it, sums are f32.
#[derive(Debug, Clone)]
pub struct PackedLinear {
    pub(crate) matrix: PackedMatrix,
    /// Padded to whole panels.
    pub(crate) bias: Option<Vec<f32>>,
}

impl PackedLinear {
    /// Packs `weight` [n, k] (torch's layout: one row per output) and `bias` `[n]` for products in `dtype`.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, dtype: Dtype) -> Result<Self> {
        const OP: &str = "PackedLinear::new";
        let &[n, k] = weight.shape() else {
            return shape_error(OP, format!("weight is {:?}, needs [n, k]", weight.shape()));
        };
        if weight.is_empty() {
            return shape_error(OP, format!("weight {:?} is empty", weight.shape()));
        }
        let bias = bias_values(OP, bias, n)?.map(padded_vector);
        let values = weight.f32_values();
        Ok(Self { matrix: PackedMatrix::pack(k, n, dtype, |i, j| values[j * k + i]), bias })
    }

    /// Number of outputs.
    pub fn n(&self) -> usize {
        self.matrix.n()
    }

    /// Number of inputs.
    pub fn k(&self) -> usize {
        self.matrix.k()
    }

    /// The dtype that products are computed in.
    pub fn dtype(&self) -> Dtype {
        self.matrix.dtype()
    }
}

/// `activation(x · Wᵀ + b)`: x [m, k] → [m, n] of dtype `out`.
pub fn linear(x: &Tensor, weight: &PackedLinear, activation: Activation, out: Dtype) -> Result<Tensor> {
    let m = check_input("linear", x, weight)?;
    let shape = [m, weight.n()];
    let x = x.to_dtype(weight.dtype());
    if let Some(isa) = Isa::current() {
        return Ok(cpu::linear(isa, &x, weight, m, activation, out));
    }
    let y = reference::linear(&x.f32_values(), weight, m, activation);
    Ok(Tensor::from_result(y, &shape, out))
}

/// `residual += gate · (x · Wᵀ + b)`: x [m, k], gate `[n]` (ones when absent), residual f32 [m, n], updated in place
/// (copied first when its storage is shared).
pub fn linear_residual(x: &Tensor, weight: &PackedLinear, gate: Option<&Tensor>, residual: &mut Tensor) -> Result<()> {
    const OP: &str = "linear_residual";
    let m = check_input(OP, x, weight)?;
    if residual.shape() != [m, weight.n()] {
        return shape_error(OP, format!("residual is {:?}, needs [{m}, {}]", residual.shape(), weight.n()));
    }
    let gate = bias_values(OP, gate, weight.n())?;
    let residual = residual.f32_mut(OP)?;
    let x = x.to_dtype(weight.dtype());
    match Isa::current() {
        Some(isa) => cpu::linear_residual(isa, &x, weight, m, gate, residual),
        None => reference::linear_residual(&x.f32_values(), weight, m, gate.as_deref(), residual),
    }
    Ok(())
}

fn check_input(op: &'static str, x: &Tensor, weight: &PackedLinear) -> Result<usize> {
    match *x.shape() {
        [m, k] if k == weight.k() => Ok(m),
        _ => shape_error(op, format!("x is {:?}, needs [m, {}]", x.shape(), weight.k())),
    }
}

/// A per-output vector as f32, checked to have `n` entries (a leading dimension of 1 is allowed).
pub(crate) fn bias_values(op: &'static str, bias: Option<&Tensor>, n: usize) -> Result<Option<Vec<f32>>> {
    match bias {
        None => Ok(None),
        Some(b) if matches!(b.shape(), [len] | [1, len] if *len == n) => Ok(Some(b.to_vec_f32())),
        Some(b) => shape_error(op, format!("a vector of {n} is needed, {:?} given", b.shape())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_f32(values, shape).unwrap()
    }

    #[test]
    fn product_bias_and_activation_are_applied_in_order() {
        let weight = tensor(&[1.0, 2.0, -1.0, 0.5], &[2, 2]);
        let packed = PackedLinear::new(&weight, Some(&tensor(&[0.5, -3.0], &[2])), Dtype::F32).unwrap();
        let y = linear(&tensor(&[2.0, 4.0], &[1, 2]), &packed, Activation::LeakyRelu(0.2), Dtype::F32).unwrap();
        // 2·1 + 4·2 + 0.5 = 10.5; −2 + 2 − 3 = −3 → −0.6.
        assert_eq!(y.to_vec_f32(), vec![10.5, -0.6]);
    }

    #[test]
    fn gate_scales_what_is_added_to_the_residual() {
        let packed = PackedLinear::new(&tensor(&[1.0, 2.0], &[2, 1]), None, Dtype::Bf16).unwrap();
        let mut residual = tensor(&[1.0, 1.0, 0.0, 0.0], &[2, 2]);
        let gate = tensor(&[10.0, -1.0], &[2]);
        linear_residual(&tensor(&[1.0, 3.0], &[2, 1]), &packed, Some(&gate), &mut residual).unwrap();
        assert_eq!(residual.to_vec_f32(), vec![11.0, -1.0, 30.0, -6.0]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let packed = PackedLinear::new(&tensor(&[1.0; 6], &[2, 3]), None, Dtype::F32).unwrap();
        assert!(linear(&tensor(&[1.0; 4], &[2, 2]), &packed, Activation::None, Dtype::F32).is_err());
        let x = tensor(&[1.0; 3], &[1, 3]);
        assert!(linear_residual(&x, &packed, None, &mut tensor(&[0.0; 3], &[1, 3])).is_err());
        let mut halves = Tensor::zeros(&[1, 2], Dtype::Bf16).unwrap();
        assert!(linear_residual(&x, &packed, None, &mut halves).is_err());
        assert!(PackedLinear::new(&tensor(&[1.0; 6], &[6]), None, Dtype::F32).is_err());
        assert!(PackedLinear::new(&tensor(&[1.0; 6], &[2, 3]), Some(&x), Dtype::F32).is_err());
    }
}
