//! The schedule of a task: some query tiles of one head, against all its keys.
#![allow(unsafe_code, reason = "matrix tiles read and write through raw pointers")]

use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;
use std::ops::Range;

use half::bf16;

use super::pack::{Head, add_squares, line, read};
use super::product::{Place, add_totals, first_product, product};
use super::soften::{EXPONENT_MIN, FIXED_POINT, Soften, first_weights};
use super::{AttentionShape, KEYS, QUERIES, TILE, first, steps};
use crate::buffer::{Buffer, Zero};
use crate::packed::{LINE, Line};
use crate::simd::amx;

/// Units whose weights are summed at a time.
const BLOCK: usize = 16;
/// Query tiles that work on a unit of keys one after another, while it is in the first-level cache.
const GROUP: usize = 1;
/// Largest exponent of 2 that a weight may have: sums of 2²⁰ of them with values up to 2⁴⁰ stay finite.
const EXPONENT_MAX: f32 = 64.0;
/// Smallest total whose terms are precise: what is lost below EXPONENT_MIN is 2⁻³⁸ of it.
const TOTAL_MIN: f32 = 3e-27;

/// Some query tiles of one head, against all its keys.
pub(super) struct Task<'a> {
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
    pub(super) fn new(q: &[bf16], at: usize, head: &'a Head, shape: AttentionShape, tiles: Range<usize>) -> Self {
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
    pub(super) unsafe fn run(&mut self) {
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
    pub(super) unsafe fn finish(&self, out: *mut bf16, at: usize) -> Vec<usize> {
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
