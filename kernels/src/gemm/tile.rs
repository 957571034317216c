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

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::{Epilogue, Left, Segment, vector_block};
use crate::packed::{Format, PackedMatrix};
#[cfg(target_arch = "x86_64")]
use crate::simd::{
    Avx2,
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
}

/// An instruction set with its tile sizes.
pub(crate) trait Tiles: Simd {
    /// Most vectors per row.
    const TILE_VECTORS: usize;

    /// Rows of a tile with `vectors` vectors per row: as many as accumulators fit in registers.
    fn tile_rows(vectors: usize) -> usize;

    /// Computes one tile.
    ///
    /// # Safety
    /// All that the tile points at must be in bounds, for `rows` rows and `vectors` vectors per row.
    unsafe fn tile<P: Product>(self, rows: usize, vectors: usize, tile: &Tile<'_>);

    /// [`super::block`] on this instruction set.
    ///
    /// # Safety
    /// As [`super::block`].
    #[inline(always)]
    unsafe fn block<P: Product, E: Epilogue>(
        self,
        left: &Left<'_>,
        rows: usize,
        right: &PackedMatrix,
        panels: Range<usize>,
        epilogue: &E,
    ) {
        // SAFETY: the same contract.
        unsafe { vector_block::<Self, P, E>(self, left, rows, right, panels, epilogue) }
    }
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
    // By reference: an iterator that owns the sums would move them through memory.
    for (row, sums) in acc.iter().enumerate() {
        for (v, sum) in sums.iter().enumerate() {
            // SAFETY: the output has ROWS · VECTORS vectors.
            unsafe { s.store(tile.out.add((row * VECTORS + v) * S::LANES), *sum) };
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

/// 28 accumulators of 32 registers; 14 rows of one vector, which still hide the latency of the multipliers.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512_tiles {
    ($entry:ident) => {
        const TILE_VECTORS: usize = 2;

        fn tile_rows(_: usize) -> usize {
            14
        }

        #[inline(always)]
        unsafe fn tile<P: Product>(self, rows: usize, vectors: usize, tile: &Tile<'_>) {
            pick_tile!(
                $entry, self, rows, tile, vectors,
                1 => [1 2 3 4 5 6 7 8 9 10 11 12 13 14],
                2 => [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
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
    const TILE_VECTORS: usize = Avx512::<PLAIN>::TILE_VECTORS;

    fn tile_rows(vectors: usize) -> usize {
        Avx512::<PLAIN>::tile_rows(vectors)
    }

    #[inline(always)]
    unsafe fn tile<P: Product>(self, rows: usize, vectors: usize, tile: &Tile<'_>) {
        // SAFETY: the same contract; this tier includes the plain one.
        unsafe { self.plain().tile::<P>(rows, vectors, tile) }
    }

    #[inline(always)]
    unsafe fn block<P: Product, E: Epilogue>(
        self,
        left: &Left<'_>,
        rows: usize,
        right: &PackedMatrix,
        panels: Range<usize>,
        epilogue: &E,
    ) {
        // SAFETY: the same contract; `self` proves that the instructions are available.
        unsafe {
            match P::FORMAT {
                Format::F32 => vector_block::<Self, P, E>(self, left, rows, right, panels, epilogue),
                Format::Bf16 | Format::Int8 => amx::block::<P, E>(self, left, rows, right, panels, epilogue),
            }
        }
    }
}

/// 12 accumulators of 16 registers.
#[cfg(target_arch = "x86_64")]
impl Tiles for Avx2 {
    const TILE_VECTORS: usize = 2;

    fn tile_rows(_: usize) -> usize {
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

    fn tile_rows(_: usize) -> usize {
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
