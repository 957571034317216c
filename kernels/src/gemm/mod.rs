//! The matrix product under linear layers, attention and convolutions.
//!
//! C = A · B with B packed ([`PackedMatrix`]) and A read in place: a row of A is a few *segments*, runs of consecutive words
//! at fixed offsets from the row's start. A linear layer has one segment; a convolution has one per row of taps, which makes
//! it an implicit product without a gathered copy of its input.

#[cfg(target_arch = "x86_64")]
mod amx;
mod finish;
mod product;
mod quantise;
mod tile;

pub(crate) use finish::{Epilogue, Finish, Scales};
pub(crate) use product::{Rows, linear_product, padded_vector};
pub(crate) use quantise::QuantisedRows;
pub(crate) use tile::{Bf16Product, F32Product, Int8Product, Product, Tile, Tiles};

use std::ops::Range;

use crate::packed::{Format, LINE, PANEL, PackedMatrix, panel_width};
use crate::simd::Isa;

/// A run of consecutive words of a row of A and the steps of B it meets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    /// First word, counted from the start of the row.
    pub(crate) a: usize,
    /// First step of B.
    pub(crate) b: usize,
}

/// Rows of A. All segments are `steps` words long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left<'a> {
    /// Start of row 0; may be aligned to 2 bytes only, as bf16 rows are.
    pub(crate) words: *const u32,
    /// Words from one row to the next.
    pub(crate) row_stride: usize,
    pub(crate) segments: &'a [Segment],
    pub(crate) steps: usize,
}

/// Most values that a tile of vectors has.
const TILE_VALUES_MAX: usize = 14 * PANEL;

/// Results of one tile, before the epilogue.
#[repr(C, align(64))]
struct Scratch([f32; TILE_VALUES_MAX]);

/// Computes `rows` rows of A · B for the given panels of B and hands every tile to the epilogue.
///
/// # Safety
/// Every segment of every row must be readable, and every segment must lie within B's steps. The epilogue must accept the
/// rows `0..rows` and all columns of the panels.
#[inline(always)]
#[allow(unsafe_code, reason = "the inner loop of every model; bounds are checked once per operation")]
pub(crate) unsafe fn block<S: Tiles, P: Product, E: Epilogue>(
    s: S,
    left: &Left<'_>,
    rows: usize,
    right: &PackedMatrix,
    panels: Range<usize>,
    epilogue: &E,
) {
    // SAFETY: the same contract.
    unsafe { s.block::<P, E>(left, rows, right, panels, epilogue) }
}

/// Whether [`block`] keeps the sums of all its rows and panels in the cache, for rows of so many words, and so is best called
/// for not too many of either.
fn sums_stay_cached(isa: Isa, format: Format, words: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    return isa.has_matrix_tiles() && format != Format::F32 && amx::is_long(words);
    #[cfg(not(target_arch = "x86_64"))]
    return {
        let _ = (isa, format, words);
        false
    };
}

/// [`block`] on vectors: a panel stays in the cache while all rows pass.
///
/// # Safety
/// As [`block`].
#[inline(always)]
#[allow(unsafe_code, reason = "as above")]
unsafe fn vector_block<S: Tiles, P: Product, E: Epilogue>(
    s: S,
    left: &Left<'_>,
    rows: usize,
    right: &PackedMatrix,
    panels: Range<usize>,
    epilogue: &E,
) {
    let mut scratch = Scratch([0.0; TILE_VALUES_MAX]);
    for panel in panels {
        let width = panel_width(right.n(), panel);
        let lines = right.panel(panel);
        let mut column = 0;
        while column < width {
            let vectors = ((width - column) / S::LANES).min(S::TILE_VECTORS);
            let tiles = rows.div_ceil(S::tile_rows(vectors));
            let mut first = 0;
            for t in 0..tiles {
                // Tiles of even height, the higher ones first: a short last tile would leave the multipliers idle.
                let height = rows / tiles + usize::from(t < rows % tiles);
                let tile = Tile {
                    a: left.words.wrapping_add(first * left.row_stride),
                    a_stride: left.row_stride,
                    segments: left.segments,
                    steps: left.steps,
                    b: lines.as_ptr().cast::<u32>().wrapping_add(column),
                    b_stride: width,
                    out: scratch.0.as_mut_ptr(),
                };
                // SAFETY: rows and segments are in bounds by this function's contract; the scratch holds the largest tile.
                unsafe {
                    s.tile::<P>(height, vectors, &tile);
                    epilogue.store(s, first, height, panel * PANEL + column, vectors * S::LANES, tile.out);
                }
                first += height;
            }
            column += vectors * S::LANES;
        }
    }
}

const _: () = assert!(PANEL.is_multiple_of(LINE));
