//! Pointwise arithmetic between tensors of one shape, and table look-up.

mod cpu;
mod cuda;
mod reference;
mod step;

pub(crate) use cpu::{load_up_to, store_up_to};
pub use step::{Gram, all_finite, combine_step, gram};

use crate::activation::Activation;
use crate::cuda::device_of;
use crate::error::{Result, argument_error, shape_error};
use crate::simd::Isa;
use crate::tensor::{Dtype, Tensor};

/// Applies `activation` to every element; same shape and dtype.
pub fn activate(x: &Tensor, activation: Activation) -> Tensor {
    activate_as(x, activation, x.dtype())
}

/// The same values in another dtype.
pub(crate) fn convert(x: &Tensor, dtype: Dtype) -> Tensor {
    activate_as(x, Activation::None, dtype)
}

fn activate_as(x: &Tensor, activation: Activation, out: Dtype) -> Tensor {
    if let Some(device) = x.cuda().map(|cuda| cuda.buffer.device()) {
        return device.or_poisoned(x.shape(), out, || cuda::activate(device, x, activation, out));
    }
    if let Some(isa) = Isa::current() {
        return cpu::activate(isa, x, activation, out);
    }
    Tensor::from_result(reference::activate(&x.f32_values(), activation), x.shape(), out)
}

/// Every element of an f32 tensor brought into `low..=high`; in place when nobody shares it.
pub fn clamp(mut x: Tensor, low: f32, high: f32) -> Result<Tensor> {
    const OP: &str = "clamp";
    if low.is_nan() || high.is_nan() || low > high {
        return argument_error(OP, format!("{low}..={high} is no range"));
    }
    if let Some(device) = device_of(OP, &[&x])? {
        return cuda::clamp(&device, x, low, high);
    }
    let len = x.len();
    crate::parallel::for_each_piece(x.f32_mut(OP)?, 64 * 1024, len, |_, piece| {
        piece.iter_mut().for_each(|v| *v = v.clamp(low, high));
    });
    Ok(x)
}

/// `a + b` in a's dtype.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    linear_combination(&[(1.0, a), (1.0, b)])
}

/// `Σ factor · tensor` over the terms, in the first one's dtype: a sampler's step, noise mixing, scaled sums.
pub fn linear_combination(terms: &[(f32, &Tensor)]) -> Result<Tensor> {
    const OP: &str = "linear_combination";
    let Some((_, first)) = terms.first() else { return argument_error(OP, "needs at least one term") };
    if let Some((_, odd)) = terms.iter().find(|(_, t)| t.shape() != first.shape()) {
        return shape_error(OP, format!("{:?} and {:?} differ", first.shape(), odd.shape()));
    }
    let tensors: Vec<&Tensor> = terms.iter().map(|&(_, tensor)| tensor).collect();
    if let Some(device) = device_of(OP, &tensors)? {
        return cuda::linear_combination(&device, terms, first);
    }
    if let Some(isa) = Isa::current() {
        return Ok(cpu::linear_combination(isa, terms, first));
    }
    let values: Vec<_> = terms.iter().map(|&(factor, t)| (factor, t.f32_values())).collect();
    let y = reference::linear_combination(&values);
    Ok(Tensor::from_result(y, first.shape(), first.dtype()))
}

/// `a · b`, element by element, in a's dtype: the gate of a gated feed-forward layer.
pub fn multiply(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() {
        return shape_error("multiply", format!("{:?} and {:?} differ", a.shape(), b.shape()));
    }
    if let Some(device) = device_of("multiply", &[a, b])? {
        return cuda::multiply(&device, a, b);
    }
    if let Some(isa) = Isa::current() {
        return Ok(cpu::multiply(isa, a, b));
    }
    let y = reference::multiply(&a.f32_values(), &b.f32_values());
    Ok(Tensor::from_result(y, a.shape(), a.dtype()))
}

/// Classifier-free guidance: `uncond + guidance · (cond − uncond)`, in uncond's dtype.
pub fn guide(uncond: &Tensor, cond: &Tensor, guidance: f32) -> Result<Tensor> {
    linear_combination(&[(1.0 - guidance, uncond), (guidance, cond)])
}

/// Rows of a table: table [v, d], ids of n rows → [n, d] of the table's dtype.
pub fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    const OP: &str = "embedding";
    let &[rows, d] = table.shape() else {
        return shape_error(OP, format!("table is {:?}, needs [v, d]", table.shape()));
    };
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        return argument_error(OP, format!("id {id} is outside of the table's {rows} rows"));
    }
    table.gather_rows(ids, d)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_f32(values, shape).unwrap()
    }

    #[test]
    fn combinations_scale_and_sum_and_refuse_other_shapes() {
        let (a, b) = (tensor(&[1.0, 2.0], &[2]), tensor(&[10.0, 20.0], &[2]));
        assert_eq!(add(&a, &b).unwrap().to_vec_f32(), vec![11.0, 22.0]);
        assert_eq!(linear_combination(&[(2.0, &a), (-0.5, &b)]).unwrap().to_vec_f32(), vec![-3.0, -6.0]);
        assert_eq!(guide(&a, &b, 2.0).unwrap().to_vec_f32(), vec![19.0, 38.0]);
        assert_eq!(guide(&a, &b, 0.0).unwrap().to_vec_f32(), a.to_vec_f32());
        assert!(add(&a, &tensor(&[1.0, 2.0], &[1, 2])).is_err());
        assert!(linear_combination(&[]).is_err());
    }

    #[test]
    fn products_are_taken_element_by_element() {
        let (a, b) = (tensor(&[1.0, -2.0, 3.0], &[3]), tensor(&[0.5, 4.0, 0.0], &[3]));
        assert_eq!(multiply(&a, &b).unwrap().to_vec_f32(), vec![0.5, -8.0, 0.0]);
        assert!(multiply(&a, &tensor(&[1.0], &[1])).is_err());
    }

    #[test]
    fn clamping_leaves_other_handles_alone_and_refuses_what_is_no_range() {
        let x = tensor(&[-2.0, 0.5, 2.0], &[3]);
        assert_eq!(clamp(x.clone(), -1.0, 1.0).unwrap().to_vec_f32(), vec![-1.0, 0.5, 1.0]);
        assert_eq!(x.to_vec_f32(), vec![-2.0, 0.5, 2.0]);
        assert!(clamp(x.clone(), 1.0, -1.0).is_err() && clamp(x.clone(), f32::NAN, 1.0).is_err());
        assert!(clamp(x.to_dtype(Dtype::Bf16), -1.0, 1.0).is_err());
    }

    #[test]
    fn embedding_copies_rows_in_order_and_refuses_ids_past_the_table() {
        let table = tensor(&[0.0, 1.0, 2.0, 3.0], &[2, 2]).to_dtype(Dtype::Bf16);
        let y = embedding(&table, &[1, 0, 1]).unwrap();
        assert_eq!((y.shape(), y.dtype()), (&[3, 2][..], Dtype::Bf16));
        assert_eq!(y.to_vec_f32(), vec![2.0, 3.0, 0.0, 1.0, 2.0, 3.0]);
        assert!(embedding(&table, &[2]).is_err());
    }

    #[test]
    fn activation_keeps_shape_and_dtype() {
        let x = tensor(&[-1.0, 0.0, 1.0], &[3, 1]).to_dtype(Dtype::Bf16);
        let y = activate(&x, Activation::LeakyRelu(0.25));
        assert_eq!((y.shape(), y.dtype(), y.to_vec_f32()), (&[3, 1][..], Dtype::Bf16, vec![-0.25, 0.0, 1.0]));
    }
}
