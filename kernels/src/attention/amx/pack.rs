//! Queries, keys and values in the order of matrix tiles.
#![allow(unsafe_code, reason = "registers are stored to lines; rows are read under masks")]

use std::arch::x86_64::*;

use half::bf16;

use super::{AttentionShape, KEYS, TILE, first, steps};
use crate::buffer::Buffer;
use crate::packed::{LINE, Line};

/// Keys and values of one head in the order of matrix tiles.
pub(super) struct Head {
    /// [unit, step, half, 16 pairs of dimensions] lines of 16 keys.
    pub(super) keys: Buffer<Line>,
    /// [unit, step, half, 16 pairs of keys] lines of 16 dimensions; a pair is keys i and 16 + i.
    pub(super) values: Buffer<Line>,
    /// The largest ‖k‖; not finite when any key is not.
    pub(super) longest_key: f32,
}

impl Head {
    /// # Safety
    /// AVX-512 BW and BF16 must be available.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub(super) unsafe fn pack(k: &[bf16], v: &[bf16], at: usize, shape: AttentionShape) -> Self {
        let (units, steps) = (shape.visible.div_ceil(KEYS), steps(shape));
        let lines = units * steps * 2 * TILE;
        let (mut keys, mut values) = (Buffer::with_capacity(lines), Buffer::with_capacity(lines));
        let (key_lines, value_lines) = (keys.spare_capacity_mut(), values.spare_capacity_mut());
        let (mut longest, mut sum) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        for unit in 0..units {
            let mut squares = [_mm512_setzero_ps(); 2];
            for step in 0..steps {
                let at_step = (unit * steps + step) * 2 * TILE;
                for (half, squares) in squares.iter_mut().enumerate() {
                    let mut rows = [_mm512_setzero_si512(); TILE];
                    for (i, row) in rows.iter_mut().enumerate() {
                        *row = read(k, shape, at, unit * KEYS + half * TILE + i, step);
                    }
                    for (i, column) in transpose(rows).into_iter().enumerate() {
                        *squares = add_squares(*squares, column);
                        key_lines[at_step + half * TILE + i].write(line(column));
                    }
                }
                for i in 0..TILE {
                    let row = unit * KEYS + i;
                    let pairs = join(read(v, shape, at, row, step), read(v, shape, at, row + TILE, step));
                    value_lines[at_step + i].write(line(pairs.0));
                    value_lines[at_step + TILE + i].write(line(pairs.1));
                }
            }
            longest = _mm512_max_ps(longest, _mm512_max_ps(squares[0], squares[1]));
            sum = _mm512_add_ps(sum, _mm512_add_ps(squares[0], squares[1]));
        }
        // SAFETY: every unit and step has written its lines.
        unsafe {
            keys.set_len(lines);
            values.set_len(lines);
        }
        // A maximum may pass over what is not a number; a sum does not.
        let is_finite = _mm512_reduce_add_ps(sum).is_finite();
        let longest_key = if is_finite { _mm512_reduce_max_ps(longest).sqrt() } else { f32::NAN };
        Self { keys, values, longest_key }
    }
}

/// Dimensions 32·step.. of a row's head, zeros past its end and past the last row.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn read(x: &[bf16], shape: AttentionShape, at: usize, row: usize, step: usize) -> __m512i {
    let width = shape.heads * shape.head_dim;
    let start = step * KEYS;
    if row >= shape.visible.min(x.len() / width) {
        return _mm512_setzero_si512();
    }
    let values = &x[row * width + at + start..row * width + at + shape.head_dim.min(start + KEYS)];
    // SAFETY: masked lanes are not touched.
    unsafe { _mm512_maskz_loadu_epi16(first(values.len()), values.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn line(words: __m512i) -> Line {
    let mut line = Line([0; LINE]);
    // SAFETY: a line has the size and alignment of the register.
    unsafe { _mm512_store_si512((&raw mut line).cast(), words) };
    line
}

/// sums + the squares of both halves of every word.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn add_squares(sums: __m512, words: __m512i) -> __m512 {
    let low = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words));
    let high = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32.cast_signed())));
    _mm512_fmadd_ps(high, high, _mm512_fmadd_ps(low, low, sums))
}

/// Two rows of 32 values as words of one value each, the first row in the low halves: dimensions 0–15, then 16–31.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn join(a: __m512i, b: __m512i) -> (__m512i, __m512i) {
    // Within lanes of 128 bits `unpack` gives dimensions 0–3 | 8–11 | … and 4–7 | 12–15 | …: the lanes are then put in order.
    let (low, high) = (_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b));
    let upper = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
    let lower = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
    (_mm512_permutex2var_epi64(low, upper, high), _mm512_permutex2var_epi64(low, lower, high))
}

/// Word j of row i becomes word i of row j.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(rows: [__m512i; TILE]) -> [__m512i; TILE] {
    let mut a = rows;
    let mut b = rows;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for i in 0..4 {
        for j in 0..2 {
            b[4 * i + 2 * j] = _mm512_unpacklo_epi64(a[4 * i + j], a[4 * i + 2 + j]);
            b[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a[4 * i + j], a[4 * i + 2 + j]);
        }
    }
    // b[4i + j]: in lane l of 128 bits, word 4l + j of rows 4i..4i + 4.
    for j in 0..4 {
        let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(b[j], b[4 + j]);
        let odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(b[j], b[4 + j]);
        let even_high = _mm512_shuffle_i32x4::<0b10_00_10_00>(b[8 + j], b[12 + j]);
        let odd_high = _mm512_shuffle_i32x4::<0b11_01_11_01>(b[8 + j], b[12 + j]);
        a[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even, even_high);
        a[8 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even, even_high);
        a[4 + j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd, odd_high);
        a[12 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd, odd_high);
    }
    a
}
