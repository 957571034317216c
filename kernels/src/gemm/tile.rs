//! Register tiles: the innermost loop.
//!
//! | | |
//! |---|---|
//! | meaning | out`[r]``[c]` = Σ over segments, steps: dot(A word, B word) |
//! | inputs | A: `rows` rows of words (f32, pairs of bf16, fours of int8) at any alignment; B: a packed panel, `b_stride` words per step |
//! | output | f32, or i32 as bits for int8, [rows, vectors · LANES], dense, written once |
//! | preconditions | rows ≤ `tile_rows(vectors)`, vectors ≤ `TILE_VECTORS` |
//! | reference | `linear::reference`; relative RMSE ≤ 1e-5 (f32: order of summation), ≤ 1e-2 (bf16: rounded results), exact (int8) |
//! | bound by | arithmetic: 2·rows·columns·k FLOP over 4·(rows + columns) bytes per step |
//! | benchmark | `linear` |
#![allow(unsafe_code, reason = "the innermost loop reads through raw pointers")]

use std::cell::Cell;

use super::Segment;
use crate::packed::Format;
#[cfg(target_arch = "x86_64")]
use crate::simd::{
    Avx2, amx,
    avx512::{AMX, Avx512, BF16, PLAIN},
};
use crate::simd::{Portable, Simd};

/// How two words are multiplied.
pub(crate) trait Product: Copy {
    const FORMAT: Format;
    fn dot<S: Simd>(s: S, acc: S::F, a: S::W, b: S::W) -> S::F;
}

/// Words are f32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct F32Product;

/// Words are pairs of bf16; sums are f32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bf16Product;

/// Words are four bytes, those of A unsigned; sums are i32, as bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int8Product;

impl Product for F32Product {
    const FORMAT: Format = Format::F32;

    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::F, a: S::W, b: S::W) -> S::F {
        s.dot_f32(acc, a, b)
    }
}

impl Product for Bf16Product {
    const FORMAT: Format = Format::Bf16;

    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::F, a: S::W, b: S::W) -> S::F {
        s.dot_bf16(acc, a, b)
    }
}

impl Product for Int8Product {
    const FORMAT: Format = Format::Int8;

    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::F, a: S::W, b: S::W) -> S::F {
        s.dot_int8(acc, a, b)
    }
}

/// Where a tile reads and writes.
pub(crate) struct Tile<'a> {
    pub(crate) a: *const u32,
    pub(crate) a_stride: usize,
    pub(crate) segments: &'a [Segment],
    pub(crate) steps: usize,
    pub(crate) b: *const u32,
    pub(crate) b_stride: usize,
    pub(crate) out: *mut f32,
    /// Height that matrix tiles were last configured for in this block; 0 before the first.
    pub(crate) shape: &'a Cell<usize>,
}

/// An instruction set with its tile sizes.
pub(crate) trait Tiles: Simd {
    /// Most vectors per row.
    const TILE_VECTORS: usize;

    /// Rows of a tile with `vectors` vectors per row: as many as accumulators fit in registers.
    fn tile_rows<P: Product>(vectors: usize) -> usize;

    /// Most vectors per row with this product.
    fn tile_vectors<P: Product>() -> usize {
        Self::TILE_VECTORS
    }

    /// Computes one tile.
    ///
    /// # Safety
    /// All that the tile points at must be in bounds, for `rows` rows and `vectors` vectors per row.
    unsafe fn tile<P: Product>(self, rows: usize, vectors: usize, tile: &Tile<'_>);
}

/// The tile of ROWS rows and VECTORS vectors.
///
/// # Safety
/// As [`Tiles::tile`].
#[inline(always)]
unsafe fn accumulate<S: Simd, P: Product, const ROWS: usize, const VECTORS: usize>(s: S, tile: &Tile<'_>) {
    let mut acc = [[s.splat(0.0); VECTORS]; ROWS];
    for segment in tile.segments {
        let a = tile.a.wrapping_add(segment.a);
        let mut b = tile.b.wrapping_add(segment.b * tile.b_stride);
        for step in 0..tile.steps {
            // SAFETY: the step lies within the panel, and the panel has VECTORS vectors from here on.
            let columns: [S::W; VECTORS] = std::array::from_fn(|v| unsafe { s.load_words(b.add(v * S::LANES)) });
            b = b.wrapping_add(tile.b_stride);
            for (row, sums) in acc.iter_mut().enumerate() {
                // SAFETY: the word lies within the row's segment.
                let word = s.splat_word(unsafe { a.add(row * tile.a_stride + step).read_unaligned() });
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = P::dot(s, *sum, word, column);
                }
            }
        }
    }
    for (row, sums) in acc.into_iter().enumerate() {
        for (v, sum) in sums.into_iter().enumerate() {
            // SAFETY: the output has ROWS · VECTORS vectors.
            unsafe { s.store(tile.out.add((row * VECTORS + v) * S::LANES), sum) };
        }
    }
}

/// Picks the tile function for the counts known at run time.
macro_rules! pick_tile {
    ($entry:ident, $s:expr, $rows:expr, $tile:expr, $vectors:expr, $($v:literal => [$($r:literal)+]),+) => {
        match ($vectors, $rows) {
            // SAFETY: the caller's contract is that of the tile.
            $($(($v, $r) => unsafe { $entry::<P, $r, $v>($s, $tile) },)+)+
            _ => unreachable!("no tile of {} rows and {} vectors", $rows, $vectors),
        }
    };
}

/// 24 accumulators of 32 registers; 12 rows of one vector, which still hide the latency of the multipliers.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512_tiles {
    ($entry:ident) => {
        const TILE_VECTORS: usize = 4;

        fn tile_rows<P: Product>(vectors: usize) -> usize {
            [12, 12, 8, 6][vectors - 1]
        }

        #[inline(always)]
        unsafe fn tile<P: Product>(self, rows: usize, vectors: usize, tile: &Tile<'_>) {
            pick_tile!(
                $entry, self, rows, tile, vectors,
                1 => [1 2 3 4 5 6 7 8 9 10 11 12],
                2 => [1 2 3 4 5 6 7 8 9 10 11 12],
                3 => [1 2 3 4 5 6 7 8],
                4 => [1 2 3 4 5 6]
            );
        }
    };
}

#[cfg(target_arch = "x86_64")]
impl Tiles for Avx512<BF16> {
    avx512_tiles!(avx512_bf16_tile);
}

#[cfg(target_arch = "x86_64")]
impl Tiles for Avx512<PLAIN> {
    avx512_tiles!(avx512_tile);
}

/// bf16 and int8 on matrix tiles, f32 as on the other tiers.
#[cfg(target_arch = "x86_64")]
impl Tiles for Avx512<AMX> {
    const TILE_VECTORS: usize = 4;

    fn tile_rows<P: Product>(vectors: usize) -> usize {
        if is_f32::<P>() { Avx512::<PLAIN>::tile_rows::<P>(vectors) } else { 2 * amx::TILE }
    }

    fn tile_vectors<P: Product>() -> usize {
        if is_f32::<P>() { Self::TILE_VECTORS } else { 2 }
    }

    #[inline(always)]
    unsafe fn tile<P: Product>(self, rows: usize, vectors: usize, tile: &Tile<'_>) {
        // SAFETY: the same contract; `self` proves that the instructions are available, and this tier includes the plain one.
        unsafe {
            match (is_f32::<P>(), vectors, rows > amx::TILE) {
                (true, ..) => self.plain().tile::<P>(rows, vectors, tile),
                (false, 1, false) => amx_tile::<P, 1, 1>(self, rows, tile),
                (false, 1, true) => amx_tile::<P, 2, 1>(self, rows, tile),
                (false, _, false) => amx_tile::<P, 1, 2>(self, rows, tile),
                (false, _, true) => amx_tile::<P, 2, 2>(self, rows, tile),
            }
        }
    }
}

/// The format that matrix tiles do not multiply.
#[cfg(target_arch = "x86_64")]
fn is_f32<P: Product>() -> bool {
    P::FORMAT == Format::F32
}

/// 12 accumulators of 16 registers.
#[cfg(target_arch = "x86_64")]
impl Tiles for Avx2 {
    const TILE_VECTORS: usize = 2;

    fn tile_rows<P: Product>(_: usize) -> usize {
        6
    }

    #[inline(always)]
    unsafe fn tile<P: Product>(self, rows: usize, vectors: usize, tile: &Tile<'_>) {
        pick_tile!(avx2_tile, self, rows, tile, vectors, 2 => [1 2 3 4 5 6]);
    }
}

/// Two rows of sixteen columns: 8 accumulators of the 16 registers of SSE2, 8 of the 32 of NEON.
impl Tiles for Portable {
    const TILE_VECTORS: usize = 2;

    fn tile_rows<P: Product>(_: usize) -> usize {
        2
    }

    #[inline(always)]
    unsafe fn tile<P: Product>(self, rows: usize, vectors: usize, tile: &Tile<'_>) {
        pick_tile!(portable_tile, self, rows, tile, vectors, 2 => [1 2]);
    }
}

// One function per instruction set and tile size; each is a call of its own, so that they are compiled once.

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
unsafe fn avx512_bf16_tile<P: Product, const ROWS: usize, const VECTORS: usize>(s: Avx512<BF16>, tile: &Tile<'_>) {
    // SAFETY: the same contract.
    unsafe { accumulate::<_, P, ROWS, VECTORS>(s, tile) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn avx512_tile<P: Product, const ROWS: usize, const VECTORS: usize>(s: Avx512<PLAIN>, tile: &Tile<'_>) {
    // SAFETY: the same contract.
    unsafe { accumulate::<_, P, ROWS, VECTORS>(s, tile) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_tile<P: Product, const ROWS: usize, const VECTORS: usize>(s: Avx2, tile: &Tile<'_>) {
    // SAFETY: the same contract.
    unsafe { accumulate::<_, P, ROWS, VECTORS>(s, tile) }
}

unsafe fn portable_tile<P: Product, const ROWS: usize, const VECTORS: usize>(s: Portable, tile: &Tile<'_>) {
    // SAFETY: the same contract.
    unsafe { accumulate::<_, P, ROWS, VECTORS>(s, tile) }
}

/// DOWN·16 rows (or fewer in the last 16) by ACROSS·16 columns, in matrix tiles: sums 0–3, rows of A in 4 and 5, columns of
/// B in 6 and 7.
///
/// Two by two, because every loaded tile is then used twice and 32 columns of B stay in the first-level cache.
///
/// # Safety
/// As [`Tiles::tile`], with rows in (DOWN − 1)·16 + 1..=DOWN·16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
unsafe fn amx_tile<P: Product, const DOWN: usize, const ACROSS: usize>(s: Avx512<AMX>, rows: usize, tile: &Tile<'_>) {
    const STEPS: usize = amx::TILE;
    let (whole, tail) = (tile.steps / STEPS, tile.steps % STEPS);
    let lower = STEPS * tile.a_stride;
    // SAFETY: whole blocks of 16 steps lie within the segments. The block of the tail is read from a copy on the side of A,
    // padded with zeros; B may be read past the segment, where it is followed by at least 15 steps of other values.
    unsafe {
        if tile.shape.replace(rows) == rows {
            amx::zero();
        } else {
            amx::configure(rows);
        }
        for segment in tile.segments {
            let mut a = tile.a.wrapping_add(segment.a);
            let mut b = tile.b.wrapping_add(segment.b * tile.b_stride);
            for _ in 0..whole {
                amx_step::<P, DOWN, ACROSS>(a, lower, tile.a_stride, b, tile.b_stride);
                a = a.wrapping_add(STEPS);
                b = b.wrapping_add(STEPS * tile.b_stride);
            }
            if tail > 0 {
                let mut copy = [0.0f32; 2 * STEPS * STEPS];
                for (row, to) in copy.chunks_exact_mut(STEPS).take(rows).enumerate() {
                    let words = s.load_first(a.wrapping_add(row * tile.a_stride).cast(), tail);
                    s.store(to.as_mut_ptr(), words);
                }
                amx_step::<P, DOWN, ACROSS>(copy.as_ptr().cast(), STEPS * STEPS, STEPS, b, tile.b_stride);
            }
        }
        let stride = ACROSS * STEPS;
        amx::store::<0>(tile.out, stride);
        if ACROSS > 1 {
            amx::store::<1>(tile.out.wrapping_add(STEPS), stride);
        }
        if DOWN > 1 {
            amx::store::<2>(tile.out.wrapping_add(STEPS * stride), stride);
        }
        if DOWN > 1 && ACROSS > 1 {
            amx::store::<3>(tile.out.wrapping_add(STEPS * stride + STEPS), stride);
        }
    }
}

/// 16 steps of k: loads the tiles of A (the second one `lower` words after the first) and B, and multiplies all pairs.
///
/// # Safety
/// The tiles must be configured and readable.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn amx_step<P: Product, const DOWN: usize, const ACROSS: usize>(
    a: *const u32,
    lower: usize,
    a_stride: usize,
    b: *const u32,
    b_stride: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        amx::load::<6>(b, b_stride);
        amx::load::<4>(a, a_stride);
        amx_dot::<P, 0, 4, 6>();
        if ACROSS > 1 {
            amx::load::<7>(b.wrapping_add(amx::TILE), b_stride);
            amx_dot::<P, 1, 4, 7>();
        }
        if DOWN > 1 {
            amx::load::<5>(a.wrapping_add(lower), a_stride);
            amx_dot::<P, 2, 5, 6>();
        }
        if DOWN > 1 && ACROSS > 1 {
            amx_dot::<P, 3, 5, 7>();
        }
    }
}

/// # Safety
/// The tiles must be configured.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn amx_dot<P: Product, const C: u8, const A: u8, const B: u8>() {
    // SAFETY: the caller's contract.
    unsafe {
        match P::FORMAT {
            Format::Int8 => amx::dot_int8::<C, A, B>(),
            _ => amx::dot_bf16::<C, A, B>(),
        }
    }
}
