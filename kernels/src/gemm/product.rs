//! The parallel driver for products of a dense matrix.
#![allow(unsafe_code, reason = "tasks write disjoint rows and columns of one output")]

use std::ops::{Deref, Range};

use super::{
    Bf16Product, F32Product, Finish, Int8Product, Left, Product, QuantisedRows, Scales, Segment, Tiles, block,
};
use crate::activation::Activation;
use crate::buffer::Buffer;
use crate::packed::{Format, LINE, PANEL, PackedMatrix};
use crate::parallel::{self, Shared};
use crate::simd::{Element, Isa, Kernel};
use crate::tensor::{Dtype, Tensor};

/// Bytes of B that a task passes over for every block of rows: they stay in the second-level cache.
const RIGHT_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of A that stay there while the panels of B pass, on levels where B moves faster than A.
const LEFT_BYTES_MAX: usize = 512 * 1024;
/// Most words of k that are multiplied in one pass when passes can add to the output: of longer rows too few, or too few
/// columns, would fit.
const PASS_WORDS_MAX: usize = 1024;
/// Most rows and panels of a task whose sums stay in the second-level cache: 786 KiB of them.
const SUMS_ROWS_MAX: usize = 512;
const SUMS_PANELS_MAX: usize = 12;
/// Rows are divided among tasks in multiples of this.
const ROWS_STEP: usize = 32;

/// `x` [m, k] times `weight`, finished into `finish.out`, which must have m rows at `finish.row_stride`.
///
/// x has the weight's dtype, or any for an int8 weight, whose `finish.scales` then gets x's row scales; the caller has
/// checked the shapes.
pub(crate) fn linear_product<T: Element>(isa: Isa, x: &Tensor, m: usize, weight: &PackedMatrix, finish: Finish<'_, T>) {
    let k = weight.k();
    if weight.format() == Format::Int8 {
        let x = QuantisedRows::new(isa, x, m, k);
        let scales = finish.scales.map(|scales| Scales { rows: &x.scales, ..scales });
        return product_of_words(isa, x.words.as_ptr(), m, weight, Finish { scales, ..finish });
    }
    let x = if weight.dtype() == Dtype::Bf16 && k % 2 == 1 { x.with_zero_column(m, k) } else { x.clone() };
    let words = match weight.dtype() {
        Dtype::F32 => x.as_f32().map(|v| v.as_ptr().cast::<u32>()),
        Dtype::Bf16 => x.as_bf16().map(|v| v.as_ptr().cast::<u32>()),
    };
    let Some(words) = words else { unreachable!("the caller converts x to the weight's dtype") };
    product_of_words(isa, words, m, weight, finish);
}

/// [`linear_product`] of m rows of words. What is only added to an f32 output is added in passes over parts of a long k.
fn product_of_words<T: Element>(isa: Isa, words: *const u32, m: usize, weight: &PackedMatrix, finish: Finish<'_, T>) {
    let steps = weight.steps();
    if super::sums_stay_cached(isa, weight.format(), steps) {
        return one_pass(isa, words, m, weight, 0..steps, finish);
    }
    let adds = finish.residual.is_some() && finish.activation == Activation::None && finish.scales.is_none();
    let passes = if adds && T::DTYPE == Dtype::F32 { steps.div_ceil(PASS_WORDS_MAX) } else { 1 };
    let pass_words = steps.div_ceil(passes).next_multiple_of(LINE);
    for first in (0..steps).step_by(pass_words) {
        let finish = match first {
            0 => finish,
            _ => Finish { bias: None, residual: Some(finish.out.cast_const()), ..finish },
        };
        one_pass(isa, words, m, weight, first..steps.min(first + pass_words), finish);
    }
}

/// The product over the words `range` of every row.
fn one_pass<T: Element>(
    isa: Isa,
    words: *const u32,
    m: usize,
    weight: &PackedMatrix,
    range: Range<usize>,
    finish: Finish<'_, T>,
) {
    let panels = weight.n().div_ceil(PANEL);
    let tasks = match super::sums_stay_cached(isa, weight.format(), range.len()) {
        true => Tasks::of_squares(m, panels),
        false => Tasks::new(m, panels, range.len()),
    };
    let shared = SharedRows { words: Shared::new_const(words), out: Shared::from_pointer(finish.out) };
    let residual = finish.residual.map(Shared::new_const);
    let (bias, gate, activation) = (finish.bias, finish.gate, finish.activation);
    let (n, scales, row_stride) = (finish.n, finish.scales, finish.row_stride);

    parallel::for_each(tasks.groups * tasks.row_blocks, m * weight.k() * n / 8, |task| {
        let (group, first) = (task / tasks.row_blocks, task % tasks.row_blocks * tasks.rows);
        let segments = [Segment { a: range.start, b: range.start }];
        let left = Left {
            words: shared.words.get().wrapping_add(first * weight.steps()).cast_const(),
            row_stride: weight.steps(),
            segments: &segments,
            steps: range.len(),
        };
        let offset = first * row_stride;
        let out = shared.out.get().wrapping_add(offset);
        let residual = residual.map(|r| r.get().wrapping_add(offset).cast_const());
        let rows = tasks.rows.min(m - first);
        let scales = scales.map(|scales| Scales { rows: &scales.rows[first..first + rows], ..scales });
        isa.run(Rows {
            left,
            rows,
            right: weight,
            panels: panels * group / tasks.groups..panels * (group + 1) / tasks.groups,
            finish: Finish { n, scales, bias, gate, residual, activation, out, row_stride },
        });
    });
}

/// How a product is cut: groups of panels that stay in a core's cache, times blocks of rows. Neighbouring tasks, which
/// mostly run on one core, share the group; with a single group they follow one another in the rows, so that a core finds
/// what it wrote in the operation before.
struct Tasks {
    groups: usize,
    row_blocks: usize,
    /// Rows of a block.
    rows: usize,
}

impl Tasks {
    fn new(m: usize, panels: usize, steps: usize) -> Self {
        let wanted = if rayon::current_num_threads() > 1 { 4 * rayon::current_num_threads() } else { 1 };
        let row_bytes = 4 * steps.max(1);
        let groups = (panels * PANEL * row_bytes).div_ceil(RIGHT_BYTES_MAX).clamp(1, panels.max(1));
        let row_blocks = wanted.div_ceil(groups).max((m * row_bytes).div_ceil(LEFT_BYTES_MAX) / groups.max(wanted));
        let rows = m.div_ceil(row_blocks).next_multiple_of(ROWS_STEP);
        let row_blocks = m.div_ceil(rows.max(1));
        // With few rows it is the columns that are divided.
        let groups = groups.max(wanted.div_ceil(row_blocks.max(1)).min(panels));
        Self { groups, row_blocks, rows }
    }

    /// For products whose sums stay in the cache: tasks as square as there is room for.
    fn of_squares(m: usize, panels: usize) -> Self {
        let rows = m.div_ceil(m.div_ceil(SUMS_ROWS_MAX).max(1)).next_multiple_of(ROWS_STEP);
        let row_blocks = m.div_ceil(rows.max(1));
        let wanted = if rayon::current_num_threads() > 1 { 4 * rayon::current_num_threads() } else { 1 };
        let groups = panels.div_ceil(SUMS_PANELS_MAX).max(wanted.div_ceil(row_blocks.max(1))).min(panels.max(1));
        Self { groups, row_blocks, rows }
    }
}

struct SharedRows<T> {
    words: Shared<u32>,
    out: Shared<T>,
}

/// One task: some rows times some panels.
pub(crate) struct Rows<'a, T> {
    pub(crate) left: Left<'a>,
    pub(crate) rows: usize,
    pub(crate) right: &'a PackedMatrix,
    pub(crate) panels: Range<usize>,
    pub(crate) finish: Finish<'a, T>,
}

impl<T: Element> Kernel for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Tiles>(self, s: S) {
        match self.right.format() {
            Format::F32 => self.multiply::<S, F32Product>(s),
            Format::Bf16 => self.multiply::<S, Bf16Product>(s),
            Format::Int8 => self.multiply::<S, Int8Product>(s),
        }
    }
}

impl<T: Element> Rows<'_, T> {
    #[inline(always)]
    fn multiply<S: Tiles, P: Product>(self, s: S) {
        // SAFETY: whoever makes a `Rows` has checked the operands against the output; tasks differ in rows or panels.
        unsafe { block::<S, P, _>(s, &self.left, self.rows, self.right, self.panels, &self.finish) }
    }
}

/// One value per column with zeros up to whole panels, so that tiles can read it without a tail.
pub(crate) fn padded_vector<V: Copy + Default>(values: impl Deref<Target = [V]>) -> Buffer<V> {
    let padded = values.len().next_multiple_of(PANEL);
    let mut out = Buffer::with_capacity(padded);
    out.extend_from_slice(&values);
    out.resize(padded, V::default());
    out
}
