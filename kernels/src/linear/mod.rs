//! Matrix products with prepacked weights and fused epilogues.

mod cpu;
mod cublaslt;
mod cuda;
mod cuda_weight;
mod e4m3;
mod host;
mod reference;

use std::sync::Arc;

pub(crate) use cublaslt::CublasLt;
use cuda_weight::CudaLinear;
use host::HostLinear;
pub(crate) use reference::dot;

use crate::activation::Activation;
use crate::cuda::{CudaDevice, device_of};
use crate::error::{Error, Result, argument_error, shape_error};
use crate::simd::Isa;
use crate::tensor::{Dtype, F32Values, Tensor};

/// The weight and bias of a linear layer, packed once at load time: in host memory, or on the device that the weight is on.
///
/// Its kind decides how the product is computed. f32 and bf16: activations are converted to it, sums are f32. int8: each
/// row of the activations is rounded to 255 levels when the product runs, sums are exact integers, and the result is scaled
/// back in f32. e4m3: likewise, with the levels of an 8-bit floating-point number and sums in f32.
#[derive(Debug, Clone)]
pub struct PackedLinear {
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Host(Arc<HostLinear>),
    Cuda(Arc<CudaLinear>),
}

/// Most inputs of an int8 layer: sums of more could leave 32 bits.
const INT8_INPUTS_MAX: usize = 1 << 17;

impl PackedLinear {
    /// Packs `weight` [n, k] (torch's layout: one row per output) and `bias` `[n]` for products in `dtype`.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, dtype: Dtype) -> Result<Self> {
        const OP: &str = "PackedLinear::new";
        let shape = check_weight(OP, weight)?;
        let place = match weights_device(OP, weight, bias)? {
            Some(device) => Place::Cuda(Arc::new(CudaLinear::new(OP, &device, weight, shape, bias, dtype)?)),
            None => Place::Host(Arc::new(HostLinear::new(OP, weight, shape, bias, dtype)?)),
        };
        Ok(Self { place })
    }

    /// Packs `weight` [n, k] for int8 products: each row is rounded to whole multiples of 1/127 of its largest magnitude.
    pub fn int8(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        const OP: &str = "PackedLinear::int8";
        let shape = check_int8(OP, check_weight(OP, weight)?)?;
        let place = match weights_device(OP, weight, bias)? {
            Some(device) => Place::Cuda(Arc::new(CudaLinear::int8(OP, &device, weight, shape, bias)?)),
            None => Place::Host(Arc::new(HostLinear::int8(OP, weight, shape, bias)?)),
        };
        Ok(Self { place })
    }

    /// Packs a weight that is int8 already: row-major [n, k], where output j's weights are `scales[j]` times the integers.
    /// It goes where tensors made by this thread go (see [`CudaDevice::scope`]).
    pub fn from_int8(weight: &[i8], scales: &[f32], shape: [usize; 2], bias: Option<&Tensor>) -> Result<Self> {
        const OP: &str = "PackedLinear::from_int8";
        let [n, k] = shape;
        if n == 0 || k == 0 || n.checked_mul(k) != Some(weight.len()) || scales.len() != n {
            let lengths = format!("{} weights and {} scales", weight.len(), scales.len());
            return shape_error(OP, format!("{lengths} do not make [{n}, {k}]"));
        }
        check_int8(OP, shape)?;
        if let Some(j) = scales.iter().position(|s| !s.is_finite()) {
            return argument_error(OP, format!("the scale of output {j} is not finite"));
        }
        let place = match CudaDevice::current() {
            Some(device) => Place::Cuda(Arc::new(CudaLinear::from_int8(OP, &device, weight, scales, shape, bias)?)),
            None => Place::Host(Arc::new(HostLinear::from_int8(OP, weight, scales, shape, bias)?)),
        };
        Ok(Self { place })
    }

    /// Packs `weight` [n, k], which must be on a device that multiplies e4m3 (compute capability 8.9 or newer), for products
    /// of e4m3: each row is rounded to it, scaled so that its largest magnitude becomes 448.
    pub fn fp8(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        const OP: &str = "PackedLinear::fp8";
        let shape = check_weight(OP, weight)?;
        let Some(device) = weights_device(OP, weight, bias)? else {
            let detail = "e4m3 products need a CUDA device, the weight is in host memory".to_owned();
            return Err(Error::DeviceKernel { op: OP, detail });
        };
        Ok(Self { place: Place::Cuda(Arc::new(CudaLinear::e4m3(OP, &device, weight, shape, bias)?)) })
    }

    /// [`PackedLinear::fp8`] in host memory, multiplied by the plain reference: what tests compare the device with.
    #[doc(hidden)]
    pub fn fp8_reference_for_tests(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        const OP: &str = "PackedLinear::fp8";
        Ok(Self { place: Place::Host(Arc::new(HostLinear::e4m3(OP, weight, check_weight(OP, weight)?, bias)?)) })
    }

    /// Number of outputs.
    pub fn n(&self) -> usize {
        match &self.place {
            Place::Host(host) => host.n(),
            Place::Cuda(cuda) => cuda.n,
        }
    }

    /// Number of inputs.
    pub fn k(&self) -> usize {
        match &self.place {
            Place::Host(host) => host.k(),
            Place::Cuda(cuda) => cuda.k,
        }
    }

    /// The dtype that activations are wanted in: that of the products, or bf16 for 8-bit products, which take either.
    pub fn dtype(&self) -> Dtype {
        match &self.place {
            Place::Host(host) => host.dtype(),
            Place::Cuda(cuda) => cuda.dtype(),
        }
    }

    /// Bytes of memory that the weight and its vectors take.
    pub fn stored_bytes(&self) -> usize {
        match &self.place {
            Place::Host(host) => host.stored_bytes(),
            Place::Cuda(cuda) => cuda.stored_bytes(),
        }
    }
}

/// `activation(x · Wᵀ + b)`: x [m, k] → [m, n] of dtype `out`. x is where the weight is.
pub fn linear(x: &Tensor, weight: &PackedLinear, activation: Activation, out: Dtype) -> Result<Tensor> {
    const OP: &str = "linear";
    let m = check_input(OP, x, weight)?;
    let host = match &weight.place {
        Place::Host(host) => host,
        Place::Cuda(cuda) => {
            cuda.check_place(OP, &[x])?;
            return cuda.linear(x, m, activation, out);
        }
    };
    check_host(OP, &[x])?;
    let x = host.input(x);
    match Isa::current() {
        Some(isa) if host.e4m3.is_none() => Ok(cpu::linear(isa, &x, host, m, activation, out)),
        _ => Ok(Tensor::from_result(reference::linear(&x.f32_values(), host, m, activation), &[m, host.n()], out)),
    }
}

/// `residual += gate · (x · Wᵀ + b)`: x [m, k], residual f32 [m, n], updated in place (copied first when its storage is
/// shared). The gate is `[n]`, or [g, n] for g groups of m / g successive rows each, or absent (ones). All are where the
/// weight is.
pub fn linear_residual(x: &Tensor, weight: &PackedLinear, gate: Option<&Tensor>, residual: &mut Tensor) -> Result<()> {
    const OP: &str = "linear_residual";
    let m = check_input(OP, x, weight)?;
    if residual.shape() != [m, weight.n()] {
        return shape_error(OP, format!("residual is {:?}, needs [{m}, {}]", residual.shape(), weight.n()));
    }
    let groups = match gate {
        Some(gate) if gate.shape() == [gate.shape()[0], weight.n()] && m.is_multiple_of(gate.shape()[0]) => {
            gate.shape()[0]
        }
        _ => 1,
    };
    let host = match &weight.place {
        Place::Host(host) => host,
        Place::Cuda(cuda) => {
            let places: Vec<&Tensor> = [x, residual].into_iter().chain(gate).collect();
            cuda.check_place(OP, &places)?;
            return cuda.linear_residual(x, m, gate, groups, residual);
        }
    };
    check_host(OP, &[x])?;
    let residual = residual.f32_mut(OP)?;
    let Some(gates) = gate.filter(|_| groups > 1) else {
        add_product(x, host, m, bias_values(OP, gate, host.n())?, residual);
        return Ok(());
    };
    let (rows, n) = (m / groups, host.n());
    for (group, (gate, residual)) in
        gates.f32_values().chunks(n).zip(residual.chunks_mut((rows * n).max(1))).enumerate()
    {
        let x = x.slice_outer(group * rows..(group + 1) * rows)?;
        add_product(&x, host, rows, Some(F32Values::Borrowed(gate)), residual);
    }
    Ok(())
}

/// [`linear_residual`] with one gate for all m rows.
fn add_product(x: &Tensor, weight: &HostLinear, m: usize, gate: Option<F32Values<'_>>, residual: &mut [f32]) {
    let x = weight.input(x);
    match Isa::current() {
        Some(isa) if weight.e4m3.is_none() => cpu::linear_residual(isa, &x, weight, m, gate, residual),
        _ => reference::linear_residual(&x.f32_values(), weight, m, gate.as_deref(), residual),
    }
}

fn check_weight(op: &'static str, weight: &Tensor) -> Result<[usize; 2]> {
    match *weight.shape() {
        [_, _] if weight.is_empty() => shape_error(op, format!("weight {:?} is empty", weight.shape())),
        [n, k] => Ok([n, k]),
        _ => shape_error(op, format!("weight is {:?}, needs [n, k]", weight.shape())),
    }
}

fn check_int8(op: &'static str, [n, k]: [usize; 2]) -> Result<[usize; 2]> {
    match k {
        ..=INT8_INPUTS_MAX => Ok([n, k]),
        _ => shape_error(op, format!("{k} inputs are more than the {INT8_INPUTS_MAX} of an int8 layer")),
    }
}

/// The device that a weight and its bias are on.
fn weights_device(op: &'static str, weight: &Tensor, bias: Option<&Tensor>) -> Result<Option<CudaDevice>> {
    let tensors: Vec<&Tensor> = [weight].into_iter().chain(bias).collect();
    device_of(op, &tensors)
}

/// A weight in host memory multiplies what is in host memory.
fn check_host(op: &'static str, tensors: &[&Tensor]) -> Result<()> {
    match device_of(op, tensors)? {
        None => Ok(()),
        Some(_) => argument_error(op, "the weight is in host memory, its input on a device"),
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
