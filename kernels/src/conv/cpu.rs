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

use half::bf16;

use super::{ConvCall, ConvKernel};
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
    let mut out: Vec<T> = Vec::with_capacity(len);
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
        let finish = Finish { n, bias, gate: None, residual, activation: call.activation, out, row_stride: n };
        return linear_product(isa, &input.to_dtype(dtype), m, &kernel.matrix, finish);
    }
    match dtype {
        Dtype::F32 => run_padded::<f32, T>(isa, call, input, residual, out, placement),
        Dtype::Bf16 => run_padded::<bf16, T>(isa, call, input, residual, out, placement),
    }
}

/// A 1×1 kernel over frames in order is a linear layer over pixels.
fn is_pointwise(call: &ConvCall<'_>) -> bool {
    let kernel = call.kernel;
    kernel.taps == [1, 1, 1]
        && kernel.stride == 1
        && call.source == call.output
        && kernel.cin == kernel.cin_padded
        && call.frames.iter().enumerate().all(|(o, sources)| sources[..] == [Some(o)])
}

/// The input in the kernel's dtype with zeros around every frame, so that taps need no bounds checks.
struct Padded<W> {
    values: Vec<W>,
    h: usize,
    w: usize,
}

fn run_padded<W: Element, T: Element>(
    isa: Isa,
    call: &ConvCall<'_>,
    input: &Tensor,
    residual: Option<*const T>,
    out: *mut T,
    placement: Placement,
) {
    let padded: Padded<W> = pad(isa, call, input);
    let kernel = call.kernel;
    let [kt, kh, kw] = kernel.taps;
    let pixel_words = steps_of(kernel.cin_padded, W::DTYPE);
    let steps = kw * pixel_words;
    let words = Shared::new_const(padded.values.as_ptr().cast::<u32>());
    let (out, residual) = (Shared::from_pointer(out), residual.map(Shared::new_const));

    let [out_h, out_w] = call.output;
    let operations = call.frames.len() * out_h * out_w * kernel.matrix.k() * kernel.cout() / 8;
    let strips = Strips::new(call.frames.len() * out_h, out_w);
    parallel::for_each(strips.count(), operations, |strip| {
        let (rows, columns) = strips.ranges(strip);
        let mut segments = Vec::with_capacity(kt * kh);
        for row in rows {
            let (frame, y) = (row / out_h, row % out_h);
            segments.clear();
            for (t, source) in call.frames[frame].iter().enumerate() {
                let Some(source) = source else { continue };
                segments.extend((0..kh).map(|ky| Segment {
                    a: (source * padded.h + ky) * padded.w * pixel_words,
                    b: (t * kh + ky) * steps,
                }));
            }
            let first = (y * kernel.stride * padded.w + columns.start * kernel.stride) * pixel_words;
            let left = Left {
                words: words.get().wrapping_add(first).cast_const(),
                row_stride: kernel.stride * pixel_words,
                segments: &segments,
                steps,
            };
            let at = frame * placement.frame + y * placement.row + columns.start * placement.pixel;
            isa.run(Rows {
                left,
                rows: columns.len(),
                right: &kernel.matrix,
                panels: 0..kernel.cout().div_ceil(PANEL),
                finish: Finish {
                    n: kernel.cout(),
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

/// How the output rows are cut into tasks: whole rows, or parts of long ones, of a few hundred pixels.
struct Strips {
    rows: usize,
    width: usize,
    rows_per_strip: usize,
    parts: usize,
}

impl Strips {
    fn new(rows: usize, width: usize) -> Self {
        const PIXELS: usize = 256;
        Self { rows, width, rows_per_strip: (PIXELS / width.max(1)).max(1), parts: width.div_ceil(2 * PIXELS).max(1) }
    }

    fn count(&self) -> usize {
        self.rows.div_ceil(self.rows_per_strip) * self.parts
    }

    fn ranges(&self, strip: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let (rows, part) = (strip / self.parts * self.rows_per_strip, strip % self.parts);
        let columns = self.width * part / self.parts..self.width * (part + 1) / self.parts;
        (rows..(rows + self.rows_per_strip).min(self.rows), columns)
    }
}

fn pad<W: Element>(isa: Isa, call: &ConvCall<'_>, input: &Tensor) -> Padded<W> {
    if let Some(values) = input.as_f32() {
        pad_from(isa, call, values)
    } else if let Some(values) = input.as_bf16() {
        pad_from(isa, call, values)
    } else {
        unreachable!("a tensor is f32 or bf16")
    }
}

fn pad_from<I: Element, W: Element>(isa: Isa, call: &ConvCall<'_>, input: &[I]) -> Padded<W> {
    let ConvKernel { cin, cin_padded, padding, .. } = *call.kernel;
    let [h, w] = call.source;
    let (padded_h, padded_w) = (h + padding.top + padding.bottom, w + padding.left + padding.right);
    let frames = input.len() / (h * w * cin);
    let mut values = vec![W::default(); frames * padded_h * padded_w * cin_padded];
    let row = padded_w * cin_padded;
    let rows = parallel::rows_per_piece(row);
    let operations = values.len() / 4;
    parallel::for_each_piece(&mut values, rows * row, operations, |piece, out| {
        for (i, out) in out.chunks_exact_mut(row).enumerate() {
            let (frame, y) = ((piece * rows + i) / padded_h, (piece * rows + i) % padded_h);
            if (padding.top..padding.top + h).contains(&y) {
                let from = &input[(frame * h + y - padding.top) * w * cin..][..w * cin];
                isa.run(CopyRow { from, to: &mut out[padding.left * cin_padded..][..w * cin_padded], cin, cin_padded });
            }
        }
    });
    Padded { values, h: padded_h, w: padded_w }
}

/// Copies a row of pixels, converting and widening them from `cin` to `cin_padded` channels.
struct CopyRow<'a, I, W> {
    from: &'a [I],
    to: &'a mut [W],
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
                unsafe { store_up_to(s, to.as_mut_ptr().add(at), load_up_to(s, from.as_ptr().add(at), n), n) };
            }
        }
    }
}
