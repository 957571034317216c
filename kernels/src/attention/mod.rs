//! Multi-head scaled dot-product attention.

#[cfg(target_arch = "x86_64")]
mod amx;
mod cpu;
mod cuda;
mod reference;

use crate::cuda::device_of;
use crate::error::{Result, argument_error, dtype_error, shape_error};
use crate::simd::Isa;
use crate::tensor::{Dtype, Tensor};

const OP: &str = "attention";

/// Sizes of one attention call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    /// Keys that take part: the first `visible` of `keys`.
    pub(crate) visible: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) scale: f32,
}

/// `softmax(q·kᵀ·scale + bias)·v` for each head: q [tq, heads·hd], k and v [tk, heads·hd] → [tq, heads·hd] of q's dtype.
///
/// Heads are side by side in a row. Keys at and after `key_len` are masked (all are visible when absent; 0 is an error).
/// `bias` is [heads, tq, tk], added to the scaled scores. q, k, v must have one dtype; bf16 inputs are multiplied as bf16
/// and summed in f32, and the softmax is f32 throughout.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    scale: f32,
    key_len: Option<usize>,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let shape = check(q, k, v, heads, scale, key_len, bias)?;
    let operands: Vec<&Tensor> = [q, k, v].into_iter().chain(bias).collect();
    if let Some(device) = device_of(OP, &operands)? {
        return cuda::attention(&device, q, k, v, shape, bias);
    }
    let bias = bias.map(Tensor::f32_values);
    if let Some(isa) = Isa::current() {
        if q.dtype() == Dtype::Bf16 && shape.head_dim % 2 == 1 {
            // A head of odd width is not a whole number of bf16 pairs; such models exist only as tiny test configurations.
            let wide = |x: &Tensor| x.to_dtype(Dtype::F32);
            let y = cpu::attention(isa, &wide(q), &wide(k), &wide(v), shape, bias.as_deref());
            return Ok(y.to_dtype(Dtype::Bf16));
        }
        return Ok(cpu::attention(isa, q, k, v, shape, bias.as_deref()));
    }
    let y = reference::attention(&q.f32_values(), &k.f32_values(), &v.f32_values(), shape, bias.as_deref());
    Ok(Tensor::from_result(y, q.shape(), q.dtype()))
}

fn check(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    scale: f32,
    key_len: Option<usize>,
    bias: Option<&Tensor>,
) -> Result<AttentionShape> {
    let (&[queries, width], &[keys, key_width]) = (q.shape(), k.shape()) else {
        return shape_error(OP, format!("q {:?} and k {:?} must be [tokens, heads·head_dim]", q.shape(), k.shape()));
    };
    if width != key_width || k.shape() != v.shape() {
        return shape_error(OP, format!("q {:?}, k {:?}, v {:?} do not fit", q.shape(), k.shape(), v.shape()));
    }
    if queries == 0 || heads == 0 || width == 0 || !width.is_multiple_of(heads) {
        return shape_error(OP, format!("{queries} rows of width {width} do not split into {heads} heads"));
    }
    if q.dtype() != k.dtype() || q.dtype() != v.dtype() {
        return dtype_error(OP, format!("q, k, v are {:?}, {:?}, {:?}", q.dtype(), k.dtype(), v.dtype()));
    }
    let visible = key_len.unwrap_or(keys);
    if visible == 0 || visible > keys {
        return argument_error(OP, format!("key_len {visible} is not in 1..={keys}"));
    }
    if let Some(b) = bias
        && b.shape() != [heads, queries, keys]
    {
        return shape_error(OP, format!("bias is {:?}, needs [{heads}, {queries}, {keys}]", b.shape()));
    }
    Ok(AttentionShape { queries, keys, visible, heads, head_dim: width / heads, scale })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_f32(values, shape).unwrap()
    }

    #[test]
    fn equal_scores_average_the_visible_values_of_each_head() {
        let q = tensor(&[0.0; 4], &[1, 4]);
        let k = tensor(&[1.0; 12], &[3, 4]);
        let v = tensor(&(0..12).map(|i| i as f32).collect::<Vec<_>>(), &[3, 4]);
        let all = attention(&q, &k, &v, 2, 0.5, None, None).unwrap();
        assert_eq!(all.to_vec_f32(), vec![4.0, 5.0, 6.0, 7.0]);
        let two = attention(&q, &k, &v, 2, 0.5, Some(2), None).unwrap();
        assert_eq!(two.to_vec_f32(), vec![2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn bias_picks_one_key_per_head() {
        let q = tensor(&[0.3, -0.7], &[1, 2]);
        let k = tensor(&[0.1, 0.2, 0.3, 0.4], &[2, 2]);
        let v = tensor(&[1.0, 2.0, 3.0, 4.0], &[2, 2]);
        let bias = tensor(&[1e4, 0.0, 0.0, 1e4], &[2, 1, 2]);
        let y = attention(&q, &k, &v, 2, 1.0, None, Some(&bias)).unwrap();
        assert_eq!(y.to_vec_f32(), vec![1.0, 4.0]);
    }

    #[test]
    fn wrong_shapes_and_masks_are_refused() {
        let (q, k) = (tensor(&[0.0; 6], &[1, 6]), tensor(&[0.0; 12], &[2, 6]));
        assert!(attention(&q, &k, &k, 4, 1.0, None, None).is_err());
        assert!(attention(&q, &k, &q, 2, 1.0, None, None).is_err());
        assert!(attention(&q, &k, &k, 2, 1.0, Some(0), None).is_err());
        assert!(attention(&q, &k, &k, 2, 1.0, Some(3), None).is_err());
        assert!(attention(&q, &k, &k, 2, 1.0, None, Some(&q)).is_err());
        assert!(attention(&q, &k.to_dtype(crate::Dtype::Bf16), &k, 2, 1.0, None, None).is_err());
    }
}
