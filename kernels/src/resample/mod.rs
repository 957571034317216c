//! Resizing, shuffling and warping of channels-last pictures.

mod cpu;
mod cuda;
mod reference;
mod shortcut;
mod yuv;

pub use shortcut::{SizeFactors, add_averaged, add_repeated};
pub use yuv::rgb_to_yuv420;
pub(crate) use yuv::yuv420_on_device;

use crate::cuda::device_of;
use crate::error::{Result, argument_error, dtype_error, shape_error};
use crate::simd::Isa;
use crate::tensor::Tensor;

/// Doubles height and width by repeating pixels: x [(f,) h, w, c] → [(f,) 2h, 2w, c] (torch's `nearest-exact`, factor 2).
pub fn upsample_nearest2x(x: &Tensor) -> Result<Tensor> {
    const OP: &str = "upsample_nearest2x";
    let [f, h, w, c] = clip_shape(OP, x)?;
    let shape = with_size(x, 2 * h, 2 * w, c);
    if let Some(device) = device_of(OP, &[x])? {
        return cuda::upsample_nearest2x(&device, x, [f, h, w, c], &shape);
    }
    if Isa::current().is_some() {
        return Ok(cpu::upsample_nearest2x(x, [f, h, w, c], &shape));
    }
    let y = reference::upsample_nearest2x(&x.f32_values(), [f, h, w, c]);
    Ok(Tensor::from_result(y, &shape, x.dtype()))
}

/// Bilinear resize with half-pixel centres (`align_corners=false`, no antialiasing): x [(f,) h, w, c] → [(f,) height, width, c].
pub fn resize_bilinear(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    const OP: &str = "resize_bilinear";
    let shape = clip_shape(OP, x)?;
    if height == 0 || width == 0 {
        return argument_error(OP, format!("a size of {height}x{width} is empty"));
    }
    let resized = with_size(x, height, width, shape[3]);
    if let Some(device) = device_of(OP, &[x])? {
        return cuda::resize_bilinear(&device, x, shape, [height, width], &resized);
    }
    if let Some(isa) = Isa::current() {
        return Ok(cpu::resize_bilinear(isa, x, shape, [height, width], &resized));
    }
    let y = reference::resize_bilinear(&x.f32_values(), shape, height, width);
    Ok(Tensor::from_result(y, &resized, x.dtype()))
}

/// Moves channels to pixels: x [(f,) h, w, 4c] → [(f,) 2h, 2w, c]. Channel 4·i + 2·dy + dx of a pixel becomes channel i of
/// the pixel at (2y + dy, 2x + dx), as torch's `pixel_shuffle` does with factor 2.
pub fn pixel_shuffle2x(x: &Tensor) -> Result<Tensor> {
    const OP: &str = "pixel_shuffle2x";
    let [f, h, w, c] = clip_shape(OP, x)?;
    if !c.is_multiple_of(4) {
        return shape_error(OP, format!("x is {:?}, its channels must be a multiple of 4", x.shape()));
    }
    let shape = with_size(x, 2 * h, 2 * w, c / 4);
    if let Some(device) = device_of(OP, &[x])? {
        return cuda::pixel_shuffle2x(&device, x, [f, h, w, c], &shape);
    }
    if Isa::current().is_some() {
        return Ok(cpu::pixel_shuffle2x(x, [f, h, w, c], &shape));
    }
    let y = reference::pixel_shuffle2x(&x.f32_values(), [f, h, w, c]);
    Ok(Tensor::from_result(y, &shape, x.dtype()))
}

/// Samples `image` [h, w, c] at (x + flow_x, y + flow_y), bilinear, with coordinates clamped to the picture:
/// flow [h, w, 2] in pixels, x first → [h, w, c] of the image's dtype.
///
/// The same as torch's `grid_sample(border, align_corners=True)` on the grid that RIFE builds.
pub fn backward_warp(image: &Tensor, flow: &Tensor) -> Result<Tensor> {
    const OP: &str = "backward_warp";
    let &[h, w, c] = image.shape() else {
        return shape_error(OP, format!("image is {:?}, needs [h, w, c]", image.shape()));
    };
    if flow.shape() != [h, w, 2] {
        return shape_error(OP, format!("flow is {:?}, needs [{h}, {w}, 2]", flow.shape()));
    }
    if image.is_empty() {
        return shape_error(OP, format!("image {:?} is empty", image.shape()));
    }
    if let Some(device) = device_of(OP, &[image, flow])? {
        return cuda::backward_warp(&device, image, [h, w, c], flow);
    }
    let flow = flow.f32_values();
    if let Some(isa) = Isa::current() {
        return Ok(cpu::backward_warp(isa, image, [h, w, c], &flow));
    }
    let y = reference::backward_warp(&image.f32_values(), [h, w, c], &flow);
    Ok(Tensor::from_result(y, image.shape(), image.dtype()))
}

/// `a·σ(mask) + b·(1 − σ(mask))`: a and b [h, w, c], mask [h, w, 1] holds logits → [h, w, c] of a's dtype.
pub fn blend_mask(a: &Tensor, b: &Tensor, mask: &Tensor) -> Result<Tensor> {
    const OP: &str = "blend_mask";
    let &[h, w, c] = a.shape() else { return shape_error(OP, format!("a is {:?}, needs [h, w, c]", a.shape())) };
    if a.is_empty() || b.shape() != a.shape() || mask.shape() != [h, w, 1] {
        let (b, m) = (b.shape(), mask.shape());
        return shape_error(OP, format!("a {:?}, b {b:?} and mask {m:?} do not fit", a.shape()));
    }
    if let Some(device) = device_of(OP, &[a, b, mask])? {
        return cuda::blend_mask(&device, a, b, mask, [h, w, c]);
    }
    let mask = mask.f32_values();
    if let Some(isa) = Isa::current() {
        return Ok(cpu::blend_mask(isa, a, &b.to_dtype(a.dtype()), &mask, [h, w, c]));
    }
    let y = reference::blend_mask(&a.f32_values(), &b.f32_values(), &mask, c);
    Ok(Tensor::from_result(y, a.shape(), a.dtype()))
}

/// `blend_mask(backward_warp(a, flow_a), backward_warp(b, flow_b), mask)` in one pass, to the same bits: pictures a and b
/// [h, w, c] of one dtype, a flow [h, w, 2] for each, mask [h, w, 1] → [h, w, c].
pub fn warp_blend(a: &Tensor, b: &Tensor, flow_a: &Tensor, flow_b: &Tensor, mask: &Tensor) -> Result<Tensor> {
    const OP: &str = "warp_blend";
    let &[h, w, c] = a.shape() else { return shape_error(OP, format!("a is {:?}, needs [h, w, c]", a.shape())) };
    if a.is_empty() || b.shape() != a.shape() || mask.shape() != [h, w, 1] {
        let (b, m) = (b.shape(), mask.shape());
        return shape_error(OP, format!("a {:?}, b {b:?} and mask {m:?} do not fit", a.shape()));
    }
    if flow_a.shape() != [h, w, 2] || flow_b.shape() != [h, w, 2] {
        let (a, b) = (flow_a.shape(), flow_b.shape());
        return shape_error(OP, format!("the flows are {a:?} and {b:?}, need [{h}, {w}, 2]"));
    }
    if a.dtype() != b.dtype() {
        return dtype_error(OP, "the pictures differ in dtype");
    }
    if let Some(device) = device_of(OP, &[a, b, flow_a, flow_b, mask])? {
        return cuda::warp_blend(&device, [a, b], [h, w, c], [flow_a, flow_b], mask);
    }
    match Isa::current() {
        Some(isa) => {
            let (flow_a, flow_b, mask) = (flow_a.f32_values(), flow_b.f32_values(), mask.f32_values());
            Ok(cpu::warp_blend(isa, [a, b], [h, w, c], [&flow_a, &flow_b], &mask))
        }
        None => blend_mask(&backward_warp(a, flow_a)?, &backward_warp(b, flow_b)?, mask),
    }
}

/// [f, h, w, c], with f = 1 for a single picture; nothing may be empty.
pub(crate) fn clip_shape(op: &'static str, x: &Tensor) -> Result<[usize; 4]> {
    match *x.shape() {
        [h, w, c] if !x.is_empty() => Ok([1, h, w, c]),
        [f, h, w, c] if !x.is_empty() => Ok([f, h, w, c]),
        _ => shape_error(op, format!("x is {:?}, needs [(f,) h, w, c] with at least one element", x.shape())),
    }
}

/// The shape of x with another height, width and channel count.
pub(crate) fn with_size(x: &Tensor, h: usize, w: usize, c: usize) -> Vec<usize> {
    let mut shape = x.shape().to_vec();
    let rank = shape.len();
    shape[rank - 3..].copy_from_slice(&[h, w, c]);
    shape
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_f32(values, shape).unwrap()
    }

    #[test]
    fn nearest_repeats_each_pixel_four_times() {
        let y = upsample_nearest2x(&tensor(&[1.0, 2.0, 3.0, 4.0], &[1, 2, 2])).unwrap();
        assert_eq!(y.shape(), &[2, 4, 2]);
        assert_eq!(y.to_vec_f32()[..8], [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
        assert_eq!(y.to_vec_f32()[..8], y.to_vec_f32()[8..]);
    }

    #[test]
    fn bilinear_uses_half_pixel_centres_and_clamps_at_the_border() {
        let x = tensor(&[0.0, 4.0], &[1, 2, 1]);
        assert_eq!(resize_bilinear(&x, 1, 4).unwrap().to_vec_f32(), vec![0.0, 1.0, 3.0, 4.0]);
        let x = tensor(&[0.0, 1.0, 2.0, 3.0], &[1, 4, 1]);
        assert_eq!(resize_bilinear(&x, 1, 2).unwrap().to_vec_f32(), vec![0.5, 2.5]);
        assert_eq!(resize_bilinear(&x, 1, 4).unwrap().to_vec_f32(), x.to_vec_f32());
        assert!(resize_bilinear(&x, 0, 4).is_err());
    }

    #[test]
    fn pixel_shuffle_takes_channels_row_by_row() {
        let y = pixel_shuffle2x(&tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], &[1, 1, 8])).unwrap();
        assert_eq!((y.shape(), y.to_vec_f32()), (&[2, 2, 2][..], vec![1.0, 5.0, 2.0, 6.0, 3.0, 7.0, 4.0, 8.0]));
        assert!(pixel_shuffle2x(&tensor(&[0.0; 6], &[1, 1, 6])).is_err());
    }

    #[test]
    fn warp_reads_at_the_flow_and_clamps_outside() {
        let image = tensor(&[0.0, 10.0, 20.0, 30.0], &[2, 2, 1]);
        let flow = tensor(&[0.5, 0.0, 9.0, 9.0, 0.0, -0.25, -9.0, -9.0], &[2, 2, 2]);
        assert_eq!(backward_warp(&image, &flow).unwrap().to_vec_f32(), vec![5.0, 30.0, 15.0, 0.0]);
        let row = tensor(&[1.0, 2.0], &[1, 2, 1]);
        let flow = tensor(&[0.5, 3.0, 0.0, f32::NAN], &[1, 2, 2]);
        assert_eq!(backward_warp(&row, &flow).unwrap().to_vec_f32(), vec![1.5, 2.0]);
        assert!(backward_warp(&image, &row).is_err());
    }

    #[test]
    fn both_warps_and_the_blend_in_one_pass_have_the_bits_of_three() {
        let value = |i: usize| (i.wrapping_mul(2_654_435_761) >> 9) as u16 as f32 / 65536.0;
        let noise = |seed: usize, shape: &[usize], scale: f32| {
            tensor(&(0..shape.iter().product()).map(|i| (value(i + seed) - 0.5) * scale).collect::<Vec<_>>(), shape)
        };
        for (dtype, c) in [(Dtype::F32, 3), (Dtype::F32, 8), (Dtype::Bf16, 3), (Dtype::Bf16, 21)] {
            let (h, w) = (13, 37);
            let (a, b) = (noise(0, &[h, w, c], 2.0).to_dtype(dtype), noise(999, &[h, w, c], 2.0).to_dtype(dtype));
            let (to_a, to_b) = (noise(77, &[h, w, 2], 30.0), noise(55, &[h, w, 2], 30.0));
            let mask = noise(33, &[h, w, 1], 12.0);
            let three = (backward_warp(&a, &to_a).unwrap(), backward_warp(&b, &to_b).unwrap());
            let three = blend_mask(&three.0, &three.1, &mask).unwrap();
            let one = warp_blend(&a, &b, &to_a, &to_b, &mask).unwrap();
            assert_eq!((one.dtype(), one.to_vec_f32()), (dtype, three.to_vec_f32()), "{c} channels");
        }
    }

    #[test]
    fn warp_blend_refuses_what_does_not_fit() {
        let (picture, flow, mask) =
            (tensor(&[0.0; 6], &[1, 2, 3]), tensor(&[0.0; 4], &[1, 2, 2]), tensor(&[0.0; 2], &[1, 2, 1]));
        assert!(warp_blend(&picture, &picture, &flow, &mask, &mask).is_err());
        assert!(warp_blend(&picture, &flow, &flow, &flow, &mask).is_err());
        assert!(warp_blend(&picture, &picture, &flow, &flow, &flow).is_err());
        assert!(warp_blend(&picture, &picture.to_dtype(Dtype::Bf16), &flow, &flow, &mask).is_err());
        assert!(warp_blend(&picture, &picture, &flow, &flow, &mask).is_ok());
    }

    #[test]
    fn blend_weighs_by_the_logistic_of_the_mask() {
        let (a, b) = (tensor(&[2.0, 4.0, 2.0, 4.0], &[1, 2, 2]), tensor(&[0.0; 4], &[1, 2, 2]));
        let y = blend_mask(&a, &b, &tensor(&[0.0, 100.0], &[1, 2, 1])).unwrap();
        assert_eq!(y.to_vec_f32(), vec![1.0, 2.0, 2.0, 4.0]);
        assert!(blend_mask(&a, &b, &a).is_err());
    }
}
