//! Convolutions on the device: packing, and launches of `cuda/conv.cu`.

use super::{Activation, Geometry};
use crate::cuda::{CudaDevice, Module, device_of};
use crate::error::{Result, argument_error};
use crate::parallel;
use crate::tensor::{Dtype, Tensor, round_bf16};

/// Pixels of a block's tile, its threads, and the bytes of a pixel's window in a stage: `cuda/conv.cu` has the same.
const PIXELS: usize = 128;
const THREADS: usize = 128;
const STAGE_BYTES: usize = 64;

/// Rows of a picture are numbered in 16 bits.
const SIDE_MAX: usize = i16::MAX as usize;

/// A kernel in device memory: a row of ((t·kh + y)·kw + x)·cin + c per output channel, filled up with zeros to whole stages.
/// A transposed convolution has one such matrix a phase.
#[derive(Debug, Clone)]
pub(crate) struct DeviceKernel {
    geometry: Geometry,
    phases: usize,
    /// [phases · cout, k_pitch] in the dtype of the multiplications.
    weights: Tensor,
    bias: Option<Tensor>,
}

/// Which frames of cache ++ x the output frames read: tap t of frame o reads o·stride + first + t, zeros where that is
/// below 0.
pub(super) struct Frames<'a> {
    pub(super) cache: Option<&'a Tensor>,
    pub(super) count: usize,
    pub(super) first: isize,
    pub(super) stride: usize,
}

impl Frames<'_> {
    /// Every frame by itself.
    pub(super) fn each(count: usize) -> Self {
        Self { cache: None, count, first: 0, stride: 1 }
    }
}

/// One convolution to run; the caller has checked the shapes.
pub(super) struct DeviceCall<'a> {
    pub(super) x: &'a Tensor,
    /// Height and width of the source frames, and of the result's (of a phase's).
    pub(super) source: [usize; 2],
    pub(super) output: [usize; 2],
    pub(super) frames: Frames<'a>,
    pub(super) residual: Option<&'a Tensor>,
    pub(super) activation: Activation,
}

impl DeviceKernel {
    /// Packs the kernel whose weight of phase `p` from input channel `c` to output `o` at tap (t, y, x) is
    /// `at(p, o, c, [t, y, x])`.
    pub(super) fn pack(
        device: &CudaDevice,
        geometry: Geometry,
        phases: usize,
        bias: Option<&[f32]>,
        dtype: Dtype,
        at: impl Fn(usize, usize, usize, [usize; 3]) -> f32 + Sync + Send,
    ) -> Result<Self> {
        let Geometry { taps, cin, cout, .. } = geometry;
        let [_, kh, kw] = taps;
        let k = depth(&geometry);
        let pitch = k.next_multiple_of(STAGE_BYTES / dtype.size_bytes());
        let mut rows = vec![0.0; phases * cout * pitch];
        parallel::for_each_piece(&mut rows, pitch, phases * cout * k, |row, values| {
            for (i, value) in values[..k].iter_mut().enumerate() {
                let (tap, c) = (i / cin, i % cin);
                *value = at(row / cout, row % cout, c, [tap / (kh * kw), tap / kw % kh, tap % kw]);
            }
        });
        let shape = [phases * cout, pitch];
        device.scope(|| {
            let weights = match dtype {
                Dtype::F32 => Tensor::from_vec(rows, &shape)?,
                Dtype::Bf16 => Tensor::from_bf16(&round_bf16(&rows), &shape)?,
            };
            let bias = bias.map(|bias| Tensor::from_f32(bias, &[cout])).transpose()?;
            Ok(Self { geometry, phases, weights, bias })
        })
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Runs a call into a new tensor of `shape` and x's dtype.
    pub(super) fn run(&self, op: &'static str, call: &DeviceCall<'_>, shape: &[usize]) -> Result<Tensor> {
        let tensors = [Some(&self.weights), Some(call.x), call.frames.cache, call.residual];
        let Some(device) = device_of(op, &tensors.into_iter().flatten().collect::<Vec<_>>())? else {
            return argument_error(op, "the weights of a device kernel are in host memory");
        };
        let dtype = self.weights.dtype();
        let (x, cache) = (call.x.to_dtype(dtype), call.frames.cache.map(|cache| cache.to_dtype(dtype)));
        let residual = call.residual.map(|residual| residual.to_dtype(call.x.dtype()));
        let out = device.empty(shape, call.x.dtype())?;
        let tile = Tile::choose(self, call, device.info().multiprocessors);
        device
            .kernel(Module::Conv, tile.name)?
            .bytes(&self.arguments(op, call)?)
            .optional(cache.as_ref())
            .tensor(&x)
            .tensor(&self.weights)
            .optional(self.bias.as_ref())
            .optional(residual.as_ref())
            .tensor(&out)
            .blocks([tile.blocks, 1, call.frames.count * self.phases])
            .threads(THREADS)
            .shared_bytes(tile.shared_bytes)
            .run()?;
        Ok(out)
    }

    /// The bytes of `cuda/conv.cu`'s `Convolution`.
    fn arguments(&self, op: &'static str, call: &DeviceCall<'_>) -> Result<Vec<u8>> {
        let Geometry { taps: [kt, kh, kw], cin, cout, stride, padding } = self.geometry;
        let ([h, w], [out_h, out_w]) = (call.source, call.output);
        if h.max(w).max(kh).max(kw) > SIDE_MAX {
            return argument_error(op, format!("a picture of {h}x{w}: sides on a device are at most {SIDE_MAX}"));
        }
        // A phase's pixels are two apart in each direction.
        let apart = if self.phases == 1 { 1 } else { 2 };
        let strides = [apart * apart * out_h * out_w * cout, apart * apart * out_w * cout];
        let cached = call.frames.cache.map_or(0, |cache| cache.shape()[0]);
        let (activation, slope) = call.activation.device_code();
        let pictures = [apart * cout, h, w, cin, out_h, out_w, cout];
        let kernel = [kt, kh, kw, depth(&self.geometry), self.weights.shape()[1], stride, padding.top, padding.left];
        let frames = [call.frames.stride, cached, self.phases];
        let codes = [self.piece_bytes(), usize::from(call.x.dtype() == Dtype::Bf16), activation as usize];

        let mut bytes: Vec<u8> = strides.iter().flat_map(|&stride| (stride as i64).to_ne_bytes()).collect();
        let ints = pictures.into_iter().chain(kernel).map(i32::try_from);
        let ints = ints.chain([i32::try_from(call.frames.first)]);
        for int in ints.chain(frames.into_iter().chain(codes).map(i32::try_from)) {
            match int {
                Ok(int) => bytes.extend(int.to_ne_bytes()),
                Err(_) => {
                    return argument_error(op, format!("{:?} is more than a device kernel counts", call.x.shape()));
                }
            }
        }
        bytes.extend(slope.to_ne_bytes());
        Ok(bytes)
    }

    /// Bytes that the kernel moves at a time when it gathers: a power of two of at most 16 that channels are a multiple of.
    fn piece_bytes(&self) -> usize {
        let bytes = self.geometry.cin * self.weights.dtype().size_bytes();
        1 << bytes.trailing_zeros().min(4)
    }
}

/// Taps × channels.
fn depth(geometry: &Geometry) -> usize {
    geometry.taps.iter().product::<usize>() * geometry.cin
}

/// The kernel for a call: its columns are output channels.
struct Tile {
    name: &'static str,
    blocks: usize,
    shared_bytes: usize,
}

impl Tile {
    /// The width that takes least time: rounds of two blocks a multiprocessor, each as long as its columns and what all
    /// widths have to do, the gathering of windows (half of a tile of 128's work).
    fn choose(kernel: &DeviceKernel, call: &DeviceCall<'_>, multiprocessors: usize) -> Self {
        const WIDE: [(usize, &str); 4] = [
            (128, "conv_bf16_wide_128"),
            (96, "conv_bf16_wide_96"),
            (64, "conv_bf16_wide_64"),
            (32, "conv_bf16_wide_32"),
        ];
        const NARROW: [(usize, &str); 2] = [(64, "conv_bf16_narrow_64"), (32, "conv_bf16_narrow_32")];
        let wide = kernel.piece_bytes() == 16;
        let choices: &[(usize, &'static str)] = match (kernel.weights.dtype(), wide) {
            (Dtype::Bf16, true) => &WIDE,
            (Dtype::Bf16, false) => &NARROW,
            (Dtype::F32, true) => &[(64, "conv_f32_wide_64")],
            (Dtype::F32, false) => &[(64, "conv_f32_narrow_64")],
        };
        let pixel_tiles = (call.output[0] * call.output[1]).div_ceil(PIXELS);
        let pictures = call.frames.count * kernel.phases;
        let blocks = |columns: usize| pixel_tiles * kernel.geometry.cout.div_ceil(columns);
        let rounds = |columns: usize| (blocks(columns) * pictures).div_ceil(2 * multiprocessors.max(1));
        let time = |&&(columns, _): &&(usize, &str)| rounds(columns) * (columns + PIXELS / 2);
        let &(columns, name) = choices.iter().min_by_key(time).unwrap_or(&choices[0]);
        let stages = if columns > 64 { 3 } else { 4 };
        let windows = if wide { 0 } else { PIXELS * 8 };
        Self { name, blocks: blocks(columns), shared_bytes: stages * (PIXELS + columns) * STAGE_BYTES + windows }
    }
}
