//! Shortcuts around a change of a clip's size: what a block adds to its result when frames, pixels and channels differ.
//!
//! | | |
//! |---|---|
//! | meaning | averaged: y + means of neighbouring values of x; repeated: y + values of x, each several times |
//! | inputs | clips [f, h, w, c] of one dtype, channels last; the factors of time and of each side |
//! | outputs | a clip like y, a new buffer |
//! | preconditions | the sizes of x and y fit the factors and the channels divide, or an error is returned |
//! | reference | itself: sums of a few values each, plain code |
//! | bound by | memory |
#![allow(unsafe_code, reason = "the output is not cleared before it is written")]

use half::bf16;

use super::{clip_shape, cuda};
use crate::cuda::device_of;
use crate::error::{Result, shape_error};
use crate::parallel;
use crate::simd::Element;
use crate::tensor::{Dtype, Tensor};

/// How a clip's length and sides change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeFactors {
    /// Frames per frame.
    pub time: usize,
    /// Pixels per pixel, each way.
    pub side: usize,
}

impl SizeFactors {
    /// Positions that meet in one, or that one becomes.
    fn volume(self) -> usize {
        self.time * self.side * self.side
    }

    /// Frame, row and column of position `phase`: the order (time, row, column).
    fn position(self, phase: usize) -> [usize; 3] {
        let area = self.side * self.side;
        [phase / area, phase / self.side % self.side, phase % self.side]
    }
}

/// `y + average(x)`: x [f, h, w, cin] → [⌈f / time⌉, h / side, w / side, cout], the shape of y.
///
/// The cin · time · side² values that meet in one pixel, in the order (channel, time, row, column), are averaged in cout
/// groups. Frames that are missing at the front of x count as zeros.
pub fn add_averaged(y: &Tensor, x: &Tensor, factors: SizeFactors) -> Result<Tensor> {
    const OP: &str = "add_averaged";
    let (from, to) = (clip_shape(OP, x)?, clip_shape(OP, y)?);
    let SizeFactors { time, side } = factors;
    let fits = factors.volume() > 0
        && to[..3] == [from[0].div_ceil(time), from[1] / side, from[2] / side]
        && from[1].is_multiple_of(side)
        && from[2].is_multiple_of(side)
        && (from[3] * factors.volume()).is_multiple_of(to[3]);
    if !fits {
        return shape_error(OP, format!("{:?} does not average to {:?} with {factors:?}", x.shape(), y.shape()));
    }
    let device = device_of(OP, &[y, x])?;
    let x = x.to_dtype(y.dtype());
    if let Some(device) = device {
        let missing = from[0].next_multiple_of(time) - from[0];
        return cuda::add_averaged(&device, y, &x, from, to, factors, missing);
    }
    match y.dtype() {
        Dtype::F32 => averaged_as(y, &x, from, to, factors, |v: f32| v),
        Dtype::Bf16 => averaged_as(y, &x, from, to, factors, bf16::from_f32),
    }
}

/// `y + repeat(x)`: x [f, h, w, cin] → [f · time − d, h · side, w · side, cout], the shape of y, where the first d < time
/// frames of the result are left out.
///
/// Each value is repeated cout · time · side² / cin times along the channels, which are then taken apart in the order
/// (channel, time, row, column).
pub fn add_repeated(y: &Tensor, x: &Tensor, factors: SizeFactors) -> Result<Tensor> {
    const OP: &str = "add_repeated";
    let (from, to) = (clip_shape(OP, x)?, clip_shape(OP, y)?);
    let SizeFactors { time, side } = factors;
    let fits = factors.volume() > 0
        && to[0].div_ceil(time) == from[0]
        && to[1..3] == [from[1] * side, from[2] * side]
        && (to[3] * factors.volume()).is_multiple_of(from[3]);
    if !fits {
        return shape_error(OP, format!("{:?} does not repeat to {:?} with {factors:?}", x.shape(), y.shape()));
    }
    let device = device_of(OP, &[y, x])?;
    let x = x.to_dtype(y.dtype());
    if let Some(device) = device {
        return cuda::add_repeated(&device, y, &x, from, to, factors, from[0] * time - to[0]);
    }
    match y.dtype() {
        Dtype::F32 => repeated_as(y, &x, from, to, factors, |v: f32| v),
        Dtype::Bf16 => repeated_as(y, &x, from, to, factors, bf16::from_f32),
    }
}

fn averaged_as<T: Element + Into<f32>>(
    y: &Tensor,
    x: &Tensor,
    [f, h, w, cin]: [usize; 4],
    [_, to_h, _, cout]: [usize; 4],
    factors: SizeFactors,
    round: impl Fn(f32) -> T + Sync + Send,
) -> Result<Tensor> {
    let SizeFactors { time, side } = factors;
    let (volume, missing) = (factors.volume(), f.next_multiple_of(time) - f);
    let group = cin * volume / cout;
    // Offsets into x of the values of each group, from the pixel that frame `missing`, row 0 and column 0 name.
    let taps = |first_frame: bool| -> Vec<Vec<usize>> {
        let skipped = if first_frame { missing } else { 0 };
        let offset = |k: usize| {
            let [t, dy, dx] = factors.position(k % volume);
            Some((((t.checked_sub(skipped)?) * h + dy) * w + dx) * cin + k / volume)
        };
        (0..cout).map(|o| (o * group..(o + 1) * group).filter_map(offset).collect()).collect()
    };
    let (first, later) = (taps(true), taps(false));
    add_rows(y, x, |x: &[T], row, y, out| {
        let (frame, line) = (row / to_h, row % to_h);
        let (taps, start) = if frame == 0 { (&first, 0) } else { (&later, frame * time - missing) };
        let x = &x[(start * h + line * side) * w * cin..];
        for (i, (y, out)) in y.chunks_exact(cout).zip(out.chunks_exact_mut(cout)).enumerate() {
            let x = &x[i * side * cin..];
            for ((&y, out), taps) in y.iter().zip(out).zip(taps) {
                let sum: f32 = taps.iter().map(|&tap| -> f32 { x[tap].into() }).sum();
                out.write(round(y.into() + sum / group as f32));
            }
        }
    })
}

fn repeated_as<T: Element + Into<f32>>(
    y: &Tensor,
    x: &Tensor,
    [f, h, w, cin]: [usize; 4],
    [to_f, to_h, _, cout]: [usize; 4],
    factors: SizeFactors,
    round: impl Fn(f32) -> T + Sync + Send,
) -> Result<Tensor> {
    let SizeFactors { time, side } = factors;
    let volume = factors.volume();
    let repeats = cout * volume / cin;
    let channels = |phase: usize| -> Vec<usize> { (0..cout).map(|o| (o * volume + phase) / repeats).collect() };
    let channels: Vec<Vec<usize>> = (0..volume).map(channels).collect();
    let dropped = f * time - to_f;
    add_rows(y, x, |x: &[T], row, y, out| {
        let (frame, line) = (row / to_h + dropped, row % to_h);
        let x = &x[(frame / time * h + line / side) * w * cin..][..w * cin];
        let phase = (frame % time * side + line % side) * side;
        for (i, (y, out)) in y.chunks_exact(cout).zip(out.chunks_exact_mut(cout)).enumerate() {
            let x = &x[i / side * cin..][..cin];
            for ((&y, out), &channel) in y.iter().zip(out).zip(&channels[phase + i % side]) {
                out.write(round(y.into() + x[channel].into()));
            }
        }
    })
}

/// A tensor like y whose rows are made by `make(x, row index, y's row, row)`, which must write all of the row.
fn add_rows<T: Element>(
    y: &Tensor,
    x: &Tensor,
    make: impl Fn(&[T], usize, &[T], &mut [std::mem::MaybeUninit<T>]) + Sync + Send,
) -> Result<Tensor> {
    let (Some(x), Some(values)) = (T::slice(x), T::slice(y)) else {
        return shape_error("shortcut", "the tensors differ in dtype");
    };
    let row: usize = y.shape()[y.shape().len() - 2..].iter().product();
    let per_piece = parallel::rows_per_piece(row) * row;
    // SAFETY: every row is written by `make`, as its contract says.
    let out = unsafe {
        parallel::collect_pieces(values.len(), per_piece, values.len(), |piece, out| {
            let first = piece * per_piece;
            for (i, out) in out.chunks_exact_mut(row).enumerate() {
                let at = first + i * row;
                make(x, at / row, &values[at..at + row], out);
            }
        })
    };
    Ok(T::tensor(out, y.shape()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOUBLE: SizeFactors = SizeFactors { time: 2, side: 2 };

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_f32(values, shape).unwrap()
    }

    #[test]
    fn averages_take_neighbours_in_time_and_space_and_zeros_before_the_first_frame() {
        let x = tensor(&(1..=24).map(|i| i as f32).collect::<Vec<_>>(), &[3, 2, 2, 2]);
        // Frame 0 meets zeros, frames 1 and 2 meet each other.
        let y = add_averaged(&tensor(&[100.0, 0.0, 0.0, 0.0], &[2, 1, 1, 2]), &x, DOUBLE).unwrap();
        assert_eq!(y.to_vec_f32(), vec![102.0, 2.5, 16.0, 17.0]);
        // Twice the channels: each mean is over one frame.
        let y = add_averaged(&Tensor::zeros(&[2, 1, 1, 4], Dtype::Bf16).unwrap(), &x, DOUBLE).unwrap();
        assert_eq!(y.to_vec_f32(), vec![0.0, 4.0, 0.0, 5.0, 12.0, 20.0, 13.0, 21.0]);
    }

    #[test]
    fn repeats_fill_the_larger_clip_and_may_leave_the_first_frames_out() {
        let x = tensor(&[1.0, 2.0], &[1, 1, 1, 2]);
        let y = add_repeated(&Tensor::zeros(&[2, 2, 2, 1], Dtype::F32).unwrap(), &x, DOUBLE).unwrap();
        assert_eq!(y.to_vec_f32(), vec![1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
        let y = add_repeated(&tensor(&[10.0; 4], &[1, 2, 2, 1]), &x, DOUBLE).unwrap();
        assert_eq!(y.to_vec_f32(), vec![12.0; 4]);
        let x = tensor(&[1.0, 2.0, 3.0, 4.0], &[1, 1, 1, 4]);
        let picture = SizeFactors { time: 1, side: 2 };
        let y = add_repeated(&Tensor::zeros(&[1, 2, 2, 2], Dtype::F32).unwrap(), &x, picture).unwrap();
        assert_eq!(y.to_vec_f32(), vec![1.0, 3.0, 1.0, 3.0, 2.0, 4.0, 2.0, 4.0]);
    }

    #[test]
    fn sizes_that_do_not_fit_the_factors_are_refused() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, Dtype::F32).unwrap();
        assert!(add_averaged(&zeros(&[1, 1, 1, 2]), &zeros(&[1, 3, 2, 2]), DOUBLE).is_err());
        assert!(add_averaged(&zeros(&[1, 1, 1, 3]), &zeros(&[1, 2, 2, 2]), DOUBLE).is_err());
        assert!(add_repeated(&zeros(&[3, 2, 2, 1]), &zeros(&[1, 1, 1, 2]), DOUBLE).is_err());
        assert!(add_repeated(&zeros(&[2, 2, 2, 1]), &zeros(&[1, 1, 1, 3]), DOUBLE).is_err());
        assert!(add_repeated(&zeros(&[2, 2, 2, 1]), &zeros(&[1, 1, 1, 3]), SizeFactors { time: 0, side: 2 }).is_err());
    }
}
