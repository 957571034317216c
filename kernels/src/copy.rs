//! Copies of a few channels of many pixels, where a call per pixel would cost more than the copy.

#![allow(unsafe_code, reason = "the output is not cleared before it is written")]

use std::mem::MaybeUninit;

use crate::buffer::Buffer;
use crate::parallel;

/// Columns `start..start + count` of a matrix of `width` columns.
pub(crate) struct Part<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) width: usize,
    pub(crate) start: usize,
    pub(crate) count: usize,
}

/// A matrix of `rows` rows, each the same row of all parts side by side.
pub(crate) fn join_rows<T: Copy + Send + Sync>(rows: usize, parts: &[Part<'_, T>]) -> Buffer<T> {
    let row = parts.iter().map(|p| p.count).sum::<usize>();
    if row == 0 {
        return Buffer::with_capacity(0);
    }
    let per_piece = parallel::rows_per_piece(row);
    // SAFETY: the parts' columns are the columns of a row, and each part writes its own in all rows.
    unsafe {
        parallel::collect_pieces(rows * row, per_piece * row, rows * row, |piece, out| {
            let mut at = 0;
            for part in parts.iter().filter(|part| part.count > 0) {
                let rows = out.len() / row;
                let from = &part.values[piece * per_piece * part.width..][..rows * part.width];
                copy_columns(as_uninit(from), part.width, part.start, out, row, at, part.count);
                at += part.count;
            }
        })
    }
}

fn as_uninit<T: Copy>(values: &[T]) -> &[MaybeUninit<T>] {
    // SAFETY: the layout is the same, and a value that is written may be read as one that need not be.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// Copies `count` columns from column `start` of one matrix to column `at` of another with as many rows.
fn copy_columns<T: Copy>(from: &[T], width: usize, start: usize, to: &mut [T], row: usize, at: usize, count: usize) {
    // Copies of a length known to the compiler are single moves; longer ones are worth a call.
    macro_rules! by_count {
        ($($n:literal)+) => {
            match count {
                $($n => copy_fixed::<T, $n>(from, width, start, to, row, at),)+
                _ => {
                    for (from, to) in from.chunks_exact(width).zip(to.chunks_exact_mut(row)) {
                        to[at..at + count].copy_from_slice(&from[start..start + count]);
                    }
                }
            }
        };
    }
    by_count!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
}

fn copy_fixed<T: Copy, const N: usize>(from: &[T], width: usize, start: usize, to: &mut [T], row: usize, at: usize) {
    for (from, to) in from.chunks_exact(width).zip(to.chunks_exact_mut(row)) {
        if let (Some(from), Some(to)) = (from[start..].first_chunk::<N>(), to[at..].first_chunk_mut::<N>()) {
            *to = *from;
        }
    }
}
