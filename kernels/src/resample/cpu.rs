//! Resampling on vectors over the channels of a pixel.
//!
//! | | |
//! |---|---|
//! | meaning | resize: bilinear, half-pixel centres; warp: bilinear at x + flow, clamped; blend: a·σ(m) + b·(1 − σ(m)) |
//! | inputs | pictures [h, w, c] f32 or bf16, channels last; flow f32 [h, w, 2]; mask f32 [h, w] |
//! | outputs | a picture of the same dtype, a new buffer |
//! | preconditions | nothing is empty |
//! | reference | `reference.rs`; relative RMSE ≤ 1e-5 (f32), ≤ 1e-2 (bf16: the result is rounded) |
//! | bound by | memory; with few channels by the handling of single pixels |
//! | benchmark | `resize_bilinear`, `backward_warp`, `blend_mask`, `pixel_shuffle2x`, `upsample_nearest2x` |
#![allow(unsafe_code, reason = "vector loads and stores")]

use std::mem::MaybeUninit;

use half::bf16;

use super::reference::neighbours;
use crate::buffer::Buffer;
use crate::elementwise::{load_up_to, store_up_to};
use crate::gemm::Tiles;
use crate::parallel;
use crate::simd::{Element, Isa, Kernel, math};
use crate::tensor::{Dtype, Tensor};

/// Calls a function for the element type of a tensor.
macro_rules! by_dtype {
    ($tensor:expr, $function:ident($($argument:expr),*)) => {
        match $tensor.dtype() {
            Dtype::F32 => $function::<f32>($($argument),*),
            Dtype::Bf16 => $function::<bf16>($($argument),*),
        }
    };
}

fn elements<T: Element>(x: &Tensor) -> &[T] {
    match T::slice(x) {
        Some(values) => values,
        None => unreachable!("the caller asks for the tensor's own dtype"),
    }
}

/// Makes a picture of rows of `row` elements, each by `make(row index, row)`, which must write all of the row.
fn by_rows<T: Element>(
    rows: usize,
    row: usize,
    shape: &[usize],
    make: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync + Send,
) -> Tensor {
    let per_piece = parallel::rows_per_piece(row);
    // SAFETY: every row is written by `make`, as its contract says.
    let out = unsafe {
        parallel::collect_pieces(rows * row, per_piece * row, rows * row, |piece, out| {
            for (i, out) in out.chunks_exact_mut(row).enumerate() {
                make(piece * per_piece + i, out);
            }
        })
    };
    T::tensor(out, shape)
}

pub(super) fn upsample_nearest2x(x: &Tensor, dims: [usize; 4], shape: &[usize]) -> Tensor {
    by_dtype!(x, upsample_as(x, dims, shape))
}

fn upsample_as<T: Element>(x: &Tensor, [f, h, w, c]: [usize; 4], shape: &[usize]) -> Tensor {
    let values = elements::<T>(x);
    by_rows(f * 2 * h, 2 * w * c, shape, |row, out| {
        let from = &values[(row / (2 * h) * h + row % (2 * h) / 2) * w * c..][..w * c];
        for (pixel, pair) in from.chunks_exact(c).zip(out.chunks_exact_mut(2 * c)) {
            pair[..c].write_copy_of_slice(pixel);
            pair[c..].write_copy_of_slice(pixel);
        }
    })
}

pub(super) fn pixel_shuffle2x(x: &Tensor, dims: [usize; 4], shape: &[usize]) -> Tensor {
    by_dtype!(x, shuffle_as(x, dims, shape))
}

fn shuffle_as<T: Element>(x: &Tensor, [f, h, w, c]: [usize; 4], shape: &[usize]) -> Tensor {
    let values = elements::<T>(x);
    by_rows(f * 2 * h, w * c / 2, shape, |row, out| {
        let from = &values[row / 2 * w * c..][..w * c];
        let top = row % 2 * 2;
        for (pixel, pair) in from.chunks_exact(c).zip(out.chunks_exact_mut(c / 2)) {
            let (left, right) = pair.split_at_mut(c / 4);
            for (i, group) in pixel.chunks_exact(4).enumerate() {
                left[i].write(group[top]);
                right[i].write(group[top + 1]);
            }
        }
    })
}

pub(super) fn resize_bilinear(isa: Isa, x: &Tensor, dims: [usize; 4], size: [usize; 2], shape: &[usize]) -> Tensor {
    by_dtype!(x, resize_as(isa, x, dims, size, shape))
}

fn resize_as<T: Element>(
    isa: Isa,
    x: &Tensor,
    [f, h, w, c]: [usize; 4],
    [height, width]: [usize; 2],
    shape: &[usize],
) -> Tensor {
    let values = elements::<T>(x);
    let columns: Vec<(usize, usize, f32)> = (0..width).map(|x| neighbours(x, w, width)).collect();
    by_rows(f * height, width * c, shape, |row, out| {
        let (y0, y1, fy) = neighbours(row % height, h, height);
        let source = |y: usize| &values[(row / height * h + y) * w * c..][..w * c];
        isa.run(ResizeRow { upper: source(y0), lower: source(y1), fy, columns: &columns, c, out });
    })
}

struct ResizeRow<'a, T> {
    upper: &'a [T],
    lower: &'a [T],
    /// Weight of the lower row.
    fy: f32,
    columns: &'a [(usize, usize, f32)],
    c: usize,
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Element> Kernel for ResizeRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Tiles>(self, s: S) {
        let mut mixed = Buffer::<f32>::zeros(self.upper.len());
        let fy = s.splat(self.fy);
        for at in (0..mixed.len()).step_by(S::LANES) {
            let n = S::LANES.min(mixed.len() - at);
            // SAFETY: at + n ≤ the length of both rows and of the mix.
            unsafe {
                let upper = load_up_to(s, self.upper.as_ptr().add(at), n);
                let lower = load_up_to(s, self.lower.as_ptr().add(at), n);
                store_up_to(s, mixed.as_mut_ptr().add(at), s.fma(s.sub(lower, upper), fy, upper), n);
            }
        }
        let c = self.c;
        for (&(x0, x1, fx), out) in self.columns.iter().zip(self.out.chunks_exact_mut(c)) {
            let (left, right) = (&mixed[x0 * c..][..c], &mixed[x1 * c..][..c]);
            let fx = s.splat(fx);
            for at in (0..c).step_by(S::LANES) {
                let n = S::LANES.min(c - at);
                // SAFETY: at + n ≤ c, the length of all three pixels.
                unsafe {
                    let left = load_up_to(s, left.as_ptr().add(at), n);
                    let right = load_up_to(s, right.as_ptr().add(at), n);
                    store_up_to(s, out.as_mut_ptr().cast::<T>().add(at), s.fma(s.sub(right, left), fx, left), n);
                }
            }
        }
    }
}

pub(super) fn backward_warp(isa: Isa, image: &Tensor, dims: [usize; 3], flow: &[f32]) -> Tensor {
    by_dtype!(image, warp_as(isa, image, dims, flow))
}

fn warp_as<T: Element>(isa: Isa, image: &Tensor, [h, w, c]: [usize; 3], flow: &[f32]) -> Tensor {
    let values = elements::<T>(image);
    by_rows(h, w * c, image.shape(), |y, out| {
        isa.run(WarpRow { image: values, size: [h, w, c], y, flow: &flow[y * w * 2..][..w * 2], out });
    })
}

struct WarpRow<'a, T> {
    image: &'a [T],
    size: [usize; 3],
    y: usize,
    /// (x, y) of every pixel of the row.
    flow: &'a [f32],
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Element> Kernel for WarpRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Tiles>(self, s: S) {
        let [h, w, c] = self.size;
        let (right, below) = (if w > 1 { c } else { 0 }, if h > 1 { w * c } else { 0 });
        let pixels = self.flow.chunks(2 * S::LANES).zip(self.out.chunks_mut(c * S::LANES));
        for (block, (flow, out)) in pixels.enumerate() {
            let samples = Samples::of(s, flow, block * S::LANES, self.y, self.size);
            for (i, out) in out.chunks_exact_mut(c).enumerate() {
                let from = (samples.y[i] as usize * w + samples.x[i] as usize) * c;
                // The largest index that is read: indices come from clamped coordinates, which this holds them to.
                assert!(from + below + right + c <= self.image.len());
                for at in (0..c).step_by(S::LANES) {
                    let n = S::LANES.min(c - at);
                    let tap = |from: usize, weight: f32, sum: S::F| {
                        // SAFETY: the pixels of all four taps lie within the image, as just asserted; at + n ≤ c.
                        s.fma(s.splat(weight), unsafe { load_up_to(s, self.image.as_ptr().add(from + at), n) }, sum)
                    };
                    let sum = tap(from, samples.weights[0][i], s.splat(0.0));
                    let sum = tap(from + right, samples.weights[1][i], sum);
                    let sum = tap(from + below, samples.weights[2][i], sum);
                    let sum = tap(from + below + right, samples.weights[3][i], sum);
                    // SAFETY: at + n ≤ c, the length of the pixel.
                    unsafe { store_up_to(s, out.as_mut_ptr().cast::<T>().add(at), sum, n) };
                }
            }
        }
    }
}

/// Where the pixels of a block read: the upper left one of four neighbours, and the weights of all four (upper left, upper
/// right, lower left, lower right).
struct Samples {
    x: [f32; 16],
    y: [f32; 16],
    weights: [[f32; 16]; 4],
}

impl Samples {
    /// For up to LANES pixels of row `y` from column `first` on, with their flow.
    #[inline(always)]
    fn of<S: Tiles>(s: S, flow: &[f32], first: usize, y: usize, [h, w, _]: [usize; 3]) -> Self {
        let mut samples = Self { x: [0.0; 16], y: [0.0; 16], weights: [[0.0; 16]; 4] };
        for (i, flow) in flow.chunks_exact(2).enumerate() {
            samples.x[i] = (first + i) as f32 + flow[0];
            samples.y[i] = y as f32 + flow[1];
        }
        // SAFETY: every array has 16 ≥ LANES values.
        unsafe {
            let (x0, fx) = split(s, s.load(samples.x.as_ptr()), w);
            let (y0, fy) = split(s, s.load(samples.y.as_ptr()), h);
            let one = s.splat(1.0);
            let (gx, gy) = (s.sub(one, fx), s.sub(one, fy));
            s.store(samples.x.as_mut_ptr(), x0);
            s.store(samples.y.as_mut_ptr(), y0);
            for (to, (y, x)) in samples.weights.iter_mut().zip([(gy, gx), (gy, fx), (fy, gx), (fy, fx)]) {
                s.store(to.as_mut_ptr(), s.mul(y, x));
            }
        }
        samples
    }
}

/// Coordinates clamped to 0..n as the first of two neighbours, at most n − 2, and the weight of the second. Not-a-number
/// becomes 0.
#[inline(always)]
fn split<S: Tiles>(s: S, coordinate: S::F, n: usize) -> (S::F, S::F) {
    // Of two operands the second is taken when one is not a number.
    let clamped = s.min(s.max(coordinate, s.splat(0.0)), s.splat((n - 1) as f32));
    // A whole number may be rounded down to the one before: then its weight is 1, which is the same sample.
    let below = s.round(s.sub(clamped, s.splat(0.5)));
    let first = s.max(s.min(below, s.splat(n.saturating_sub(2) as f32)), s.splat(0.0));
    (first, s.sub(clamped, first))
}

/// Both warps and the blend, row by row: the warped rows stay in the caches.
pub(super) fn warp_blend(isa: Isa, images: [&Tensor; 2], dims: [usize; 3], flows: [&[f32]; 2], mask: &[f32]) -> Tensor {
    by_dtype!(images[0], warp_blend_as(isa, images, dims, flows, mask))
}

fn warp_blend_as<T: Element>(
    isa: Isa,
    images: [&Tensor; 2],
    [h, w, c]: [usize; 3],
    flows: [&[f32]; 2],
    mask: &[f32],
) -> Tensor {
    by_rows(h, w * c, images[0].shape(), |y, out| {
        let warped = [0, 1].map(|i| {
            let (image, flow) = (elements::<T>(images[i]), &flows[i][y * w * 2..][..w * 2]);
            let mut row = Buffer::with_capacity(w * c);
            isa.run(WarpRow { image, size: [h, w, c], y, flow, out: &mut row.spare_capacity_mut()[..w * c] });
            // SAFETY: every pixel of the row has been written.
            unsafe { row.set_len(w * c) };
            row
        });
        isa.run(BlendRow { a: &warped[0], b: &warped[1], mask: &mask[y * w..][..w], c, out });
    })
}

pub(super) fn blend_mask(isa: Isa, a: &Tensor, b: &Tensor, mask: &[f32], [h, w, c]: [usize; 3]) -> Tensor {
    by_dtype!(a, blend_as(isa, a, b, mask, [h, w, c]))
}

fn blend_as<T: Element>(isa: Isa, a: &Tensor, b: &Tensor, mask: &[f32], [h, w, c]: [usize; 3]) -> Tensor {
    let (a_values, b_values) = (elements::<T>(a), elements::<T>(b));
    by_rows(h, w * c, a.shape(), |y, out| {
        let row = y * w * c..(y + 1) * w * c;
        let (a, b) = (&a_values[row.clone()], &b_values[row]);
        isa.run(BlendRow { a, b, mask: &mask[y * w..][..w], c, out });
    })
}

struct BlendRow<'a, T> {
    /// Rows as long as `out`.
    a: &'a [T],
    b: &'a [T],
    mask: &'a [f32],
    c: usize,
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Element> Kernel for BlendRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Tiles>(self, s: S) {
        let c = self.c;
        let mut weights = [0.0f32; 16];
        for (block, logits) in self.mask.chunks(S::LANES).enumerate() {
            // SAFETY: the block has up to LANES ≤ 16 logits; each pixel of a, b and out has c values.
            unsafe {
                let logit = load_up_to(s, logits.as_ptr(), logits.len());
                store_up_to(s, weights.as_mut_ptr(), math::logistic(s, logit), S::LANES);
                for (i, &weight) in weights[..logits.len()].iter().enumerate() {
                    let weight = s.splat(weight);
                    let start = (block * S::LANES + i) * c;
                    for at in (start..start + c).step_by(S::LANES) {
                        let n = S::LANES.min(start + c - at);
                        let (a, b) =
                            (load_up_to(s, self.a.as_ptr().add(at), n), load_up_to(s, self.b.as_ptr().add(at), n));
                        store_up_to(s, self.out.as_mut_ptr().cast::<T>().add(at), s.fma(s.sub(a, b), weight, b), n);
                    }
                }
            }
        }
    }
}
