//! Matrix products with prepacked weights and fused epilogues.

mod cpu;
mod reference;

pub(crate) use reference::dot;

use crate::activation::Activation;
use crate::buffer::Buffer;
use crate::error::{Result, argument_error, shape_error};
use crate::gemm::{Scales, padded_vector};
use crate::packed::PackedMatrix;
use crate::simd::Isa;
use crate::tensor::{Dtype, F32Values, Tensor};

/// The weight and bias of a linear layer, packed once at load time.
///
/// Its kind decides how the product is computed. f32 and bf16: activations are converted to it, sums are f32. int8: each
/// row of the activations is rounded to 255 levels when the product runs, sums are exact integers, and the result is scaled
/// back in f32.
#[derive(Debug, Clone)]
pub struct PackedLinear {
    pub(crate) matrix: PackedMatrix,
    /// Padded to whole panels.
    pub(crate) bias: Option<Buffer<f32>>,
    int8: Option<Int8>,
}

/// What an int8 weight has besides its bytes; both are padded to whole panels.
#[derive(Debug, Clone)]
struct Int8 {
    /// Of each output.
    scales: Buffer<f32>,
    /// −128 · Σ of the output's weights: activations are multiplied as bytes offset by 128.
    corrections: Buffer<i32>,
}

/// Most inputs of an int8 layer: sums of more could leave 32 bits.
const INT8_INPUTS_MAX: usize = 1 << 17;

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
        Ok(Self { matrix: PackedMatrix::pack(k, n, dtype, |i, j| values[j * k + i]), bias, int8: None })
    }

    /// Packs `weight` [n, k] for int8 products: each row is rounded to whole multiples of 1/127 of its largest magnitude.
    pub fn int8(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        const OP: &str = "PackedLinear::int8";
        let &[n, k] = weight.shape() else {
            return shape_error(OP, format!("weight is {:?}, needs [n, k]", weight.shape()));
        };
        let values = weight.f32_values();
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return argument_error(OP, format!("the weight at output {}, input {} is not finite", at / k, at % k));
        }
        let (mut quantised, mut scales) = (Vec::with_capacity(n * k), Vec::with_capacity(n));
        for row in values.chunks_exact(k.max(1)) {
            let scale = row.iter().fold(0.0f32, |largest, v| largest.max(v.abs())) / 127.0;
            let inverse = if scale < f32::MIN_POSITIVE { 0.0 } else { 1.0 / scale };
            quantised.extend(row.iter().map(|v| (v * inverse).round_ties_even() as i8));
            scales.push(scale);
        }
        Self::from_int8(&quantised, &scales, [n, k], bias)
    }

    /// Packs a weight that is int8 already: row-major [n, k], where output j's weights are `scales[j]` times the integers.
    pub fn from_int8(weight: &[i8], scales: &[f32], [n, k]: [usize; 2], bias: Option<&Tensor>) -> Result<Self> {
        const OP: &str = "PackedLinear::from_int8";
        if n == 0 || k == 0 || n.checked_mul(k) != Some(weight.len()) || scales.len() != n {
            let lengths = format!("{} weights and {} scales", weight.len(), scales.len());
            return shape_error(OP, format!("{lengths} do not make [{n}, {k}]"));
        }
        if k > INT8_INPUTS_MAX {
            return shape_error(OP, format!("{k} inputs are more than the {INT8_INPUTS_MAX} of an int8 layer"));
        }
        if let Some(j) = scales.iter().position(|s| !s.is_finite()) {
            return argument_error(OP, format!("the scale of output {j} is not finite"));
        }
        let bias = bias_values(OP, bias, n)?.map(padded_vector);
        let sum = |row: &[i8]| row.iter().map(|&w| i32::from(w)).sum::<i32>();
        let corrections = padded_vector(weight.chunks_exact(k).map(|row| -128 * sum(row)).collect::<Vec<_>>());
        let int8 = Int8 { scales: padded_vector(scales), corrections };
        Ok(Self { matrix: PackedMatrix::pack_int8(k, n, |i, j| weight[j * k + i]), bias, int8: Some(int8) })
    }

    /// Number of outputs.
    pub fn n(&self) -> usize {
        self.matrix.n()
    }

    /// Number of inputs.
    pub fn k(&self) -> usize {
        self.matrix.k()
    }

    /// The dtype that activations are wanted in: that of the products, or bf16 for int8 products, which take either.
    pub fn dtype(&self) -> Dtype {
        self.matrix.dtype()
    }

    /// Bytes of memory that the weight and its vectors take.
    pub fn stored_bytes(&self) -> usize {
        let vectors = self.bias.as_ref().map_or(0, |b| b.len()) + self.int8.as_ref().map_or(0, |i| 2 * i.scales.len());
        self.matrix.stored_bytes() + 4 * vectors
    }

    /// The scales of an int8 weight, without those of the rows.
    fn scales(&self) -> Option<Scales<'_>> {
        self.int8.as_ref().map(|i| Scales { rows: &[], columns: &i.scales, corrections: &i.corrections })
    }

    /// x in the dtype that the product reads.
    fn input(&self, x: &Tensor) -> Tensor {
        if self.int8.is_some() { x.clone() } else { x.to_dtype(self.dtype()) }
    }
}

/// `activation(x · Wᵀ + b)`: x [m, k] → [m, n] of dtype `out`.
pub fn linear(x: &Tensor, weight: &PackedLinear, activation: Activation, out: Dtype) -> Result<Tensor> {
    let m = check_input("linear", x, weight)?;
    let shape = [m, weight.n()];
    let x = weight.input(x);
    if let Some(isa) = Isa::current() {
        return Ok(cpu::linear(isa, &x, weight, m, activation, out));
    }
    let y = reference::linear(&x.f32_values(), weight, m, activation);
    Ok(Tensor::from_result(y, &shape, out))
}

/// `residual += gate · (x · Wᵀ + b)`: x [m, k], residual f32 [m, n], updated in place (copied first when its storage is
/// shared). The gate is `[n]`, or [g, n] for g groups of m / g successive rows each, or absent (ones).
pub fn linear_residual(x: &Tensor, weight: &PackedLinear, gate: Option<&Tensor>, residual: &mut Tensor) -> Result<()> {
    const OP: &str = "linear_residual";
    let m = check_input(OP, x, weight)?;
    if residual.shape() != [m, weight.n()] {
        return shape_error(OP, format!("residual is {:?}, needs [{m}, {}]", residual.shape(), weight.n()));
    }
    let residual = residual.f32_mut(OP)?;
    let groups = match gate {
        Some(gate) if gate.shape() == [gate.shape()[0], weight.n()] && m.is_multiple_of(gate.shape()[0]) => {
            gate.shape()[0]
        }
        _ => 1,
    };
    let Some(gates) = gate.filter(|_| groups > 1) else {
        add_product(x, weight, m, bias_values(OP, gate, weight.n())?, residual);
        return Ok(());
    };
    let (rows, n) = (m / groups, weight.n());
    for (group, (gate, residual)) in
        gates.f32_values().chunks(n).zip(residual.chunks_mut((rows * n).max(1))).enumerate()
    {
        let x = x.slice_outer(group * rows..(group + 1) * rows)?;
        add_product(&x, weight, rows, Some(F32Values::Borrowed(gate)), residual);
    }
    Ok(())
}

/// [`linear_residual`] with one gate for all m rows.
fn add_product(x: &Tensor, weight: &PackedLinear, m: usize, gate: Option<F32Values<'_>>, residual: &mut [f32]) {
    let x = weight.input(x);
    match Isa::current() {
        Some(isa) => cpu::linear_residual(isa, &x, weight, m, gate, residual),
        None => reference::linear_residual(&x.f32_values(), weight, m, gate.as_deref(), residual),
    }
}

fn check_input(op: &'static str, x: &Tensor, weight: &PackedLinear) -> Result<usize> {
    match *x.shape() {
        [m, k] if k == weight.k() => Ok(m),
        _ => shape_error(op, format!("x is {:?}, needs [m, {}]", x.shape(), weight.k())),
    }
}

/// A per-output vector as f32, checked to have `n` entries (a leading dimension of 1 is allowed).
pub(crate) fn bias_values<'a>(op: &'static str, bias: Option<&'a Tensor>, n: usize) -> Result<Option<F32Values<'a>>> {
    check_bias(op, bias, n)?;
    Ok(bias.map(Tensor::f32_values))
}

/// Whether a bias, if there is one, is `[n]` or [1, n].
pub(crate) fn check_bias(op: &'static str, bias: Option<&Tensor>, n: usize) -> Result<()> {
    match bias {
        Some(b) if !matches!(b.shape(), [len] | [1, len] if *len == n) => {
            shape_error(op, format!("a vector of {n} is needed, {:?} given", b.shape()))
        }
        _ => Ok(()),
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
    fn int8_products_of_small_integers_are_exact() {
        // The largest magnitudes are 127, so that nothing is rounded.
        let weight = tensor(&[127.0, -3.0, 5.0, 127.0], &[2, 2]);
        let packed = PackedLinear::int8(&weight, Some(&tensor(&[0.5, 0.0], &[2]))).unwrap();
        let y = linear(&tensor(&[-127.0, 2.0], &[1, 2]), &packed, Activation::None, Dtype::F32).unwrap();
        assert_eq!(y.to_vec_f32(), vec![-127.0 * 127.0 - 6.0 + 0.5, -635.0 + 254.0]);
        let stored = PackedLinear::from_int8(&[-128, 4, 0, 1], &[0.5, 2.0], [2, 2], None).unwrap();
        let mut residual = tensor(&[1.0, 1.0], &[1, 2]);
        linear_residual(&tensor(&[127.0, 1.0], &[1, 2]), &stored, None, &mut residual).unwrap();
        assert_eq!(residual.to_vec_f32(), vec![1.0 + 0.5 * (-128.0 * 127.0 + 4.0), 3.0]);
        assert!(stored.stored_bytes() < packed.stored_bytes() + 1 && stored.stored_bytes() > 4);
    }

    #[test]
    fn int8_weights_that_cannot_be_scaled_are_refused() {
        let error = PackedLinear::int8(&tensor(&[1.0, 2.0, f32::NAN, 0.0], &[2, 2]), None).unwrap_err();
        assert!(error.to_string().contains("output 1, input 0"), "{error}");
        assert!(PackedLinear::from_int8(&[1, 2, 3], &[1.0], [1, 2], None).is_err());
        assert!(PackedLinear::from_int8(&[1, 2], &[1.0], [2, 1], None).is_err());
        assert!(PackedLinear::from_int8(&[1, 2], &[f32::INFINITY], [1, 2], None).is_err());
        assert!(PackedLinear::from_int8(&[], &[], [0, usize::MAX], None).is_err());
    }

    #[test]
    fn a_row_that_is_not_finite_spoils_its_own_results_only() {
        let packed = PackedLinear::int8(&tensor(&[1.0, 2.0], &[1, 2]), None).unwrap();
        let x = tensor(&[1.0, 1.0, f32::NAN, 1.0, 1.0, f32::INFINITY, 0.0, 0.0], &[4, 2]);
        for level in crate::simd::available() {
            let run = || linear(&x, &packed, Activation::None, Dtype::F32);
            let y = crate::simd::force(level, run).unwrap().unwrap().to_vec_f32();
            assert!((y[0] - 3.0).abs() < 0.02 && y[3] == 0.0, "{level:?} {y:?}");
            assert!(y[1].is_nan() && !y[2].is_finite(), "{level:?} {y:?}");
        }
    }

    #[test]
    fn each_group_of_rows_has_its_gate() {
        let packed = PackedLinear::new(&tensor(&[1.0, 2.0], &[2, 1]), None, Dtype::F32).unwrap();
        let mut residual = tensor(&[0.0; 8], &[4, 2]);
        let gates = tensor(&[1.0, 10.0, -1.0, 0.0], &[2, 2]);
        let x = tensor(&[1.0, 2.0, 3.0, 4.0], &[4, 1]);
        linear_residual(&x, &packed, Some(&gates), &mut residual).unwrap();
        assert_eq!(residual.to_vec_f32(), vec![1.0, 20.0, 2.0, 40.0, -3.0, 0.0, -4.0, 0.0]);
        let three = tensor(&[1.0; 6], &[3, 2]);
        assert!(linear_residual(&x, &packed, Some(&three), &mut residual).is_err());
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
