//! Transposed convolution with kernel 4, stride 2, padding 1 (IFNet's upsampling).

use super::reference;
use crate::activation::Activation;
use crate::error::{Result, shape_error};
use crate::linear::bias_values;
use crate::tensor::{Dtype, Tensor};

/// Weight and bias of a transposed convolution with kernel 4×4, stride 2 and padding 1.
#[derive(Debug, Clone)]
pub struct PackedConvTranspose2d {
    /// [cin, cout, 4, 4] in the dtype of the multiplications.
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Vec<f32>>,
}

impl PackedConvTranspose2d {
    /// Packs `weight` [cin, cout, 4, 4] (torch's layout) and `bias` [cout].
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, dtype: Dtype) -> Result<Self> {
        const OP: &str = "PackedConvTranspose2d::new";
        let &[_, cout, 4, 4] = weight.shape() else {
            return shape_error(OP, format!("weight is {:?}, needs [cin, cout, 4, 4]", weight.shape()));
        };
        if weight.is_empty() {
            return shape_error(OP, format!("weight {:?} is empty", weight.shape()));
        }
        let bias = bias_values(OP, bias, cout)?;
        Ok(Self { weight: weight.to_dtype(dtype), bias })
    }

    fn cin(&self) -> usize {
        self.weight.shape()[0]
    }

    pub(crate) fn cout(&self) -> usize {
        self.weight.shape()[1]
    }
}

/// `activation(conv_transpose(x) + bias)`: x [h, w, cin] → [2h, 2w, cout] of x's dtype.
pub fn conv_transpose2d(x: &Tensor, weight: &PackedConvTranspose2d, activation: Activation) -> Result<Tensor> {
    let (h, w) = match *x.shape() {
        [h, w, c] if c == weight.cin() => (h, w),
        _ => return shape_error("conv_transpose2d", format!("x is {:?}, needs [h, w, {}]", x.shape(), weight.cin())),
    };
    let input = x.to_dtype(weight.weight.dtype());
    let y = reference::conv_transpose2d(&input.f32_values(), h, w, weight, activation);
    Ok(Tensor::from_result(y, &[2 * h, 2 * w, weight.cout()], x.dtype()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pixel_spreads_the_inner_taps_of_the_kernel() {
        let weight = Tensor::from_vec((0..16).map(|i| i as f32).collect(), &[1, 1, 4, 4]).unwrap();
        let packed = PackedConvTranspose2d::new(&weight, None, Dtype::F32).unwrap();
        let x = Tensor::from_f32(&[2.0], &[1, 1, 1]).unwrap();
        let y = conv_transpose2d(&x, &packed, Activation::None).unwrap();
        assert_eq!((y.shape(), y.to_vec_f32()), (&[2, 2, 1][..], vec![10.0, 12.0, 18.0, 20.0]));
    }

    #[test]
    fn a_constant_picture_sums_four_taps_in_the_middle() {
        let weight = Tensor::from_f32(&[1.0; 16], &[1, 1, 4, 4]).unwrap();
        let bias = Tensor::from_f32(&[0.5], &[1]).unwrap();
        let packed = PackedConvTranspose2d::new(&weight, Some(&bias), Dtype::F32).unwrap();
        let x = Tensor::from_f32(&[1.0; 9], &[3, 3, 1]).unwrap();
        let y = conv_transpose2d(&x, &packed, Activation::None).unwrap().to_vec_f32();
        assert_eq!((y[0], y[1], y[2 * 6 + 2]), (1.5, 2.5, 4.5));
    }

    #[test]
    fn other_kernel_sizes_are_refused() {
        let weight = Tensor::from_f32(&[1.0; 9], &[1, 1, 3, 3]).unwrap();
        assert!(PackedConvTranspose2d::new(&weight, None, Dtype::F32).is_err());
    }
}
