//! Resampling on the device: launches of `cuda/resample.cu`.

use super::shortcut::SizeFactors;
use super::yuv::YuvWeights;
use crate::cuda::{CudaBuffer, CudaDevice, Launch, Module};
use crate::error::{Result, argument_error};
use crate::tensor::{Dtype, Tensor};

const THREADS: usize = 256;
/// Pixels of a block at most, and elements that are about enough for one.
const PIXELS_MAX: usize = 512;
const ELEMENTS: usize = 4096;
/// A block's elements (of eight pixels at least) stay below 2²⁰, where its divisions are exact.
const CHANNELS_MAX: usize = 1 << 16;
/// Positions that may meet in one: the kernels keep a table of them.
const PHASES_MAX: usize = 256;

/// A launch of the kernel for `dtype`, of those for f32 and bf16.
fn kernel<'d>(device: &'d CudaDevice, dtype: Dtype, [f32, bf16]: [&'static str; 2]) -> Result<Launch<'d>> {
    let name = match dtype {
        Dtype::F32 => f32,
        Dtype::Bf16 => bf16,
    };
    device.kernel(Module::Resample, name)
}

/// Runs a launch over `pixels` of `c` channels, whose last argument is how many of them a block handles.
fn run_by_pixels(op: &'static str, launch: Launch<'_>, pixels: usize, c: usize) -> Result<()> {
    check_size(op, pixels, c)?;
    // A multiple of eight, so that each block begins at a multiple of 16 bytes.
    let per_block = (ELEMENTS / c / 8 * 8).clamp(8, PIXELS_MAX);
    launch.int(per_block).blocks([pixels.div_ceil(per_block), 1, 1]).threads(THREADS).run()
}

pub(super) fn backward_warp(
    device: &CudaDevice,
    image: &Tensor,
    [h, w, c]: [usize; 3],
    flow: &Tensor,
) -> Result<Tensor> {
    const OP: &str = "backward_warp";
    let (out, flow) = (device.empty(image.shape(), image.dtype())?, flow.to_dtype(Dtype::F32));
    let launch = kernel(device, image.dtype(), ["backward_warp_f32", "backward_warp_bf16"])?
        .tensor(image)
        .tensor(&flow)
        .tensor(&out);
    run_by_pixels(OP, launch.int(h).int(w).int(c), h * w, c)?;
    Ok(out)
}

pub(super) fn blend_mask(
    device: &CudaDevice,
    a: &Tensor,
    b: &Tensor,
    mask: &Tensor,
    [h, w, c]: [usize; 3],
) -> Result<Tensor> {
    const OP: &str = "blend_mask";
    let out = device.empty(a.shape(), a.dtype())?;
    let (b, mask) = (b.to_dtype(a.dtype()), mask.to_dtype(Dtype::F32));
    let launch = kernel(device, a.dtype(), ["blend_mask_f32", "blend_mask_bf16"])?
        .tensor(a)
        .tensor(&b)
        .tensor(&mask)
        .tensor(&out);
    run_by_pixels(OP, launch.long(h * w).int(c), h * w, c)?;
    Ok(out)
}

pub(super) fn warp_blend(
    device: &CudaDevice,
    [a, b]: [&Tensor; 2],
    [h, w, c]: [usize; 3],
    flows: [&Tensor; 2],
    mask: &Tensor,
) -> Result<Tensor> {
    const OP: &str = "warp_blend";
    let out = device.empty(a.shape(), a.dtype())?;
    let ([flow_a, flow_b], mask) = (flows.map(|flow| flow.to_dtype(Dtype::F32)), mask.to_dtype(Dtype::F32));
    let launch = kernel(device, a.dtype(), ["warp_blend_f32", "warp_blend_bf16"])?
        .tensor(a)
        .tensor(b)
        .tensor(&flow_a)
        .tensor(&flow_b);
    run_by_pixels(OP, launch.tensor(&mask).tensor(&out).int(h).int(w).int(c), h * w, c)?;
    Ok(out)
}

pub(super) fn resize_bilinear(
    device: &CudaDevice,
    x: &Tensor,
    [f, h, w, c]: [usize; 4],
    [height, width]: [usize; 2],
    shape: &[usize],
) -> Result<Tensor> {
    const OP: &str = "resize_bilinear";
    let out = device.empty(shape, x.dtype())?;
    let launch = kernel(device, x.dtype(), ["resize_bilinear_f32", "resize_bilinear_bf16"])?.tensor(x).tensor(&out);
    let launch = launch.int(f).int(h).int(w).int(c).int(height).int(width);
    let launch = launch.float(h as f32 / height as f32).float(w as f32 / width as f32);
    // Samples are numbered by the pixels that they read.
    check_size(OP, f * h * w, c)?;
    run_by_pixels(OP, launch, f * height * width, c)?;
    Ok(out)
}

pub(super) fn pixel_shuffle2x(
    device: &CudaDevice,
    x: &Tensor,
    [f, h, w, c]: [usize; 4],
    shape: &[usize],
) -> Result<Tensor> {
    let out = device.empty(shape, x.dtype())?;
    let launch = kernel(device, x.dtype(), ["pixel_shuffle2x_f32", "pixel_shuffle2x_bf16"])?.tensor(x).tensor(&out);
    run_by_pixels("pixel_shuffle2x", launch.long(f * h * w).int(w).int(c / 4), f * h * w, c / 4)?;
    Ok(out)
}

pub(super) fn upsample_nearest2x(
    device: &CudaDevice,
    x: &Tensor,
    [f, h, w, c]: [usize; 4],
    shape: &[usize],
) -> Result<Tensor> {
    let out = device.empty(shape, x.dtype())?;
    let launch =
        kernel(device, x.dtype(), ["upsample_nearest2x_f32", "upsample_nearest2x_bf16"])?.tensor(x).tensor(&out);
    run_by_pixels("upsample_nearest2x", launch.long(f * h * w).int(w).int(c), f * h * w, c)?;
    Ok(out)
}

/// `skipped` are the frames that x lacks at its front.
pub(super) fn add_averaged(
    device: &CudaDevice,
    y: &Tensor,
    x: &Tensor,
    from: [usize; 4],
    to: [usize; 4],
    factors: SizeFactors,
    skipped: usize,
) -> Result<Tensor> {
    let launch = kernel(device, y.dtype(), ["add_averaged_f32", "add_averaged_bf16"])?;
    add_resized("add_averaged", device, launch, y, x, from, to, factors, skipped)
}

/// `skipped` are the frames that the result leaves out at its front.
pub(super) fn add_repeated(
    device: &CudaDevice,
    y: &Tensor,
    x: &Tensor,
    from: [usize; 4],
    to: [usize; 4],
    factors: SizeFactors,
    skipped: usize,
) -> Result<Tensor> {
    let launch = kernel(device, y.dtype(), ["add_repeated_f32", "add_repeated_bf16"])?;
    add_resized("add_repeated", device, launch, y, x, from, to, factors, skipped)
}

fn add_resized(
    op: &'static str,
    device: &CudaDevice,
    launch: Launch<'_>,
    y: &Tensor,
    x: &Tensor,
    [_, h, w, cin]: [usize; 4],
    [to_f, to_h, to_w, cout]: [usize; 4],
    SizeFactors { time, side }: SizeFactors,
    skipped: usize,
) -> Result<Tensor> {
    if time * side * side > PHASES_MAX || cin > CHANNELS_MAX {
        let phases = time * side * side;
        return argument_error(
            op,
            format!("{phases} phases of {cin} channels are more than the device's kernel takes"),
        );
    }
    let out = device.empty(y.shape(), y.dtype())?;
    let pixels = to_f * to_h * to_w;
    let launch = launch.tensor(y).tensor(x).tensor(&out).long(pixels);
    let launch = launch.bytes(&ints(&[h, w, cin, to_h, to_w, cout])).bytes(&ints(&[time, side])).int(skipped);
    run_by_pixels(op, launch, pixels, cout)?;
    Ok(out)
}

/// Sizes, each below 2³¹, as the fields of a struct.
fn ints(sizes: &[usize]) -> Vec<u8> {
    sizes.iter().flat_map(|size| (*size as i32).to_ne_bytes()).collect()
}

fn check_size(op: &'static str, pixels: usize, c: usize) -> Result<()> {
    if pixels > i32::MAX as usize || c > CHANNELS_MAX {
        return argument_error(op, format!("{pixels} pixels of {c} channels are more than the device's kernel takes"));
    }
    Ok(())
}

/// The planes, in device memory.
pub(super) fn rgb_to_yuv420(
    device: &CudaDevice,
    rgb: &Tensor,
    [f, h, w]: [usize; 3],
    weights: &YuvWeights,
) -> Result<CudaBuffer> {
    let planes = device.buffer("rgb_to_yuv420", f * h * w * 3 / 2)?;
    let weights = [weights.luma, weights.blue, weights.red].concat();
    let weights: Vec<u8> = weights.iter().flat_map(|weight| weight.to_ne_bytes()).collect();
    // A thread converts two rows of as many pixels as it can write at once: more where rows are whole vectors.
    let wide = 16 / rgb.dtype().size_bytes();
    let columns = if w.is_multiple_of(wide) && (h * w).is_multiple_of(2 * wide) { wide } else { 2 };
    let launch = kernel(device, rgb.dtype(), ["rgb_to_yuv420_f32", "rgb_to_yuv420_bf16"])?.tensor(rgb).buffer(&planes);
    let launch = launch.long(f).int(h).int(w).int(columns).bytes(&weights);
    launch.blocks([(f * h * w / 2 / columns).div_ceil(THREADS), 1, 1]).threads(THREADS).run()?;
    Ok(planes)
}
