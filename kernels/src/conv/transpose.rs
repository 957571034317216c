//! Transposed convolution with kernel 4, stride 2, padding 1 (IFNet's upsampling).
#![allow(unsafe_code, reason = "the output is not cleared before its phases are written")]

use half::bf16;

use super::cpu::{self, Placement};
use super::cuda::{DeviceCall, DeviceKernel, Frames};
use super::{ConvCall, ConvKernel, Geometry, Padding, check_on_host, reference};
use crate::activation::Activation;
use crate::buffer::Buffer;
use crate::cuda::{CudaDevice, device_of};
use crate::error::{Result, shape_error};
use crate::gemm::padded_vector;
use crate::linear::bias_values;
use crate::packed::LINE;
use crate::resample::with_size;
use crate::simd::{Element, Isa};
use crate::tensor::{Dtype, Tensor};

/// Weight and bias of a transposed convolution with kernel 4×4, stride 2 and padding 1. It lives and runs where the weight
/// was.
///
/// Packed as the plain convolutions that make the interleaved *phases* of the result: an output row of one parity reads two
/// input rows, and the same holds for columns.
#[derive(Debug, Clone)]
pub struct PackedConvTranspose2d {
    cin: usize,
    cout: usize,
    phases: Phases,
}

#[derive(Debug, Clone)]
enum Phases {
    Host(HostPhases),
    Cuda(DeviceKernel),
}

/// The phases in host memory.
#[derive(Debug, Clone)]
pub(super) struct HostPhases {
    /// [cin, cout, 4, 4] in the dtype of the multiplications.
    pub(super) weight: Tensor,
    pub(super) bias: Option<Buffer<f32>>,
    phases: Vec<Phase>,
}

/// A convolution that makes the output rows of parity `row`, and the columns of parity `column` (of both when `None`, as
/// twice the channels).
#[derive(Debug, Clone)]
struct Phase {
    row: usize,
    column: Option<usize>,
    kernel: ConvKernel,
}

impl PackedConvTranspose2d {
    /// Packs `weight` [cin, cout, 4, 4] (torch's layout) and `bias` `[cout]`.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, dtype: Dtype) -> Result<Self> {
        const OP: &str = "PackedConvTranspose2d::new";
        let &[cin, cout, 4, 4] = weight.shape() else {
            return shape_error(OP, format!("weight is {:?}, needs [cin, cout, 4, 4]", weight.shape()));
        };
        if weight.is_empty() {
            return shape_error(OP, format!("weight {:?} is empty", weight.shape()));
        }
        let bias = bias_values(OP, bias, cout)?;
        let phases = match device_of(OP, &[weight])? {
            None => Phases::Host(HostPhases {
                phases: pack_phases(weight, bias.as_deref(), dtype),
                weight: weight.to_dtype(dtype),
                bias: bias.map(|b| Buffer::from_slice(&b)),
            }),
            Some(device) => Phases::Cuda(pack_on_device(&device, &weight.to_host()?, bias.as_deref(), dtype)?),
        };
        Ok(Self { cin, cout, phases })
    }
}

/// Four phases of 2×2 taps: phase 2p + q makes rows of parity p and columns of parity q. Their windows start p rows and q
/// columns after those of phase 0, which the kernel knows.
fn pack_on_device(device: &CudaDevice, weight: &Tensor, bias: Option<&[f32]>, dtype: Dtype) -> Result<DeviceKernel> {
    let (cin, cout) = (weight.shape()[0], weight.shape()[1]);
    let values = weight.f32_values();
    let at = |phase: usize, o: usize, c: usize, [_, y, x]: [usize; 3]| {
        let (row, column) = (phase / 2, phase % 2);
        match (kernel_index(row, y + row), kernel_index(column, x + column)) {
            (Some(ky), Some(kx)) => values[((c * cout + o) * 4 + ky) * 4 + kx],
            _ => 0.0,
        }
    };
    let geometry = Geometry { taps: [1, 2, 2], cin, cout, stride: 1, padding: Padding::all(1) };
    DeviceKernel::pack(device, geometry, 4, bias, dtype, at)
}

/// The kernel index that links output 2i + parity to input i − 1 + tap, for the taps that exist.
fn kernel_index(parity: usize, tap: usize) -> Option<usize> {
    (parity + 3).checked_sub(2 * tap).filter(|&index| index < 4)
}

/// Two phases (rows apart, columns as channels, 2×3 taps of which a third are zero) when the columns of the packed panels
/// are used so much better that this is less work; four phases of 2×2 taps otherwise.
fn pack_phases(weight: &Tensor, bias: Option<&[f32]>, dtype: Dtype) -> Vec<Phase> {
    let cout = weight.shape()[1];
    let joined = 3 * (2 * cout).next_multiple_of(LINE) < 4 * cout.next_multiple_of(LINE);
    let columns = if joined { vec![None] } else { vec![Some(0), Some(1)] };
    let parities = (0..2).flat_map(|row| columns.iter().map(move |&column| (row, column)));
    parities.map(|(row, column)| pack_phase(weight, bias, dtype, row, column)).collect()
}

fn pack_phase(weight: &Tensor, bias: Option<&[f32]>, dtype: Dtype, row: usize, column: Option<usize>) -> Phase {
    let (cin, cout) = (weight.shape()[0], weight.shape()[1]);
    let values = weight.f32_values();
    let copies = if column.is_some() { 1 } else { 2 };
    let bias = bias.map(|b| padded_vector(b.repeat(copies)));
    // Parity p reads inputs i − 1 + p and i + p: one zero before the first for p = 0, one after the last for p = 1.
    let side = |parity: usize| [1 - parity, parity];
    let [top, bottom] = side(row);
    let [left, right] = column.map_or([1, 1], side);
    let kw = column.map_or(3, |_| 2);
    let at = |o: usize, c: usize, [_, y, x]: [usize; 3]| {
        let (o, parity, tap) = match column {
            Some(parity) => (o, parity, x + parity),
            None => (o % cout, o / cout, x),
        };
        match (kernel_index(row, y + row), kernel_index(parity, tap)) {
            (Some(ky), Some(kx)) => values[((c * cout + o) * 4 + ky) * 4 + kx],
            _ => 0.0,
        }
    };
    let padding = Padding { left, right, top, bottom };
    let geometry = Geometry { taps: [1, 2, kw], cin, cout: copies * cout, stride: 1, padding };
    Phase { row, column, kernel: ConvKernel::pack(geometry, bias, dtype, at) }
}

/// `activation(conv_transpose(x) + bias)`: x [(f,) h, w, cin] → [(f,) 2h, 2w, cout] of x's dtype.
pub fn conv_transpose2d(x: &Tensor, weight: &PackedConvTranspose2d, activation: Activation) -> Result<Tensor> {
    const OP: &str = "conv_transpose2d";
    let [f, h, w] = match *x.shape() {
        [h, w, c] if c == weight.cin && !x.is_empty() => [1, h, w],
        [f, h, w, c] if c == weight.cin && !x.is_empty() => [f, h, w],
        _ => return shape_error(OP, format!("x is {:?}, needs [(f,) h, w, {}]", x.shape(), weight.cin)),
    };
    let shape = with_size(x, 2 * h, 2 * w, weight.cout);
    let phases = match &weight.phases {
        Phases::Host(phases) => phases,
        Phases::Cuda(kernel) => {
            let size = [h, w];
            let frames = Frames::each(f);
            let call = DeviceCall { x, source: size, output: size, frames, residual: None, activation };
            return kernel.run(OP, &call, &shape);
        }
    };
    check_on_host(OP, &[Some(x)])?;
    if let Some(isa) = Isa::current() {
        return Ok(match x.dtype() {
            Dtype::F32 => run_phases::<f32>(isa, x, [f, h, w], phases, activation, &shape),
            Dtype::Bf16 => run_phases::<bf16>(isa, x, [f, h, w], phases, activation, &shape),
        });
    }
    let input = x.to_dtype(phases.weight.dtype());
    let input = input.f32_values();
    let frames = input.chunks_exact(h * w * weight.cin);
    let y = frames.flat_map(|frame| reference::conv_transpose2d(frame, h, w, phases, activation)).collect();
    Ok(Tensor::from_result(y, &shape, x.dtype()))
}

fn run_phases<T: Element>(
    isa: Isa,
    x: &Tensor,
    [f, h, w]: [usize; 3],
    phases: &HostPhases,
    activation: Activation,
    shape: &[usize],
) -> Tensor {
    let cout = phases.weight.shape()[1];
    let len = shape.iter().product();
    let mut out = Buffer::<T>::with_capacity(len);
    for phase in &phases.phases {
        let frames = (0..f).map(|frame| vec![Some(frame)]).collect();
        let call = ConvCall { kernel: &phase.kernel, source: [h, w], output: [h, w], frames, activation };
        let start = (phase.row * 2 * w + phase.column.unwrap_or(0)) * cout;
        let placement = Placement { frame: 4 * h * w * cout, row: 4 * w * cout, pixel: 2 * cout };
        cpu::conv_into(isa, &call, x, None, out.as_mut_ptr().wrapping_add(start), placement);
    }
    // SAFETY: the phases have written every pixel of both parities of rows and columns, of every frame.
    unsafe { out.set_len(len) };
    T::tensor(out, shape)
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
    fn the_frames_of_a_clip_are_pictures_of_their_own() {
        let weight = Tensor::from_vec((0..16).map(|i| i as f32).collect(), &[1, 1, 4, 4]).unwrap();
        let packed = PackedConvTranspose2d::new(&weight, None, Dtype::F32).unwrap();
        let x = Tensor::from_f32(&[2.0, 1.0], &[2, 1, 1, 1]).unwrap();
        let y = conv_transpose2d(&x, &packed, Activation::None).unwrap();
        let expected = vec![10.0, 12.0, 18.0, 20.0, 5.0, 6.0, 9.0, 10.0];
        assert_eq!((y.shape(), y.to_vec_f32()), (&[2, 2, 2, 1][..], expected));
    }

    #[test]
    fn other_kernel_sizes_are_refused() {
        let weight = Tensor::from_f32(&[1.0; 9], &[1, 1, 3, 3]).unwrap();
        assert!(PackedConvTranspose2d::new(&weight, None, Dtype::F32).is_err());
    }
}
