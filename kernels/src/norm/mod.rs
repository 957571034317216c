//! Normalisations over the last dimension, with the modulation and activation that follow them.

mod cpu;
pub(crate) mod cuda;
pub(crate) mod reference;

use crate::activation::Activation;
use crate::buffer::Buffer;
use crate::cuda::device_of;
use crate::error::{Result, shape_error};
use crate::linear::{bias_values, check_bias};
use crate::simd::Isa;
use crate::tensor::{Dtype, Tensor};
pub(crate) use cpu::{Norm, statistics};
use cpu::{Spec, normalise};

/// LayerNorm over the last dimension: x [t, d] → [t, d] of dtype `out`; `weight` and `bias` `[d]` are optional.
pub fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f32, out: Dtype) -> Result<Tensor> {
    const OP: &str = "layer_norm";
    let (rows, d) = rows_of(OP, x)?;
    check_bias(OP, weight, d)?;
    check_bias(OP, bias, d)?;
    let all: Vec<&Tensor> = [x].into_iter().chain(weight).chain(bias).collect();
    if let Some(device) = device_of(OP, &all)? {
        let affine = cuda::Affine { weight, weight_offset: 0.0, bias, group_rows: rows.max(1) };
        return cuda::layer_norm(&device, x, &affine, eps, out);
    }
    let (weight, bias) = (bias_values(OP, weight, d)?, bias_values(OP, bias, d)?);
    let weight = weight.unwrap_or_else(|| vec![1.0; d].into());
    let bias = bias.unwrap_or_else(|| vec![0.0; d].into());
    if let Some(isa) = Isa::current() {
        let (norm, activation) = (Norm::Layer(eps), Activation::None);
        return Ok(normalise(isa, x, d, Spec { norm, weight: &weight, bias: Some(&bias), activation }, out));
    }
    let y = reference::layer_norm(&x.f32_values(), rows, d, &weight, &bias, eps);
    Ok(Tensor::from_result(y, x.shape(), out))
}

/// `LayerNorm(x) · (1 + scale) + shift`: x [t, d]; scale and shift are `[d]` (one for all rows) or [g, d] for g groups of
/// t / g successive rows each (g = t: one per row).
pub fn layer_norm_modulate(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f32, out: Dtype) -> Result<Tensor> {
    const OP: &str = "layer_norm_modulate";
    let (rows, d) = rows_of(OP, x)?;
    let groups = scale.len() / d;
    if scale.shape() != shift.shape() || scale.shape().last() != Some(&d) || groups == 0 || rows % groups != 0 {
        let (a, b) = (scale.shape(), shift.shape());
        return shape_error(
            OP,
            format!("scale {a:?} and shift {b:?} must both be [{d}] or [g, {d}], g dividing {rows}"),
        );
    }
    if let Some(device) = device_of(OP, &[x, scale, shift])? {
        let (weight, bias) = (Some(scale), Some(shift));
        let affine = cuda::Affine { weight, weight_offset: 1.0, bias, group_rows: (rows / groups).max(1) };
        return cuda::layer_norm(&device, x, &affine, eps, out);
    }
    let weight = Buffer::collect(scale.len(), scale.f32_values().iter().map(|s| 1.0 + s));
    let shift = shift.f32_values();
    if let Some(isa) = Isa::current() {
        let (norm, activation) = (Norm::Layer(eps), Activation::None);
        return Ok(normalise(isa, x, d, Spec { norm, weight: &weight, bias: Some(&shift), activation }, out));
    }
    let y = reference::layer_norm(&x.f32_values(), rows, d, &weight, &shift, eps);
    Ok(Tensor::from_result(y, x.shape(), out))
}

/// `x / √(mean(x²) + eps) · weight` over the last dimension: x [t, d], weight `[d]` (Wan norms q and k across all heads).
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32, out: Dtype) -> Result<Tensor> {
    const OP: &str = "rms_norm";
    let (rows, d) = rows_of(OP, x)?;
    check_vector(OP, weight, d)?;
    if let Some(device) = device_of(OP, &[x, weight])? {
        return cuda::rms_norm(&device, x, weight, eps, out);
    }
    let weight = weight.f32_values();
    if let Some(isa) = Isa::current() {
        let spec = Spec { norm: Norm::Rms(eps), weight: &weight, bias: None, activation: Activation::None };
        return Ok(normalise(isa, x, d, spec, out));
    }
    Ok(Tensor::from_result(reference::rms_norm(&x.f32_values(), rows, d, &weight, eps), x.shape(), out))
}

/// Wan VAE's RMS_norm: `x / max(‖x‖₂, 1e-12) · √c · gamma` over the channels of each pixel, then SiLU when `silu`.
///
/// x [.., c] channels last, gamma `[c]` → the shape and dtype of x.
pub fn channel_norm_silu(x: &Tensor, gamma: &Tensor, silu: bool) -> Result<Tensor> {
    const OP: &str = "channel_norm_silu";
    let (rows, c) = rows_of(OP, x)?;
    check_vector(OP, gamma, c)?;
    if let Some(device) = device_of(OP, &[x, gamma])? {
        return cuda::channel_norm_silu(&device, x, gamma, silu);
    }
    let gamma = gamma.f32_values();
    let activation = if silu { Activation::Silu } else { Activation::None };
    if let Some(isa) = Isa::current() {
        let spec = Spec { norm: Norm::L2, weight: &gamma, bias: None, activation };
        return Ok(normalise(isa, x, c, spec, x.dtype()));
    }
    let y = reference::channel_norm(&x.f32_values(), rows, c, &gamma, activation);
    Ok(Tensor::from_result(y, x.shape(), x.dtype()))
}

/// Rows and width of x seen as a matrix over its last dimension.
fn rows_of(op: &'static str, x: &Tensor) -> Result<(usize, usize)> {
    match x.shape().last() {
        Some(&d) if d > 0 => Ok((x.len() / d, d)),
        _ => shape_error(op, format!("{:?} has no last dimension to normalise over", x.shape())),
    }
}

/// Whether `vector` holds `d` values; unit dimensions around them are allowed (torch stores gamma as [c, 1, 1]).
pub(crate) fn check_vector(op: &'static str, vector: &Tensor, d: usize) -> Result<()> {
    if vector.len() != d || vector.shape().iter().filter(|&&n| n != 1).count() > 1 {
        return shape_error(op, format!("a vector of {d} is needed, {:?} given", vector.shape()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_f32(values, shape).unwrap()
    }

    fn assert_close(y: &Tensor, expected: &[f32]) {
        for (a, b) in y.to_vec_f32().iter().zip(expected) {
            assert!((a - b).abs() < 1e-5, "{a} != {b}");
        }
        assert_eq!(y.len(), expected.len());
    }

    #[test]
    fn layer_norm_centres_and_scales_each_row() {
        let x = tensor(&[1.0, 3.0, 10.0, 10.0], &[2, 2]);
        assert_close(&layer_norm(&x, None, None, 0.0001, Dtype::F32).unwrap(), &[-0.99995, 0.99995, 0.0, 0.0]);
        let (w, b) = (tensor(&[2.0, 3.0], &[2]), tensor(&[1.0, -1.0], &[2]));
        assert_close(
            &layer_norm(&x, Some(&w), Some(&b), 0.0, Dtype::F32).unwrap().slice_outer(0..1).unwrap(),
            &[-1.0, 2.0],
        );
    }

    #[test]
    fn modulation_is_per_column_or_per_element() {
        let x = tensor(&[1.0, 3.0, 5.0, 1.0], &[2, 2]);
        let (scale, shift) = (tensor(&[1.0, 0.0], &[2]), tensor(&[0.5, 0.25], &[2]));
        let y = layer_norm_modulate(&x, &scale, &shift, 0.0, Dtype::F32).unwrap();
        assert_close(&y, &[-1.5, 1.25, 2.5, -0.75]);
        let (scale, shift) = (tensor(&[0.0, 0.0, 1.0, 2.0], &[2, 2]), tensor(&[0.0; 4], &[2, 2]));
        let y = layer_norm_modulate(&x, &scale, &shift, 0.0, Dtype::F32).unwrap();
        assert_close(&y, &[-1.0, 1.0, 2.0, -3.0]);
        assert!(layer_norm_modulate(&x, &scale, &tensor(&[0.0; 2], &[2]), 0.0, Dtype::F32).is_err());
        // Two groups of two rows; three groups do not divide four rows.
        let x = tensor(&[1.0, 3.0, 5.0, 1.0, 1.0, 3.0, 5.0, 1.0], &[4, 2]);
        let y = layer_norm_modulate(&x, &scale, &shift, 0.0, Dtype::F32).unwrap();
        assert_close(&y, &[-1.0, 1.0, 1.0, -1.0, -2.0, 3.0, 2.0, -3.0]);
        let three = tensor(&[0.0; 6], &[3, 2]);
        assert!(layer_norm_modulate(&x, &three, &three, 0.0, Dtype::F32).is_err());
    }

    #[test]
    fn rms_and_channel_norm_divide_by_the_root_mean_square() {
        let x = tensor(&[3.0, 4.0, 0.0, 0.0], &[2, 2]);
        let g = tensor(&[1.0, 2.0], &[2, 1, 1]);
        let rms = 12.5f32.sqrt();
        assert_close(&rms_norm(&x, &g, 1e-12, Dtype::F32).unwrap(), &[3.0 / rms, 8.0 / rms, 0.0, 0.0]);
        assert_close(&channel_norm_silu(&x, &g, false).unwrap(), &[3.0 / rms, 8.0 / rms, 0.0, 0.0]);
        let silu = |x: f32| x / (1.0 + (-x).exp());
        assert_close(&channel_norm_silu(&x, &g, true).unwrap(), &[silu(3.0 / rms), silu(8.0 / rms), 0.0, 0.0]);
        assert!(channel_norm_silu(&x, &tensor(&[1.0; 4], &[2, 2]), false).is_err());
    }
}
