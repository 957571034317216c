//! Two-dimensional convolution of pictures.

use super::cuda::{DeviceCall, Frames};
use super::{ConvCall, Geometry, PackedKernel, Padding, check_on_host, check_residual, check_stride, run_on_host};
use crate::activation::Activation;
use crate::error::{Result, shape_error};
use crate::tensor::{Dtype, Tensor};

/// Weight and bias of a 2-D convolution, packed once at load time; its dtype is that of the multiplications. It lives and
/// runs where the weight was.
#[derive(Debug, Clone)]
pub struct PackedConv2d {
    pub(crate) kernel: PackedKernel,
}

impl PackedConv2d {
    /// Packs `weight` [cout, cin, kh, kw] (torch's layout) and `bias` `[cout]`; `stride` is 1 or 2.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: Padding, dtype: Dtype) -> Result<Self> {
        const OP: &str = "PackedConv2d::new";
        let &[cout, cin, kh, kw] = weight.shape() else {
            return shape_error(OP, format!("weight is {:?}, needs [cout, cin, kh, kw]", weight.shape()));
        };
        if weight.is_empty() {
            return shape_error(OP, format!("weight {:?} is empty", weight.shape()));
        }
        check_stride(OP, stride)?;
        let host = weight.to_host()?;
        let values = host.f32_values();
        let at = |o: usize, c: usize, [_, y, x]: [usize; 3]| values[((o * cin + c) * kh + y) * kw + x];
        let geometry = Geometry { taps: [1, kh, kw], cin, cout, stride, padding };
        Ok(Self { kernel: PackedKernel::pack(OP, weight, bias, geometry, dtype, at)? })
    }
}

/// `activation(conv(x) + bias + residual)`: x [h, w, cin] or [f, h, w, cin] → [(f,) h', w', cout] of x's dtype.
///
/// `residual` has the shape of the result and is added before the activation.
pub fn conv2d(x: &Tensor, weight: &PackedConv2d, activation: Activation, residual: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "conv2d";
    let geometry = weight.kernel.geometry();
    let (frames, h, w) = match *x.shape() {
        [h, w, c] if c == geometry.cin && !x.is_empty() => (1, h, w),
        [f, h, w, c] if c == geometry.cin && !x.is_empty() => (f, h, w),
        _ => return shape_error(OP, format!("x is {:?}, needs [(f,) h, w, {}]", x.shape(), geometry.cin)),
    };
    let (out_h, out_w) = geometry.output_size(OP, h, w)?;
    let mut shape = x.shape().to_vec();
    let rank = shape.len();
    shape[rank - 3..].copy_from_slice(&[out_h, out_w, geometry.cout]);
    check_residual(OP, residual, &shape)?;
    let (source, output) = ([h, w], [out_h, out_w]);
    match &weight.kernel {
        PackedKernel::Host(kernel) => {
            check_on_host(OP, &[Some(x), residual])?;
            let frames = (0..frames).map(|f| vec![Some(f)]).collect();
            let call = ConvCall { kernel, source, output, frames, activation };
            Ok(run_on_host(&call, x, residual, &shape))
        }
        PackedKernel::Cuda(kernel) => {
            let call = DeviceCall { x, source, output, frames: Frames::each(frames), residual, activation };
            kernel.run(OP, &call, &shape)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_f32(values, shape).unwrap()
    }

    #[test]
    fn a_box_kernel_sums_the_neighbourhood_with_zeros_outside() {
        let x = tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3, 1]);
        let w = PackedConv2d::new(&tensor(&[1.0; 9], &[1, 1, 3, 3]), None, 1, Padding::all(1), Dtype::F32).unwrap();
        let y = conv2d(&x, &w, Activation::None, None).unwrap();
        assert_eq!(y.shape(), &[2, 3, 1]);
        assert_eq!(y.to_vec_f32(), vec![12.0, 21.0, 16.0, 12.0, 21.0, 16.0]);
    }

    #[test]
    fn stride_two_with_padding_right_and_bottom_starts_at_the_first_pixel() {
        let x = tensor(&(0..16).map(|i| i as f32).collect::<Vec<_>>(), &[1, 4, 4, 1]);
        let mut tap = [0.0; 9];
        tap[0] = 1.0;
        let pad = Padding { right: 1, bottom: 1, ..Padding::default() };
        let w = PackedConv2d::new(&tensor(&tap, &[1, 1, 3, 3]), None, 2, pad, Dtype::Bf16).unwrap();
        assert_eq!(conv2d(&x, &w, Activation::None, None).unwrap().to_vec_f32(), vec![0.0, 2.0, 8.0, 10.0]);
    }

    #[test]
    fn residual_is_added_before_the_activation() {
        let w = PackedConv2d::new(
            &tensor(&[1.0, -1.0], &[2, 1, 1, 1]),
            Some(&tensor(&[0.0, 0.5], &[2])),
            1,
            Padding::default(),
            Dtype::F32,
        )
        .unwrap();
        let residual = tensor(&[1.0, -5.0], &[1, 1, 2]);
        let y = conv2d(&tensor(&[2.0], &[1, 1, 1]), &w, Activation::LeakyRelu(0.25), Some(&residual)).unwrap();
        assert_eq!(y.to_vec_f32(), vec![3.0, -1.625]);
        assert!(conv2d(&tensor(&[2.0], &[1, 1, 1]), &w, Activation::None, Some(&tensor(&[0.0], &[1]))).is_err());
    }

    #[test]
    fn pictures_smaller_than_the_kernel_and_wrong_channels_are_refused() {
        let weight = tensor(&[1.0; 18], &[1, 2, 3, 3]);
        let w = PackedConv2d::new(&weight, None, 1, Padding::default(), Dtype::F32).unwrap();
        assert!(conv2d(&tensor(&[0.0; 8], &[2, 2, 2]), &w, Activation::None, None).is_err());
        assert!(conv2d(&tensor(&[0.0; 27], &[3, 3, 3]), &w, Activation::None, None).is_err());
        assert!(PackedConv2d::new(&weight, None, 3, Padding::default(), Dtype::F32).is_err());
    }
}
