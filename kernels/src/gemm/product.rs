//! The parallel driver for products of a dense matrix.
#![allow(unsafe_code, reason = "tasks write disjoint rows and columns of one output")]

use std::ops::Deref;

use super::{
    Bf16Product, F32Product, Finish, Int8Product, Left, Product, QuantisedRows, Scales, Segment, Tiles, block,
};
use crate::buffer::Buffer;
use crate::packed::{Format, PANEL, PackedMatrix};
use crate::parallel::{self, Shared};
use crate::simd::{Element, Isa, Kernel};
use crate::tensor::{Dtype, Tensor};

/// Most rows of A that a task handles: with k of a few thousand they fit in the second-level cache.
const TASK_ROWS_MAX: usize = 96;
const TASK_ROWS_MIN: usize = 24;

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

/// [`linear_product`] of m rows of words.
fn product_of_words<T: Element>(isa: Isa, words: *const u32, m: usize, weight: &PackedMatrix, finish: Finish<'_, T>) {
    let k = weight.k();
    let steps = weight.steps();
    let panels = weight.n().div_ceil(PANEL);

    let wanted = 4 * rayon::current_num_threads();
    let rows = m.div_ceil(wanted).next_multiple_of(16).clamp(TASK_ROWS_MIN, TASK_ROWS_MAX);
    let row_tasks = m.div_ceil(rows);
    let panel_tasks = wanted.div_ceil(row_tasks.max(1)).min(panels);
    let shared = SharedRows { words: Shared::new_const(words), out: Shared::from_pointer(finish.out) };
    let residual = finish.residual.map(Shared::new_const);
    let (bias, gate, activation) = (finish.bias, finish.gate, finish.activation);
    let (n, scales, row_stride) = (finish.n, finish.scales, finish.row_stride);

    parallel::for_each(row_tasks * panel_tasks, 2 * m * k * weight.n() / 16, |task| {
        let first = task / panel_tasks * rows;
        let split = task % panel_tasks;
        let segments = [Segment { a: 0, b: 0 }];
        let left = Left {
            words: shared.words.get().wrapping_add(first * steps).cast_const(),
            row_stride: steps,
            segments: &segments,
            steps,
        };
        let offset = first * row_stride;
        let out = shared.out.get().wrapping_add(offset);
        let residual = residual.map(|r| r.get().wrapping_add(offset).cast_const());
        let rows = rows.min(m - first);
        let scales = scales.map(|scales| Scales { rows: &scales.rows[first..first + rows], ..scales });
        isa.run(Rows {
            left,
            rows,
            right: weight,
            panels: panels * split / panel_tasks..panels * (split + 1) / panel_tasks,
            finish: Finish { n, scales, bias, gate, residual, activation, out, row_stride },
        });
    });
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
    pub(crate) panels: std::ops::Range<usize>,
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
