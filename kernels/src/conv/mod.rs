//! Convolutions over channels-last pictures and clips.

mod conv2d;
mod conv3d;
mod cpu;
mod cuda;
mod reference;
mod transpose;

pub use conv2d::{PackedConv2d, conv2d};
pub use conv3d::{CausalConv3d, causal_conv3d};
pub use transpose::{PackedConvTranspose2d, conv_transpose2d};

use crate::activation::Activation;
use crate::buffer::Buffer;
use crate::cuda::device_of;
use crate::error::{Result, argument_error, shape_error};
use crate::gemm::padded_vector;
use crate::linear::bias_values;
use crate::packed::PackedMatrix;
use crate::simd::Isa;
use crate::tensor::{Dtype, Tensor};

/// Zeros added around a picture before a convolution, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Padding {
    /// Columns before the first.
    pub left: usize,
    /// Columns after the last.
    pub right: usize,
    /// Rows above the first.
    pub top: usize,
    /// Rows below the last.
    pub bottom: usize,
}

impl Padding {
    /// The same number of zeros on all four sides.
    pub fn all(pixels: usize) -> Self {
        Self { left: pixels, right: pixels, top: pixels, bottom: pixels }
    }
}

/// What a kernel of kt×kh×kw taps does to pictures, wherever its weights are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) taps: [usize; 3],
    pub(crate) cin: usize,
    pub(crate) cout: usize,
    pub(crate) stride: usize,
    pub(crate) padding: Padding,
}

impl Geometry {
    /// Height and width of the result for a picture of h×w.
    pub(crate) fn output_size(&self, op: &'static str, h: usize, w: usize) -> Result<(usize, usize)> {
        let (padded_h, padded_w) =
            (h + self.padding.top + self.padding.bottom, w + self.padding.left + self.padding.right);
        let [_, kh, kw] = self.taps;
        if padded_h < kh || padded_w < kw || h == 0 || w == 0 {
            return shape_error(op, format!("a picture of {h}x{w} is smaller than the {kh}x{kw} kernel"));
        }
        Ok(((padded_h - kh) / self.stride + 1, (padded_w - kw) / self.stride + 1))
    }
}

/// A packed kernel, in the memory that its weight was in.
#[derive(Debug, Clone)]
pub(crate) enum PackedKernel {
    Host(ConvKernel),
    Cuda(cuda::DeviceKernel),
}

impl PackedKernel {
    /// Packs the kernel whose weight from input channel `c` to output `o` at tap (t, y, x) is `at(o, c, [t, y, x])`, for the
    /// device that `weight` is on.
    pub(crate) fn pack(
        op: &'static str,
        weight: &Tensor,
        bias: Option<&Tensor>,
        geometry: Geometry,
        dtype: Dtype,
        at: impl Fn(usize, usize, [usize; 3]) -> f32 + Sync + Send,
    ) -> Result<Self> {
        let bias = bias_values(op, bias, geometry.cout)?;
        Ok(match device_of(op, &[weight])? {
            None => Self::Host(ConvKernel::pack(geometry, bias.map(padded_vector), dtype, at)),
            Some(device) => {
                let at = |_: usize, o: usize, c: usize, tap: [usize; 3]| at(o, c, tap);
                Self::Cuda(cuda::DeviceKernel::pack(&device, geometry, 1, bias.as_deref(), dtype, at)?)
            }
        })
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        match self {
            Self::Host(kernel) => &kernel.geometry,
            Self::Cuda(kernel) => kernel.geometry(),
        }
    }
}

/// A kernel packed for the CPU. Row `((t·kh + y)·kw + x)·cin_padded + c` of the matrix holds tap (t, y, x), channel c.
#[derive(Debug, Clone)]
pub(crate) struct ConvKernel {
    pub(crate) geometry: Geometry,
    pub(crate) matrix: PackedMatrix,
    /// Padded to whole panels.
    pub(crate) bias: Option<Buffer<f32>>,
    /// Input channels as the matrix holds them: even in bf16, so that a pixel is a whole number of pairs.
    pub(crate) cin_padded: usize,
}

impl ConvKernel {
    /// As [`PackedKernel::pack`].
    pub(crate) fn pack(
        geometry: Geometry,
        bias: Option<Buffer<f32>>,
        dtype: Dtype,
        at: impl Fn(usize, usize, [usize; 3]) -> f32 + Sync + Send,
    ) -> Self {
        let Geometry { taps, cin, cout, .. } = geometry;
        let cin_padded = match dtype {
            Dtype::F32 => cin,
            Dtype::Bf16 => cin.next_multiple_of(2),
        };
        let [_, kh, kw] = taps;
        let k = taps.iter().product::<usize>() * cin_padded;
        let matrix = PackedMatrix::pack(k, cout, dtype, |row, o| {
            let (tap, c) = (row / cin_padded, row % cin_padded);
            if c < cin { at(o, c, [tap / (kh * kw), tap / kw % kh, tap % kw]) } else { 0.0 }
        });
        Self { geometry, matrix, bias, cin_padded }
    }

    pub(crate) fn cout(&self) -> usize {
        self.geometry.cout
    }
}

/// One convolution to run: each output frame reads `taps[0]` source frames (an absent one is all zeros).
pub(crate) struct ConvCall<'a> {
    pub(crate) kernel: &'a ConvKernel,
    /// Height and width of the source frames.
    pub(crate) source: [usize; 2],
    pub(crate) output: [usize; 2],
    /// For each output frame, its source frames, oldest first: indices into the frames of the input.
    pub(crate) frames: Vec<Vec<Option<usize>>>,
    pub(crate) activation: Activation,
}

/// Runs a call over `input` in host memory (frames one after another, channels last); `shape` is the output's, and the
/// residual's.
fn run_on_host(call: &ConvCall<'_>, input: &Tensor, residual: Option<&Tensor>, shape: &[usize]) -> Tensor {
    if let Some(isa) = Isa::current() {
        return cpu::conv(isa, call, input, residual, shape);
    }
    let rounded = input.to_dtype(call.kernel.matrix.dtype());
    let residual = residual.map(Tensor::f32_values);
    Tensor::from_result(reference::conv(call, &rounded.f32_values(), residual.as_deref()), shape, input.dtype())
}

/// An error unless all that are there are in host memory, as the weights are.
fn check_on_host(op: &'static str, tensors: &[Option<&Tensor>]) -> Result<()> {
    match device_of(op, &tensors.iter().flatten().copied().collect::<Vec<_>>())? {
        None => Ok(()),
        Some(_) => argument_error(op, "the weights are in host memory, the tensors are not"),
    }
}

fn check_stride(op: &'static str, stride: usize) -> Result<()> {
    match stride {
        1 | 2 => Ok(()),
        _ => argument_error(op, format!("a stride of {stride} is not supported, only 1 and 2")),
    }
}

fn check_residual(op: &'static str, residual: Option<&Tensor>, shape: &[usize]) -> Result<()> {
    match residual {
        Some(r) if r.shape() != shape => shape_error(op, format!("residual is {:?}, the result {shape:?}", r.shape())),
        _ => Ok(()),
    }
}
