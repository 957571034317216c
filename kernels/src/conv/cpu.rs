//! Convolutions as implicit matrix products.
//!
//! | | |
//! |---|---|
//! | meaning | out = activation(conv(x) + bias + residual), per output frame over its source frames |
//! | inputs | frames [h, w, cin] f32 or bf16, channels last; kernel packed as [kt·kh·kw·cin_padded, cout]; residual like out |
//! | outputs | [h', w', cout] per frame, or every second pixel of it (a phase of a transposed convolution) |
//! | preconditions | stride 1 or 2; cin is padded to even in bf16, cout to 16 by the packed panels |
//! | reference | `reference.rs`; relative RMSE ≤ 1e-5 (f32), ≤ 1e-2 (bf16) |
//! | bound by | arithmetic, 2·kt·kh·kw·cin·cout FLOP per output pixel; at few channels by the padded copy of the input |
//! | benchmark | `conv2d`, `causal_conv3d`, `conv_transpose2d` |
#![allow(unsafe_code, reason = "tiles read rows through raw pointers; tasks write disjoint rows of one output")]

use std::mem::MaybeUninit;

use half::bf16;

use super::{ConvCall, Geometry};
use crate::buffer::Buffer;
use crate::elementwise::{load_up_to, store_up_to};
use crate::gemm::{Finish, Left, Rows, Segment, Tiles, linear_product};
use crate::packed::{PANEL, steps_of};
use crate::parallel::{self, Shared};
use crate::simd::{Element, Isa, Kernel};
use crate::tensor::{Dtype, Tensor};

/// Where the pixels of the result go: strides in elements, so that a phase of a transposed convolution can interleave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placement {
    pub(super) frame: usize,
    pub(super) row: usize,
    pub(super) pixel: usize,
}

impl Placement {
    /// Pixels one after another.
    pub(super) fn dense([h, w]: [usize; 2], cout: usize) -> Self {
        Self { frame: h * w * cout, row: w * cout, pixel: cout }
    }
}

/// Runs a call into a new dense tensor of `shape` and the input's dtype.
pub(super) fn conv(
    isa: Isa,
    call: &ConvCall<'_>,
    input: &Tensor,
    residual: Option<&Tensor>,
    shape: &[usize],
) -> Tensor {
    let residual = residual.map(|r| r.to_dtype(input.dtype()));
    match input.dtype() {
        Dtype::F32 => conv_as::<f32>(isa, call, input, residual, shape),
        Dtype::Bf16 => conv_as::<bf16>(isa, call, input, residual, shape),
    }
}

fn conv_as<T: Element>(
    isa: Isa,
    call: &ConvCall<'_>,
    input: &Tensor,
    residual: Option<Tensor>,
    shape: &[usize],
) -> Tensor {
    let len = shape.iter().product();
    let mut out = Buffer::<T>::with_capacity(len);
    let residual = residual.as_ref().and_then(T::slice).map(<[T]>::as_ptr);
    let placement = Placement::dense(call.output, call.kernel.cout());
    conv_into(isa, call, input, residual, out.as_mut_ptr(), placement);
    // SAFETY: every pixel of every output frame has been written.
    unsafe { out.set_len(len) };
    T::tensor(out, shape)
}

/// Runs a call, writing pixels where `placement` says, from `out` on. The residual is laid out like the output.
pub(super) fn conv_into<T: Element>(
    isa: Isa,
    call: &ConvCall<'_>,
    input: &Tensor,
    residual: Option<*const T>,
    out: *mut T,
    placement: Placement,
) {
    let kernel = call.kernel;
    let dtype = kernel.matrix.dtype();
    if is_pointwise(call) && placement.pixel == kernel.cout() {
        let (m, n) = (call.frames.len() * call.source[0] * call.source[1], kernel.cout());
        let bias = kernel.bias.as_deref();
        let finish =
            Finish { n, scales: None, bias, gate: None, residual, activation: call.activation, out, row_stride: n };
        return linear_product(isa, &input.to_dtype(dtype), m, &kernel.matrix, finish);
    }
    match dtype {
        Dtype::F32 => run_strips::<f32, T>(isa, call, input, residual, out, placement),
        Dtype::Bf16 => run_strips::<bf16, T>(isa, call, input, residual, out, placement),
    }
}

/// A 1×1 kernel over frames in order is a linear layer over pixels.
fn is_pointwise(call: &ConvCall<'_>) -> bool {
    let kernel = call.kernel;
    let geometry = &kernel.geometry;
    geometry.taps == [1, 1, 1]
        && geometry.stride == 1
        && call.source == call.output
        && geometry.cin == kernel.cin_padded
        && call.frames.iter().enumerate().all(|(o, sources)| sources[..] == [Some(o)])
}

/// Bytes of padded input that a task holds: they stay in the second-level cache while its output rows read them.
const STRIP_BYTES: usize = 512 * 1024;

/// Multiplies as `W`, writes as `T`.
fn run_strips<W: Element, T: Element>(
    isa: Isa,
    call: &ConvCall<'_>,
    input: &Tensor,
    residual: Option<*const T>,
    out: *mut T,
    placement: Placement,
) {
    let kernel = call.kernel;
    let Geometry { taps: [_, _, kw], stride, .. } = kernel.geometry;
    let strips = Strips::new(call, W::DTYPE);
    let (out, residual) = (Shared::from_pointer(out), residual.map(Shared::new_const));
    let operations = call.frames.len() * call.output[0] * call.output[1] * kernel.matrix.k() * kernel.cout() / 16;
    parallel::for_each(strips.count(), operations, |strip| {
        let (frame, rows) = strips.get(strip);
        let sources: Vec<(usize, usize)> =
            call.frames[frame].iter().enumerate().filter_map(|(t, source)| Some((t, (*source)?))).collect();
        let padded: Buffer<W> = strips.padded_rows(isa, input, &sources, rows.start);
        let pixel_words = steps_of(kernel.cin_padded, W::DTYPE);
        let words = padded.as_ptr().cast::<u32>();
        let segments = strips.segments(&sources, pixel_words);
        for y in rows.clone() {
            let first = (y - rows.start) * stride * strips.padded_width * pixel_words;
            let at = frame * placement.frame + y * placement.row;
            isa.run(Rows {
                left: Left {
                    words: words.wrapping_add(first),
                    row_stride: stride * pixel_words,
                    segments: &segments,
                    steps: kw * pixel_words,
                },
                rows: call.output[1],
                right: &kernel.matrix,
                panels: 0..kernel.cout().div_ceil(PANEL),
                finish: Finish {
                    n: kernel.cout(),
                    scales: None,
                    bias: kernel.bias.as_deref(),
                    gate: None,
                    residual: residual.map(|r| r.get().wrapping_add(at).cast_const()),
                    activation: call.activation,
                    out: out.get().wrapping_add(at),
                    row_stride: placement.pixel,
                },
            });
        }
    });
}

/// How the output is cut into tasks: a few rows of one frame each, with a padded copy of the input rows they read.
struct Strips<'a> {
    call: &'a ConvCall<'a>,
    /// Output rows of a strip.
    rows: usize,
    per_frame: usize,
    /// Input rows that a strip reads, and their width with padding, in pixels.
    padded_rows: usize,
    padded_width: usize,
}

impl<'a> Strips<'a> {
    fn new(call: &'a ConvCall<'a>, dtype: Dtype) -> Self {
        let Geometry { taps: [kt, kh, _], stride, padding, .. } = call.kernel.geometry;
        let cin_padded = call.kernel.cin_padded;
        let padded_width = call.source[1] + padding.left + padding.right;
        let row_bytes = kt * padded_width * cin_padded * dtype.size_bytes();
        let rows_that_fit = (STRIP_BYTES / row_bytes).saturating_sub(kh) / stride;
        let [out_h, _] = call.output;
        let rows_to_balance = (call.frames.len() * out_h).div_ceil(4 * rayon::current_num_threads());
        let rows = rows_that_fit.min(rows_to_balance).clamp(1, out_h);
        Self { call, rows, per_frame: out_h.div_ceil(rows), padded_rows: (rows - 1) * stride + kh, padded_width }
    }

    fn count(&self) -> usize {
        self.call.frames.len() * self.per_frame
    }

    /// The output frame of a strip, and its rows of it.
    fn get(&self, strip: usize) -> (usize, std::ops::Range<usize>) {
        let first = strip % self.per_frame * self.rows;
        (strip / self.per_frame, first..(first + self.rows).min(self.call.output[0]))
    }

    /// One segment per source frame and row of taps.
    fn segments(&self, sources: &[(usize, usize)], pixel_words: usize) -> Vec<Segment> {
        let [_, kh, kw] = self.call.kernel.geometry.taps;
        let of_source = |(i, &(t, _)): (usize, &(usize, usize))| {
            (0..kh).map(move |ky| Segment {
                a: (i * self.padded_rows + ky) * self.padded_width * pixel_words,
                b: (t * kh + ky) * kw * pixel_words,
            })
        };
        sources.iter().enumerate().flat_map(of_source).collect()
    }

    /// For each source frame, the `padded_rows` input rows from under output row `first` on, in the kernel's dtype, with
    /// zeros around the picture, so that taps need no bounds checks.
    fn padded_rows<W: Element>(&self, isa: Isa, input: &Tensor, sources: &[(usize, usize)], first: usize) -> Buffer<W> {
        match (input.as_f32(), input.as_bf16()) {
            (Some(values), _) => self.padded_rows_from(isa, values, sources, first),
            (_, Some(values)) => self.padded_rows_from(isa, values, sources, first),
            _ => unreachable!("a tensor is f32 or bf16"),
        }
    }

    fn padded_rows_from<I: Element, W: Element>(
        &self,
        isa: Isa,
        input: &[I],
        sources: &[(usize, usize)],
        first: usize,
    ) -> Buffer<W> {
        let Geometry { cin, padding, stride, .. } = self.call.kernel.geometry;
        let cin_padded = self.call.kernel.cin_padded;
        let [h, w] = self.call.source;
        let row = self.padded_width * cin_padded;
        let mut out = Buffer::with_capacity(sources.len() * self.padded_rows * row);
        for &(_, frame) in sources {
            for y in first * stride..first * stride + self.padded_rows {
                let Some(y) = y.checked_sub(padding.top).filter(|&y| y < h) else {
                    out.resize(out.len() + row, W::default());
                    continue;
                };
                out.resize(out.len() + padding.left * cin_padded, W::default());
                let from = &input[(frame * h + y) * w * cin..][..w * cin];
                let to = &mut out.spare_capacity_mut()[..w * cin_padded];
                isa.run(CopyRow { from, to, cin, cin_padded });
                // SAFETY: the copy has written all of them.
                unsafe { out.set_len(out.len() + w * cin_padded) };
                out.resize(out.len() + padding.right * cin_padded, W::default());
            }
        }
        out
    }
}

/// Copies a row of pixels, converting and widening them from `cin` to `cin_padded` channels; writes all of `to`.
struct CopyRow<'a, I, W> {
    from: &'a [I],
    to: &'a mut [MaybeUninit<W>],
    cin: usize,
    cin_padded: usize,
}

impl<I: Element, W: Element> Kernel for CopyRow<'_, I, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Tiles>(self, s: S) {
        // Pixels without padding run into one another: one long run.
        let (cin, cin_padded) = match self.cin == self.cin_padded {
            true => (self.from.len(), self.to.len()),
            false => (self.cin, self.cin_padded),
        };
        for (from, to) in self.from.chunks_exact(cin).zip(self.to.chunks_exact_mut(cin_padded)) {
            for at in (0..cin).step_by(S::LANES) {
                let n = S::LANES.min(cin - at);
                // SAFETY: at + n ≤ cin ≤ cin_padded, the lengths of the two pixels.
                unsafe {
                    store_up_to(s, to.as_mut_ptr().cast::<W>().add(at), load_up_to(s, from.as_ptr().add(at), n), n)
                };
            }
            to[cin..].fill(MaybeUninit::new(W::default()));
        }
    }
}
