//! Attention of bf16 on matrix tiles.
//!
//! | | |
//! |---|---|
//! | meaning | softmax(q·kᵀ·scale)·v per head |
//! | inputs | q [tq, heads·hd], k, v [tk, heads·hd] bf16, heads side by side |
//! | outputs | [tq, heads·hd] bf16, written at a pointer; the tiles that it could not compute |
//! | preconditions | AMX; no bias; head_dim is filled with zeros up to a multiple of 32 |
//! | reference | `reference.rs`; relative RMSE ≤ 1e-2 (probabilities and result are rounded) |
//! | bound by | the exponentials' two vector ports, then the matrix unit: 4·tq·tk·heads·hd FLOP; memory O(tq + tk) |
//! | benchmark | `attention` |
//!
//! The matrix unit takes 16 cycles for 16·16·32 products and meanwhile occupies one of the two vector ports, so a score's
//! exponential must overlap with products to be affordable, and must be short. Hence
//!
//! - a pipeline of *ticks*: while the scores of one unit of 32 keys become weights, the matrix unit computes the scores of the
//!   next unit and sums the values under the weights of the previous block of keys. A few rows of weights follow each matrix
//!   instruction: that is as far ahead as the processor's own reordering sees.
//! - an exponential in 16-bit integers, 32 at a time. A fused multiply-add leaves a score (in units of ln 2) as 8.8 fixed point
//!   in the low bits of a float. Its upper byte already is the exponent of the bf16 weight, and the lower byte φ its mantissa
//!   up to 2^φ − 1 − φ, which a cubic corrects. The error is 1.2 times that of rounding an exact exponential to bf16.
//! - totals from the matrix unit: a tile of ones is appended to the values, so numerator and denominator see the same weights.
//! - no running maximum. By Cauchy and Schwarz a score is at most ‖q‖·max‖k‖; weights relative to that bound (less what f32
//!   has room for) cannot overflow. When all true scores of a query lie so far below the bound that its weights would lose
//!   precision, the total shows it, and its tile is left to the general path.
#![allow(unsafe_code, reason = "matrix tiles read and write through raw pointers; tasks write disjoint rows")]

use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;
use std::ops::Range;

use half::bf16;

use super::AttentionShape;
use crate::buffer::{Buffer, Zero};
use crate::packed::{LINE, Line};
use crate::parallel::{self, Shared};
use crate::simd::amx;

/// Queries of a tile pair: the height of the sums on which one unit of keys works.
pub(super) const QUERIES: usize = 32;
/// Keys of a unit: two matrix tiles across for the scores, one tile deep for the values.
const KEYS: usize = 32;
/// Units whose weights are summed at a time.
const BLOCK: usize = 16;
/// Query tiles that work on a unit of keys one after another, while it is in the first-level cache.
const GROUP: usize = 1;
/// Query tiles of a task, whose sums and the keys at hand stay in the second-level cache.
const TASK_TILES_MAX: usize = 32;
/// Lines of a matrix tile.
const TILE: usize = amx::TILE;

/// Largest exponent of 2 that a weight may have: sums of 2²⁰ of them with values up to 2⁴⁰ stay finite.
const EXPONENT_MAX: f32 = 64.0;
/// Smallest exponent of 2 that a weight may have.
const EXPONENT_MIN: f32 = -126.0;
/// Smallest total whose terms are precise: what is lost below EXPONENT_MIN is 2⁻³⁸ of it.
const TOTAL_MIN: f32 = 3e-27;
/// Floats from 2¹⁵ to 2¹⁶ have 8 bits after the point; 127 is the bias of the exponent.
const FIXED_POINT: f32 = 32_768.0 + 127.0;

/// Computes all queries into `out` ([tq, heads·hd], dense), 32 at a time, and returns (head, first query) of those that it
/// could not.
///
/// # Safety
/// AMX must be available; `out` must have room for all rows.
pub(super) unsafe fn attention(
    q: &[bf16],
    k: &[bf16],
    v: &[bf16],
    shape: AttentionShape,
    out: *mut bf16,
) -> Vec<(usize, usize)> {
    let AttentionShape { queries, visible, heads, head_dim, .. } = shape;
    let operations = queries * visible * heads * head_dim / 16;
    let mut packed: Vec<Option<Head>> = Vec::new();
    packed.resize_with(heads, || None);
    parallel::for_each_piece(&mut packed, 1, operations, |head, slot| {
        // SAFETY: the caller has AMX, which comes with AVX-512.
        slot[0] = Some(unsafe { Head::pack(k, v, head * head_dim, shape) });
    });
    let packed: Vec<Head> = packed.into_iter().flatten().collect();

    let tiles = queries.div_ceil(QUERIES);
    let wanted = (4 * rayon::current_num_threads()).div_ceil(heads);
    let tasks = tiles.div_ceil(TASK_TILES_MAX).max(wanted).min(tiles);
    let out = Shared::from_pointer(out);
    let mut failed: Vec<Vec<(usize, usize)>> = vec![Vec::new(); heads * tasks];
    parallel::for_each_piece(&mut failed, 1, operations, |task, failed| {
        let (head, part) = (task / tasks, task % tasks);
        let tiles_of_task = tiles * part / tasks..tiles * (part + 1) / tasks;
        let at = head * head_dim;
        // SAFETY: as above; tasks differ in head or tiles, so they write different parts of the output.
        unsafe {
            let mut task = Task::new(q, at, &packed[head], shape, tiles_of_task);
            task.run();
            failed[0] = task.finish(out.get(), at).into_iter().map(|tile| (head, tile * QUERIES)).collect();
        }
    });
    failed.concat()
}

/// Steps of 32 dimensions.
fn steps(shape: AttentionShape) -> usize {
    shape.head_dim.div_ceil(KEYS)
}

/// A mask of the first `n` of 32 lanes.
fn first(n: usize) -> u32 {
    if n >= 32 { u32::MAX } else { (1 << n) - 1 }
}

/// A mask of the weights of the first `n` of 32 keys: lanes hold keys 0, 16, 1, 17, ….
fn first_weights(n: usize) -> u32 {
    let is_visible = |lane: usize| lane / 2 + lane % 2 * LINE < n;
    (0..32).filter(|&lane| is_visible(lane)).fold(0, |mask, lane| mask | 1 << lane)
}

/// Keys and values of one head in the order of matrix tiles.
struct Head {
    /// [unit, step, half, 16 pairs of dimensions] lines of 16 keys.
    keys: Buffer<Line>,
    /// [unit, step, half, 16 pairs of keys] lines of 16 dimensions; a pair is keys i and 16 + i.
    values: Buffer<Line>,
    /// The largest ‖k‖; not finite when any key is not.
    longest_key: f32,
}

impl Head {
    /// # Safety
    /// AVX-512 BW and BF16 must be available.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn pack(k: &[bf16], v: &[bf16], at: usize, shape: AttentionShape) -> Self {
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
fn read(x: &[bf16], shape: AttentionShape, at: usize, row: usize, step: usize) -> __m512i {
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
fn line(words: __m512i) -> Line {
    let mut line = Line([0; LINE]);
    // SAFETY: a line has the size and alignment of the register.
    unsafe { _mm512_store_si512((&raw mut line).cast(), words) };
    line
}

/// sums + the squares of both halves of every word.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_squares(sums: __m512, words: __m512i) -> __m512 {
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

/// A matrix tile of bf16 ones.
static ONES: [Line; TILE] = [Line([0x3f80_3f80; LINE]); TILE];

/// Some query tiles of one head, against all its keys.
struct Task<'a> {
    head: &'a Head,
    shape: AttentionShape,
    tiles: Range<usize>,
    steps: usize,
    units: usize,
    /// [tile, step, half, 16 rows] lines of 32 dimensions.
    queries: Buffer<Line>,
    /// [tile, 32 rows]: what makes a query's scores, in units of ln 2, the fixed-point exponents of its weights.
    references: Vec<f32>,
    /// For each tile whether some weights' exponents may fall below EXPONENT_MIN, and whether its bounds are finite.
    is_deep: Vec<bool>,
    is_bounded: Vec<bool>,
    /// [tile, 32 rows] of 2·steps + 2 lines: sums for the padded head, not yet divided by the total, and two parts of the
    /// total, 16 times each.
    sums: Buffer<Line>,
    scratch: Buffer<Scratch>,
    /// Sums that are complete but still in their tiles.
    unstored: Place,
}

/// Where the four tiles of sums come from or go to: a matrix of 32 by 32 floats, or nowhere.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: *mut f32,
    /// Floats from one row to the next.
    row: usize,
}

impl Place {
    const NOWHERE: Self = Self { at: std::ptr::null_mut(), row: 0 };

    /// Of tile `T`.
    #[inline(always)]
    fn of<const T: u8>(self) -> *mut f32 {
        self.at.wrapping_add((usize::from(T / 2) * self.row + usize::from(T % 2)) * TILE)
    }

    /// Loads tile `T` from here, or clears it.
    ///
    /// # Safety
    /// The tiles must be configured, the matrix readable if there is one.
    #[inline(always)]
    unsafe fn load<const T: u8>(self) {
        // SAFETY: the caller's contract.
        unsafe { if self.at.is_null() { amx::clear::<T>() } else { amx::load::<T>(self.of::<T>().cast(), self.row) } }
    }

    /// Stores tile `T` here, if this is anywhere.
    ///
    /// # Safety
    /// The tiles must be configured, the matrix writable if there is one.
    #[inline(always)]
    unsafe fn store<const T: u8>(self) {
        if !self.at.is_null() {
            // SAFETY: the caller's contract.
            unsafe { amx::store::<T>(self.of::<T>(), self.row) }
        }
    }

    /// Stores tile `T` of the sums before to `unstored`, and makes it tile `T` of the next ones.
    ///
    /// # Safety
    /// As [`Place::load`] and [`Place::store`].
    #[inline(always)]
    unsafe fn replace<const T: u8>(self, unstored: Self) {
        // SAFETY: the caller's contract.
        unsafe {
            unstored.store::<T>();
            self.load::<T>();
        }
    }
}

/// What is handed from tick to tick, and from stage to stage.
#[derive(Clone, Copy)]
struct Scratch {
    /// [parity of the tick, 32 rows, 32 keys]. The lines between keep the two from having the same low address bits, which
    /// the processor takes for a dependency between a store and the next load.
    scores: [[Line; 2 * QUERIES + 4]; 2],
    /// [parity of the stage, tile of the group, unit of the block, half, 16 rows] lines of 32 keys.
    weights: [[[[Line; QUERIES]; BLOCK]; GROUP]; 2],
}

// SAFETY: lines of zeros are values.
unsafe impl Zero for Scratch {}

/// A block of keys against a group of query tiles.
#[derive(Debug, Clone, Copy)]
struct Stage {
    first_unit: usize,
    units: usize,
    /// Counted from the task's first.
    first_tile: usize,
    tiles: usize,
    parity: usize,
}

impl Stage {
    /// One tick per unit and tile, the tile changing fastest.
    fn ticks(&self) -> usize {
        self.units * self.tiles
    }
}

/// What one tick does.
struct Tick<'a> {
    /// Whose weights are computed, and which tick of it this is.
    stage: &'a Stage,
    index: usize,
    /// Whose scores are computed: the next tick.
    next: Option<(&'a Stage, usize)>,
    /// Whose values are summed, as far as this tick's share goes.
    before: Option<&'a Stage>,
    /// Parity of ticks.
    parity: usize,
}

impl<'a> Task<'a> {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    fn new(q: &[bf16], at: usize, head: &'a Head, shape: AttentionShape, tiles: Range<usize>) -> Self {
        let steps = steps(shape);
        let mut queries = Buffer::with_capacity(tiles.len() * steps * QUERIES);
        let mut references = Vec::with_capacity(tiles.len() * QUERIES);
        let (mut is_deep, mut is_bounded) = (Vec::new(), Vec::new());
        // Rows are read up to the number of queries, not of keys.
        let rows = AttentionShape { visible: shape.queries, ..shape };
        let unit = shape.scale.abs() * LOG2_E;
        for tile in tiles.clone() {
            let mut squares = [0.0; QUERIES];
            for step in 0..steps {
                for (row, squares) in squares.iter_mut().enumerate() {
                    let words = read(q, rows, at, tile * QUERIES + row, step);
                    *squares += _mm512_reduce_add_ps(add_squares(_mm512_setzero_ps(), words));
                    queries.extend_from_slice(&[line(words)]);
                }
            }
            let bounds = squares.map(|s: f32| s.sqrt() * head.longest_key * unit);
            let excess = |bound: f32| (bound - EXPONENT_MAX).ceil().max(0.0);
            references.extend(bounds.map(|b| FIXED_POINT - excess(b)));
            is_deep.push(bounds.iter().any(|&b| -b - excess(b) < EXPONENT_MIN));
            is_bounded.push(bounds.iter().all(|b| b.is_finite()));
        }
        Self {
            head,
            shape,
            steps,
            units: shape.visible.div_ceil(KEYS),
            queries,
            references,
            is_deep,
            is_bounded,
            sums: Buffer::zeros(tiles.len() * QUERIES * (2 * steps + 2)),
            scratch: Buffer::zeros(1),
            unstored: Place::NOWHERE,
            tiles,
        }
    }

    fn stages(&self) -> Vec<Stage> {
        let (units, tiles) = (self.units, self.tiles.len());
        let starts = (0..units).step_by(BLOCK).flat_map(|u| (0..tiles).step_by(GROUP).map(move |t| (u, t)));
        let stage = |(i, (first_unit, first_tile))| Stage {
            first_unit,
            units: BLOCK.min(units - first_unit),
            first_tile,
            tiles: GROUP.min(tiles - first_tile),
            parity: i % 2,
        };
        starts.enumerate().map(stage).collect()
    }

    /// # Safety
    /// AMX must be available.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn run(&mut self) {
        let stages = self.stages();
        let mut parity = 0;
        // SAFETY: the caller has AMX; all indices come from the stages, which lie within the task.
        unsafe {
            amx::configure(2 * TILE);
            self.multiply_keys(&stages[0], 0, 0, || ());
            self.store_sums();
            for (i, stage) in stages.iter().enumerate() {
                for index in 0..stage.ticks() {
                    let next = if index + 1 < stage.ticks() {
                        Some((stage, index + 1))
                    } else {
                        stages.get(i + 1).map(|next| (next, 0))
                    };
                    let before = i.checked_sub(1).map(|b| &stages[b]);
                    let tick = Tick { stage, index, next, before, parity };
                    let is_deep = self.is_deep[stage.first_tile + index % stage.tiles];
                    // Rows of weights that follow each of the 8·steps matrix instructions.
                    match (self.steps, is_deep) {
                        (1, false) => self.tick::<4, false>(&tick),
                        (1, true) => self.tick::<4, true>(&tick),
                        (2 | 3, false) => self.tick::<2, false>(&tick),
                        (2 | 3, true) => self.tick::<2, true>(&tick),
                        (_, false) => self.tick::<1, false>(&tick),
                        (_, true) => self.tick::<1, true>(&tick),
                    }
                    parity = 1 - parity;
                }
            }
            if let Some(last) = stages.last() {
                self.multiply_values(last, 0..self.items(last), || ());
            }
            self.store_sums();
            amx::release();
        }
    }

    /// # Safety
    /// The tiles must be configured, and the tick's scores and the weights of the stage before computed.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn tick<const ROWS: usize, const DEEP: bool>(&mut self, tick: &Tick<'_>) {
        let Tick { stage, index, parity, .. } = *tick;
        let (unit, tile) = (index / stage.tiles, index % stage.tiles);
        let visible = self.shape.visible - (stage.first_unit + unit) * KEYS;
        let scratch: *mut Scratch = self.scratch.as_mut_ptr();
        // SAFETY: the rows of scores, references and weights exist; the other users of the scratch work on the other
        // parities.
        let mut soften = unsafe {
            Soften {
                scores: (&raw const (*scratch).scores[parity]).cast(),
                references: self.references[(stage.first_tile + tile) * QUERIES..][..QUERIES].as_ptr(),
                weights: (&raw mut (*scratch).weights[stage.parity][tile][unit]).cast(),
                row: 0,
                scale: _mm512_set1_ps(self.shape.scale * LOG2_E),
                visible: if visible >= KEYS { u32::MAX } else { first_weights(visible) },
            }
        };
        // SAFETY: the caller's contract.
        unsafe {
            if let Some((stage, index)) = tick.next {
                self.multiply_keys(stage, index, 1 - parity, || soften.rows::<ROWS, DEEP>());
            }
            match tick.before {
                Some(before) => {
                    let (items, ticks) = (self.items(before), stage.ticks());
                    let share = items * index / ticks..items * (index + 1) / ticks;
                    self.multiply_values(before, share, || soften.rows::<ROWS, DEEP>());
                }
                // Nothing takes the tiles over before the next tick reads the scores.
                None => self.store_sums(),
            }
            while soften.row < QUERIES {
                soften.rows::<ROWS, DEEP>();
            }
        }
    }

    /// Stores what is still in the tiles.
    ///
    /// # Safety
    /// The tiles must be configured.
    #[inline(always)]
    unsafe fn store_sums(&mut self) {
        let unstored = std::mem::replace(&mut self.unstored, Place::NOWHERE);
        // SAFETY: the sums have room where they go.
        unsafe {
            unstored.store::<0>();
            unstored.store::<1>();
            unstored.store::<2>();
            unstored.store::<3>();
        }
    }

    /// The scores of a tick's unit and tile. `meanwhile` is called after each product.
    ///
    /// # Safety
    /// The tiles must be configured, the index one of the stage's ticks.
    #[inline(always)]
    unsafe fn multiply_keys(&mut self, stage: &Stage, index: usize, parity: usize, mut meanwhile: impl FnMut()) {
        let (unit, tile) = (stage.first_unit + index / stage.tiles, stage.first_tile + index % stage.tiles);
        let a = self.queries[tile * self.steps * QUERIES..][..self.steps * QUERIES].as_ptr();
        let b = self.head.keys[unit * self.steps * KEYS..][..self.steps * KEYS].as_ptr();
        let unstored = self.unstored;
        self.unstored = Place { at: self.scratch[0].scores[parity].as_mut_ptr().cast(), row: KEYS };
        // SAFETY: a step has two tiles of 16 lines on either side; the sums before have room where they go.
        unsafe {
            first_product(a, b, Place::NOWHERE, unstored, &mut meanwhile);
            for step in 1..self.steps {
                product(a.add(step * QUERIES), b.add(step * KEYS), &mut meanwhile);
            }
        }
    }

    /// Pieces of work in a stage's products of weights and values: (columns, tile, unit), the unit changing fastest. The
    /// last columns are the totals. A stage has no more ticks than the one before it has items, so every tick gets some.
    fn items(&self, stage: &Stage) -> usize {
        (self.steps + 1) * stage.ticks()
    }

    /// Some items, added to the sums. `meanwhile` is called after each product.
    ///
    /// # Safety
    /// The tiles must be configured and the stage's weights computed.
    #[inline(always)]
    unsafe fn multiply_values(&mut self, stage: &Stage, items: Range<usize>, mut meanwhile: impl FnMut()) {
        let units = stage.units;
        let lines = 2 * self.steps + 2;
        let mut item = items.start;
        while item < items.end {
            let (columns, tile) = (item / units / stage.tiles, item / units % stage.tiles);
            let first = item % units;
            let last = units.min(first + items.end - item);
            let rows = &mut self.sums[(stage.first_tile + tile) * QUERIES * lines..][..QUERIES * lines];
            let sums = Place { at: rows[2 * columns..].as_mut_ptr().cast(), row: lines * LINE };
            let before = if stage.first_unit + first == 0 { Place::NOWHERE } else { sums };
            let unstored = std::mem::replace(&mut self.unstored, sums);
            let weights = &self.scratch[0].weights[stage.parity][tile][first..last];
            // SAFETY: the sums reach to the tile's last row; weights and values have whole tiles for every unit.
            unsafe {
                if columns < self.steps {
                    let values = &self.head.values[(stage.first_unit + first) * self.steps * KEYS + columns * KEYS..];
                    let values = |unit: usize| values[unit * self.steps * KEYS..][..KEYS].as_ptr();
                    first_product(weights[0].as_ptr(), values(0), before, unstored, &mut meanwhile);
                    for (unit, weights) in weights.iter().enumerate().skip(1) {
                        product(weights.as_ptr(), values(unit), &mut meanwhile);
                    }
                } else {
                    add_totals(weights, before, unstored, &mut meanwhile);
                }
            }
            item += last - first;
        }
    }

    /// Divides the sums by the totals and stores the rows that exist; returns the tiles (of the whole head) whose totals
    /// are out of range.
    ///
    /// # Safety
    /// `out` must have room for all rows of [tq, heads·hd].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn finish(&self, out: *mut bf16, at: usize) -> Vec<usize> {
        let AttentionShape { queries, heads, head_dim, .. } = self.shape;
        let lines = 2 * self.steps + 2;
        let mut failed = Vec::new();
        for (local, tile) in self.tiles.clone().enumerate() {
            let mut is_precise = self.is_bounded[local];
            for row in 0..QUERIES.min(queries - tile * QUERIES) {
                let sums = &self.sums[(local * QUERIES + row) * lines..][..lines];
                let total = f32::from_bits(sums[lines - 2].0[0]) + f32::from_bits(sums[lines - 1].0[0]);
                is_precise &= (TOTAL_MIN..f32::MAX).contains(&total);
                let inverse = _mm512_set1_ps(1.0 / total);
                for (i, line) in sums[..head_dim.div_ceil(LINE)].iter().enumerate() {
                    // SAFETY: a line is as long as the register; the output has the head's part of the row.
                    unsafe {
                        let to = out.add((tile * QUERIES + row) * heads * head_dim + at + i * LINE);
                        let value = _mm512_mul_ps(_mm512_load_ps(line.0.as_ptr().cast()), inverse);
                        let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(value));
                        _mm256_mask_storeu_epi16(to.cast(), first(head_dim - i * LINE) as u16, rounded);
                    }
                }
            }
            if !is_precise {
                failed.push(tile);
            }
        }
        failed
    }
}

/// Turns a tick's scores into weights, some rows at a time.
struct Soften {
    /// [32 rows, 32 keys]
    scores: *const f32,
    /// One per row.
    references: *const f32,
    /// 32 rows of 32 bf16.
    weights: *mut __m512i,
    /// The next row.
    row: usize,
    scale: __m512,
    /// The lanes of weights that count.
    visible: u32,
}

impl Soften {
    /// The next ROWS rows, if there are any; DEEP when exponents may be too small.
    ///
    /// # Safety
    /// The pointers must be valid for 32 rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    #[inline]
    unsafe fn rows<const ROWS: usize, const DEEP: bool>(&mut self) {
        if self.row >= QUERIES {
            return;
        }
        for row in self.row..self.row + ROWS {
            // SAFETY: row < 32, which ROWS divides.
            unsafe {
                let reference = _mm512_set1_ps(*self.references.add(row));
                let low = fixed_point::<DEEP>(_mm512_load_ps(self.scores.add(row * KEYS)), self.scale, reference);
                let high =
                    fixed_point::<DEEP>(_mm512_load_ps(self.scores.add(row * KEYS + LINE)), self.scale, reference);
                let words = _mm512_mask_blend_epi16(0xaaaa_aaaa, low, _mm512_slli_epi32::<16>(high));
                self.weights.add(row).write(weights_of(words, self.visible));
            }
        }
        self.row += ROWS;
    }
}

/// score · scale + reference, whose low 16 bits are a biased exponent in 8.8 fixed point.
#[target_feature(enable = "avx512f")]
#[inline]
fn fixed_point<const DEEP: bool>(scores: __m512, scale: __m512, reference: __m512) -> __m512i {
    let sum = _mm512_fmadd_ps(scores, scale, reference);
    let floor = _mm512_set1_ps(FIXED_POINT + EXPONENT_MIN);
    _mm512_castps_si512(if DEEP { _mm512_max_ps(sum, floor) } else { sum })
}

/// 2^(w/256 − 127) as bf16 for w in 16 bits; 0 where the mask has no bit.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn weights_of(w: __m512i, visible: u32) -> __m512i {
    // φ = u/2¹⁶ is the fraction of w; 1 + φ − 2^φ ≈ φ(1 − φ)(c₀ + c₁φ), here in 256ths and rounded.
    let u = _mm512_slli_epi16::<8>(w);
    let product = _mm512_mulhi_epu16(u, _mm512_xor_si512(u, _mm512_set1_epi16(-1)));
    let factor = _mm512_add_epi16(_mm512_set1_epi16(40), _mm512_mulhi_epu16(u, _mm512_set1_epi16(7)));
    let excess = _mm512_mulhrs_epi16(product, factor);
    // From 8 bits after the point to the 7 of bf16, rounding up.
    _mm512_maskz_avg_epu16(visible, _mm512_sub_epi16(w, excess), _mm512_setzero_si512())
}

/// Sums 0–3 += two tiles of A by two tiles of B, each 16 lines after the other. B is used once, A stays in the first-level
/// cache.
///
/// # Safety
/// The tiles must be configured, the lines readable.
#[inline(always)]
unsafe fn product(a: *const Line, b: *const Line, meanwhile: &mut impl FnMut()) {
    // SAFETY: the caller's contract.
    unsafe {
        amx::load_streaming::<6>(b.cast(), LINE);
        amx::load::<4>(a.cast(), LINE);
        amx::dot_bf16::<0, 4, 6>();
        meanwhile();
        amx::load_streaming::<7>(b.add(TILE).cast(), LINE);
        amx::dot_bf16::<1, 4, 7>();
        meanwhile();
        amx::load::<5>(a.add(TILE).cast(), LINE);
        amx::dot_bf16::<2, 5, 6>();
        meanwhile();
        amx::dot_bf16::<3, 5, 7>();
        meanwhile();
    }
}

/// [`product`] added to the sums from `before`; the sums that were in the tiles go to `unstored`. One tile at a time: to store
/// all four first would leave the matrix unit idle.
///
/// # Safety
/// As [`product`]; the places must be valid.
#[inline(always)]
unsafe fn first_product(a: *const Line, b: *const Line, before: Place, unstored: Place, meanwhile: &mut impl FnMut()) {
    // SAFETY: the caller's contract.
    unsafe {
        amx::load_streaming::<6>(b.cast(), LINE);
        amx::load::<4>(a.cast(), LINE);
        before.replace::<0>(unstored);
        amx::dot_bf16::<0, 4, 6>();
        meanwhile();
        amx::load_streaming::<7>(b.add(TILE).cast(), LINE);
        before.replace::<1>(unstored);
        amx::dot_bf16::<1, 4, 7>();
        meanwhile();
        amx::load::<5>(a.add(TILE).cast(), LINE);
        before.replace::<2>(unstored);
        amx::dot_bf16::<2, 5, 6>();
        meanwhile();
        before.replace::<3>(unstored);
        amx::dot_bf16::<3, 5, 7>();
        meanwhile();
    }
}

/// Adds weights by ones to the totals: those of even units to sums 0 and 2, of odd ones to 1 and 3, so that one need not wait
/// for the other.
///
/// # Safety
/// The tiles must be configured, the places valid.
#[inline(always)]
unsafe fn add_totals(weights: &[[Line; QUERIES]], before: Place, unstored: Place, meanwhile: &mut impl FnMut()) {
    // SAFETY: the caller's contract; a unit's weights are two tiles.
    unsafe {
        amx::load::<6>(ONES.as_ptr().cast(), LINE);
        before.replace::<0>(unstored);
        before.replace::<1>(unstored);
        before.replace::<2>(unstored);
        before.replace::<3>(unstored);
        for pair in weights.chunks(2) {
            amx::load::<4>(pair[0].as_ptr().cast(), LINE);
            amx::dot_bf16::<0, 4, 6>();
            meanwhile();
            amx::load::<5>(pair[0][TILE..].as_ptr().cast(), LINE);
            amx::dot_bf16::<2, 5, 6>();
            meanwhile();
            if let Some(odd) = pair.get(1) {
                amx::load::<4>(odd.as_ptr().cast(), LINE);
                amx::dot_bf16::<1, 4, 6>();
                meanwhile();
                amx::load::<5>(odd[TILE..].as_ptr().cast(), LINE);
                amx::dot_bf16::<3, 5, 6>();
                meanwhile();
            }
        }
    }
}
