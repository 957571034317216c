//! Products of bf16 and int8 on matrix tiles.
//!
//! | | |
//! |---|---|
//! | meaning | [`super::block`]: tiles of 32 rows by 32 columns of A · B, each handed to the epilogue once it is complete |
//! | inputs | A: rows of words at any alignment (best on whole cache lines); B: packed panels |
//! | output | f32 sums, or i32 as bits for int8, in a scratch of rows of one panel |
//! | preconditions | those of [`super::block`]; AMX is available |
//! | reference | `linear::reference`; relative RMSE ≤ 1e-2 (bf16: rounded results), exact (int8) |
//! | bound by | the tile multiplier (16 cycles per 16 · 16 words of 16 columns), if the first-level cache can be kept fed |
//! | benchmark | `linear` |
//!
//! What keeps the multiplier busy:
//! - Four sums from two tiles of rows and two of columns: every loaded tile is used twice, which is all that 8 tiles allow.
//! - The 32 rows of A stay in the first-level cache while B streams past it from the second level, with loads that do not
//!   enter the first. Long rows are cut into parts that fit; the sums of all panels then wait in the scratch between parts.
//! - Of still longer rows not enough of B would fit in the second level to be used again. There it is the sums that stay, and
//!   a part of every row and panel is multiplied before the next part.
//! - The sums of a tile are stored between the first multiplications of the next one, which replace them one by one: to
//!   store all four first would leave the multiplier idle for as long as three steps.
//! - The epilogue of a tile runs a few rows at a time between the later steps of the next one, on the vector units.
//! - The next rows of A are fetched into the second level meanwhile.
#![allow(unsafe_code, reason = "the innermost loop reads through raw pointers")]

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Epilogue, Left, Product, Segment};
use crate::buffer::Buffer;
use crate::packed::{Format, LINE, PANEL, PackedMatrix, panel_width};
use crate::simd::avx512::{AMX, Avx512};
use crate::simd::{Simd, amx};

/// Rows of a tile of sums: two matrix tiles.
const ROWS: usize = 2 * amx::TILE;
/// Words of k in a step.
const STEP: usize = amx::TILE;
/// Most words of a row in a part: 32 rows of them leave a third of the first-level cache to everything else.
const PART_WORDS_MAX: usize = 256;
/// Panels whose sums wait in the scratch between parts.
const GROUP: usize = 12;
/// Words of a row from which on its sums, not B, stay in the second-level cache: fewer panels of more words than [`GROUP`]
/// would fit.
const LONG_WORDS: usize = 1024;
/// Values in a panel's place in the scratch; the extra lines keep neighbours from having the same low address bits, which
/// the processor takes for a dependency between a store and the next load.
const PLACE: usize = ROWS * PANEL + 4 * LINE;

/// Fewest rows that the epilogue is called for.
const PACE_MIN: usize = 8;

#[repr(C, align(64))]
struct Scratch([MaybeUninit<f32>; GROUP * PLACE]);

/// A tile of sums: where it is in the result and in the scratch. Words only: the stores of a tile are still on their way
/// when this is copied, and a load of what was stored in other pieces would wait for all of them.
#[derive(Clone, Copy)]
struct Sums {
    row: usize,
    /// 0 when there is no tile.
    rows: usize,
    /// 0 when a further part will add to it, else as `rows`.
    complete_rows: usize,
    column: usize,
    /// 16 or 32.
    columns: usize,
    place: *mut f32,
}

const NONE: Sums = Sums { row: 0, rows: 0, complete_rows: 0, column: 0, columns: 0, place: std::ptr::null_mut() };

/// What is under way besides the multiplications.
struct Pipeline<'a, E> {
    s: Avx512<AMX>,
    epilogue: &'a E,
    /// Sums that are still in tiles.
    in_tiles: Sums,
    /// Complete sums in the scratch: the rows that have not been through the epilogue.
    in_scratch: Sums,
    /// Rows for the epilogue per step.
    pace: usize,
    ahead: Ahead,
}

/// Rows of A that are fetched before they are needed.
#[derive(Clone, Copy)]
struct Ahead {
    row: *const u32,
    row_stride: usize,
    /// The next line of the row, and their number.
    line: usize,
    lines: usize,
    per_step: usize,
}

/// # Safety
/// As [`super::block`], with AMX.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
pub(super) unsafe fn block<P: Product, E: Epilogue>(
    s: Avx512<AMX>,
    left: &Left<'_>,
    rows: usize,
    right: &PackedMatrix,
    panels: Range<usize>,
    epilogue: &E,
) {
    let ahead = Ahead { row: left.words, row_stride: left.row_stride, line: 0, lines: 1, per_step: 0 };
    let pipeline = Pipeline { s, epilogue, in_tiles: NONE, in_scratch: NONE, pace: 0, ahead };
    let mut walk = Walk { left, rows, right, panels, parts: Parts::of(left), pipeline, configured: 0 };
    // SAFETY: rows and segments are in bounds by this function's contract.
    unsafe {
        if is_long(left.steps) && rows > ROWS && left.segments.len() == 1 {
            walk.part_by_part::<P>();
        } else {
            walk.row_by_row::<P>();
        }
        walk.pipeline.flush();
    }
}

/// Whether of rows of so many words too few columns of B would fit in the second-level cache: then it is the sums of a block
/// of rows and columns that stay there, while parts of A and B pass.
pub(super) fn is_long(words: usize) -> bool {
    words > LONG_WORDS
}

/// The order in which the tiles of sums of a block are multiplied.
struct Walk<'a, E> {
    left: &'a Left<'a>,
    rows: usize,
    right: &'a PackedMatrix,
    panels: Range<usize>,
    parts: Parts,
    pipeline: Pipeline<'a, E>,
    /// Rows that the matrix tiles are configured for.
    configured: usize,
}

impl<E: Epilogue> Walk<'_, E> {
    /// All of B for 32 rows of A, then for the next.
    ///
    /// # Safety
    /// As [`block`].
    #[inline(always)]
    unsafe fn row_by_row<P: Product>(&mut self) {
        let mut scratch = Scratch([MaybeUninit::uninit(); GROUP * PLACE]);
        let scratch = scratch.0.as_mut_ptr().cast::<f32>();
        for first in (0..self.rows).step_by(ROWS) {
            self.pipeline.look_ahead(self.left, first + ROWS, 0..self.left.steps, self.panels.len());
            for group in self.panels.clone().step_by(GROUP) {
                for part in 0..self.parts.count {
                    for panel in group..self.panels.end.min(group + GROUP) {
                        // SAFETY: the caller's contract; the scratch has a place for each panel of a group.
                        unsafe { self.tile::<P>(first, panel, part, scratch.add((panel - group) * PLACE)) };
                    }
                }
            }
        }
    }

    /// All rows and panels for one part of k, then for the next.
    ///
    /// # Safety
    /// As [`block`]; there must be one segment.
    #[inline(always)]
    unsafe fn part_by_part<P: Product>(&mut self) {
        let mut sums = Buffer::<f32>::with_capacity(self.rows.div_ceil(ROWS) * self.panels.len() * PLACE);
        let sums = sums.as_mut_ptr();
        for part in 0..self.parts.count {
            for first in (0..self.rows).step_by(ROWS) {
                let (row, part_of_row) = if first + ROWS < self.rows { (first + ROWS, part) } else { (0, part + 1) };
                let words = self.parts.words(self.left, part_of_row);
                self.pipeline.look_ahead(self.left, row, words, self.panels.len());
                for panel in self.panels.clone() {
                    let place = first / ROWS * self.panels.len() + panel - self.panels.start;
                    // SAFETY: the caller's contract; every tile of sums has a place.
                    unsafe { self.tile::<P>(first, panel, part, sums.wrapping_add(place * PLACE)) };
                }
            }
        }
    }

    /// One part of the tile of sums of up to 32 rows from `first` on and a panel, whose place is `place`.
    ///
    /// # Safety
    /// As [`block`]; the place must have room, and hold the sums of the parts before.
    #[inline(always)]
    unsafe fn tile<P: Product>(&mut self, first: usize, panel: usize, part: usize, place: *mut f32) {
        let Self { left, rows, right, parts, pipeline, configured, .. } = self;
        let height = ROWS.min(*rows - first);
        let width = panel_width(right.n(), panel);
        let sums = Sums {
            row: first,
            rows: height,
            complete_rows: if part + 1 == parts.count { height } else { 0 },
            column: panel * PANEL,
            columns: width,
            place,
        };
        let tile = TileOfSums {
            a: left.words.wrapping_add(first * left.row_stride),
            a_stride: left.row_stride,
            b: right.panel(panel).as_ptr().cast(),
            b_stride: width,
            part: parts.get(left, part),
            begins: part == 0,
            sums,
        };
        // SAFETY: the caller's contract; the tiles are configured for the height.
        unsafe {
            if height != *configured {
                pipeline.flush();
                amx::configure(height);
                *configured = height;
            }
            match (height > amx::TILE, width > LINE) {
                (false, false) => pipeline.tile::<P, 1, 1>(&tile),
                (false, true) => pipeline.tile::<P, 1, 2>(&tile),
                (true, false) => pipeline.tile::<P, 2, 1>(&tile),
                (true, true) => pipeline.tile::<P, 2, 2>(&tile),
            }
        }
    }
}

/// How the k of a product is cut so that a part of 32 rows fits in the first-level cache: a long segment into runs of whole
/// steps, many segments into groups.
struct Parts {
    count: usize,
    /// Words of a run when there is one segment.
    run: usize,
    /// Segments in a group when there are several.
    group: usize,
}

/// Some segments, or a run of words within one.
#[derive(Clone, Copy)]
struct Part<'a> {
    segments: &'a [Segment],
    offset: usize,
    steps: usize,
}

impl Parts {
    fn of(left: &Left<'_>) -> Self {
        if let [_] = left.segments {
            let count = left.steps.div_ceil(PART_WORDS_MAX).max(1);
            let run = left.steps.div_ceil(count).next_multiple_of(STEP).max(STEP);
            return Self { count: left.steps.div_ceil(run).max(1), run, group: 1 };
        }
        let group = (PART_WORDS_MAX / left.steps.max(1)).max(1);
        Self { count: left.segments.len().div_ceil(group).max(1), run: left.steps, group }
    }

    /// The words of a part of the only segment; none past the last part.
    fn words(&self, left: &Left<'_>, part: usize) -> Range<usize> {
        left.steps.min(part * self.run)..left.steps.min((part + 1) * self.run)
    }

    fn get<'a>(&self, left: &Left<'a>, part: usize) -> Part<'a> {
        if let [_] = left.segments {
            let offset = part * self.run;
            return Part { segments: left.segments, offset, steps: self.run.min(left.steps - offset) };
        }
        let from = part * self.group;
        let segments = &left.segments[from..left.segments.len().min(from + self.group)];
        Part { segments, offset: 0, steps: left.steps }
    }
}

/// What is multiplied into a tile of sums.
struct TileOfSums<'a> {
    /// The first of its rows.
    a: *const u32,
    a_stride: usize,
    /// The first line of its panel.
    b: *const u32,
    b_stride: usize,
    part: Part<'a>,
    /// The sums start from zero, not from the scratch.
    begins: bool,
    sums: Sums,
}

/// One step's operands.
#[derive(Clone, Copy)]
struct Operands {
    a: *const u32,
    a_stride: usize,
    b: *const u32,
    b_stride: usize,
}

impl<E: Epilogue> Pipeline<'_, E> {
    /// Spreads fetching `words` of the 32 rows from `row` on over the steps of as many words of the panels.
    #[inline(always)]
    fn look_ahead(&mut self, left: &Left<'_>, row: usize, words: Range<usize>, panels: usize) {
        // Of several segments the next rows read mostly the same lines: convolutions are not fetched for.
        let [segment] = left.segments else { return };
        let lines = words.len().div_ceil(LINE);
        let steps = words.len().div_ceil(STEP) * panels;
        self.ahead = Ahead {
            row: left.words.wrapping_add(row * left.row_stride + segment.a + words.start),
            row_stride: left.row_stride,
            line: 0,
            lines,
            per_step: (ROWS * lines).div_ceil(steps.max(1)),
        };
    }

    /// Multiplies one part into one tile of sums; stores and finishes the previous one meanwhile.
    ///
    /// # Safety
    /// The operands must be readable, and the tiles configured for DOWN · 16 rows or some less.
    #[inline(always)]
    unsafe fn tile<P: Product, const DOWN: usize, const ACROSS: usize>(&mut self, tile: &TileOfSums<'_>) {
        let Part { segments, offset, steps } = tile.part;
        let (whole, tail) = (steps / STEP, steps % STEP);
        // SAFETY: whole blocks of 16 steps lie within the segments. The block of the tail is read from a copy on the side
        // of A, padded with zeros; B may be read past the segment, where it is followed by at least 15 steps of other values.
        unsafe {
            if self.in_tiles.columns != tile.sums.columns {
                self.flush();
            }
            let later_steps = (segments.len() * steps.div_ceil(STEP)).saturating_sub(1).max(1);
            self.pace = self.in_tiles.complete_rows.div_ceil(later_steps).max(PACE_MIN);
            let mut begun = false;
            for segment in segments {
                let mut at = Operands {
                    a: tile.a.wrapping_add(segment.a + offset),
                    a_stride: tile.a_stride,
                    b: tile.b.wrapping_add((segment.b + offset) * tile.b_stride),
                    b_stride: tile.b_stride,
                };
                for _ in 0..whole {
                    self.step::<P, DOWN, ACROSS>(&mut begun, tile, at);
                    at.a = at.a.wrapping_add(STEP);
                    at.b = at.b.wrapping_add(STEP * at.b_stride);
                }
                if tail > 0 {
                    let copy = copy_tail(self.s, at.a, at.a_stride, tile.sums.rows, tail);
                    let at = Operands { a: copy.0.as_ptr(), a_stride: STEP, ..at };
                    self.step::<P, DOWN, ACROSS>(&mut begun, tile, at);
                }
            }
            self.finish_rows(ROWS);
            self.in_tiles = tile.sums;
        }
    }

    /// 16 words of k.
    ///
    /// # Safety
    /// As [`Pipeline::tile`].
    #[inline(always)]
    unsafe fn step<P: Product, const DOWN: usize, const ACROSS: usize>(
        &mut self,
        begun: &mut bool,
        tile: &TileOfSums<'_>,
        at: Operands,
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            amx::load::<4>(at.a, at.a_stride);
            amx::load_streaming::<6>(at.b, at.b_stride);
            if ACROSS > 1 {
                amx::load_streaming::<7>(at.b.wrapping_add(LINE), at.b_stride);
            }
            if DOWN > 1 {
                amx::load::<5>(at.a.wrapping_add(STEP * at.a_stride), at.a_stride);
            }
            if *begun {
                multiply::<P, DOWN, ACROSS>();
                self.finish_rows(self.pace);
            } else {
                *begun = true;
                self.replace::<P, DOWN, ACROSS>(tile);
            }
            self.fetch();
        }
    }

    /// Fetches some lines into the second-level cache. Past the last row there may be anything: what cannot be read is not
    /// fetched.
    #[inline(always)]
    fn fetch(&mut self) {
        let mut ahead = self.ahead;
        for _ in 0..ahead.per_step {
            prefetch(ahead.row.wrapping_add(ahead.line * LINE));
            ahead.line += 1;
            if ahead.line == ahead.lines {
                ahead.line = 0;
                ahead.row = ahead.row.wrapping_add(ahead.row_stride);
            }
        }
        self.ahead = ahead;
    }

    /// The first multiplications of a tile: each of the previous sums is stored just before its register is taken.
    ///
    /// # Safety
    /// As [`Pipeline::tile`].
    #[inline(always)]
    unsafe fn replace<P: Product, const DOWN: usize, const ACROSS: usize>(&mut self, tile: &TileOfSums<'_>) {
        let from = if tile.begins { None } else { Some(tile.sums.place) };
        let to = if self.in_tiles.rows == 0 { None } else { Some(self.in_tiles.place) };
        // SAFETY: the places have room for 32 rows of the columns, which are the same for both.
        unsafe {
            exchange::<0, ACROSS>(to, from, 0);
            dot::<P, 0, 4, 6>();
            if ACROSS > 1 {
                exchange::<1, ACROSS>(to, from, LINE);
                dot::<P, 1, 4, 7>();
            }
            if DOWN > 1 {
                exchange::<2, ACROSS>(to, from, STEP * ACROSS * LINE);
                dot::<P, 2, 5, 6>();
            }
            if DOWN > 1 && ACROSS > 1 {
                exchange::<3, ACROSS>(to, from, STEP * ACROSS * LINE + LINE);
                dot::<P, 3, 5, 7>();
            }
        }
        self.moved_to_scratch();
    }

    #[inline(always)]
    fn moved_to_scratch(&mut self) {
        self.in_scratch = self.in_tiles;
        self.in_scratch.rows = self.in_tiles.complete_rows;
        self.in_tiles = NONE;
    }

    /// Puts up to `count` rows of the sums in the scratch through the epilogue.
    ///
    /// # Safety
    /// The sums must be in the scratch.
    #[inline(always)]
    unsafe fn finish_rows(&mut self, count: usize) {
        let Sums { row, rows, column, columns, place, .. } = self.in_scratch;
        if rows == 0 {
            return;
        }
        let count = count.min(rows);
        // SAFETY: the rows are the tile's.
        unsafe { finish(self.s, self.epilogue, row, count, column, columns, place) };
        self.in_scratch.row = row + count;
        self.in_scratch.rows = rows - count;
        self.in_scratch.place = place.wrapping_add(count * columns);
    }

    /// Stores and finishes what is under way.
    ///
    /// # Safety
    /// The tiles must be configured as they were when they were multiplied into.
    #[inline(always)]
    unsafe fn flush(&mut self) {
        let Sums { place, columns, rows, .. } = self.in_tiles;
        if rows == 0 {
            return;
        }
        // SAFETY: the place has room for 32 rows of the columns.
        unsafe {
            amx::store::<0>(place, columns);
            if columns > LINE {
                amx::store::<1>(place.add(LINE), columns);
            }
            if rows > STEP {
                amx::store::<2>(place.add(STEP * columns), columns);
            }
            if rows > STEP && columns > LINE {
                amx::store::<3>(place.add(STEP * columns + LINE), columns);
            }
            self.moved_to_scratch();
            self.finish_rows(ROWS);
        }
    }
}

/// A call of its own, so that the epilogue is compiled once.
///
/// # Safety
/// As [`Epilogue::store`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
unsafe fn finish<E: Epilogue>(
    s: Avx512<AMX>,
    epilogue: &E,
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
    tile: *const f32,
) {
    // SAFETY: the caller's contract.
    unsafe { epilogue.store(s, row, rows, column, columns, tile) }
}

/// The last, incomplete step of up to 32 rows, with zeros behind it.
///
/// # Safety
/// Each row must have `tail` words.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
unsafe fn copy_tail(s: Avx512<AMX>, a: *const u32, a_stride: usize, rows: usize, tail: usize) -> Tail {
    let mut copy = Tail([0; ROWS * STEP]);
    for (row, to) in copy.0.chunks_exact_mut(STEP).take(rows).enumerate() {
        // SAFETY: the caller's contract.
        unsafe {
            let words = s.load_first(a.wrapping_add(row * a_stride).cast(), tail);
            s.store(to.as_mut_ptr().cast(), words);
        }
    }
    copy
}

#[repr(C, align(64))]
struct Tail([u32; ROWS * STEP]);

/// Stores the sums in tile `T` at `to` + `at`, then takes those at `from` + `at`, or zeros.
///
/// # Safety
/// The places must have room.
#[inline(always)]
unsafe fn exchange<const T: u8, const ACROSS: usize>(to: Option<*mut f32>, from: Option<*mut f32>, at: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        if let Some(to) = to {
            amx::store::<T>(to.add(at), ACROSS * LINE);
        }
        match from {
            Some(from) => amx::load::<T>(from.add(at).cast(), ACROSS * LINE),
            None => amx::clear::<T>(),
        }
    }
}

/// Sums 0–3 += the tiles of A in 4 and 5 times those of B in 6 and 7.
///
/// # Safety
/// The tiles must be configured.
#[inline(always)]
unsafe fn multiply<P: Product, const DOWN: usize, const ACROSS: usize>() {
    // SAFETY: the caller's contract.
    unsafe {
        dot::<P, 0, 4, 6>();
        if ACROSS > 1 {
            dot::<P, 1, 4, 7>();
        }
        if DOWN > 1 {
            dot::<P, 2, 5, 6>();
        }
        if DOWN > 1 && ACROSS > 1 {
            dot::<P, 3, 5, 7>();
        }
    }
}

/// # Safety
/// The tiles must be configured.
#[inline(always)]
unsafe fn dot<P: Product, const C: u8, const A: u8, const B: u8>() {
    // SAFETY: the caller's contract.
    unsafe {
        match P::FORMAT {
            Format::Int8 => amx::dot_int8::<C, A, B>(),
            _ => amx::dot_bf16::<C, A, B>(),
        }
    }
}

/// Fetches a line into the second-level cache.
#[inline(always)]
fn prefetch(at: *const u32) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: the instruction does not fault.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
}
