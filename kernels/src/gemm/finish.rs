//! What happens to a tile before it is stored.
#![allow(unsafe_code, reason = "writes disjoint parts of a shared output")]

use crate::activation::Activation;
use crate::elementwise::{load_up_to, store_up_to};
use crate::simd::{Element, Simd, math};

/// Takes finished tiles.
pub(crate) trait Epilogue {
    /// Takes `rows` rows from `row` on and the `columns` columns from `column` on, dense at `tile`. Columns may reach past
    /// the matrix's own by the padding of its last panel.
    ///
    /// # Safety
    /// The tile must be readable and the rows and columns within what the epilogue was made for.
    unsafe fn store<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize, columns: usize, tile: *const f32);
}

/// What the i32 sums of an int8 product stand for: (sum + correction of the column) · scale of the row · scale of the column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scales<'a> {
    /// One per row of the result.
    pub(crate) rows: &'a [f32],
    /// At least n values, padded to whole panels; so are the corrections.
    pub(crate) columns: &'a [f32],
    pub(crate) corrections: &'a [i32],
}

/// `out = activation((tile + bias) · gate + residual)`, stored as `T`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finish<'a, T> {
    /// Columns of the result.
    pub(crate) n: usize,
    /// For int8 products, from the result's row 0 on.
    pub(crate) scales: Option<Scales<'a>>,
    /// At least n values, padded to whole panels; so is the gate.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) gate: Option<&'a [f32]>,
    /// At the same place in an array laid out like `out`; may be `out` itself.
    pub(crate) residual: Option<*const T>,
    pub(crate) activation: Activation,
    /// Where row 0 goes.
    pub(crate) out: *mut T,
    /// Elements from one row to the next.
    pub(crate) row_stride: usize,
}

impl<T: Element> Epilogue for Finish<'_, T> {
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, row: usize, rows: usize, column: usize, columns: usize, tile: *const f32) {
        let place = Place { row, rows, column, columns, tile };
        // SAFETY: the same contract.
        unsafe {
            match self.activation {
                Activation::None => self.activated::<S, { NONE }>(s, place),
                Activation::Gelu => self.activated::<S, { GELU }>(s, place),
                Activation::GeluTanh => self.activated::<S, { GELU_TANH }>(s, place),
                Activation::Silu => self.activated::<S, { SILU }>(s, place),
                Activation::LeakyRelu(_) => self.activated::<S, { LEAKY_RELU }>(s, place),
            }
        }
    }
}

// An activation that is a constant of the loop is compiled into it; with a short k the epilogue takes as long as the product.
const NONE: u8 = 0;
const GELU: u8 = 1;
const GELU_TANH: u8 = 2;
const SILU: u8 = 3;
const LEAKY_RELU: u8 = 4;

/// The arguments of [`Epilogue::store`].
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
    tile: *const f32,
}

impl<T: Element> Finish<'_, T> {
    /// # Safety
    /// As [`Epilogue::store`].
    #[inline(always)]
    unsafe fn activated<S: Simd, const ACTIVATION: u8>(&self, s: S, place: Place) {
        // SAFETY: the same contract.
        unsafe {
            if place.column + place.columns <= self.n {
                self.rows::<S, ACTIVATION, true>(s, place);
            } else {
                self.rows::<S, ACTIVATION, false>(s, place);
            }
        }
    }

    /// # Safety
    /// As [`Epilogue::store`]; ACTIVATION must be the code of `self.activation`, WHOLE only when no column is past n.
    #[inline(always)]
    unsafe fn rows<S: Simd, const ACTIVATION: u8, const WHOLE: bool>(&self, s: S, place: Place) {
        let activation = match (ACTIVATION, self.activation) {
            (GELU, _) => Activation::Gelu,
            (GELU_TANH, _) => Activation::GeluTanh,
            (SILU, _) => Activation::Silu,
            (LEAKY_RELU, activation) => activation,
            _ => Activation::None,
        };
        for c in (0..place.columns).step_by(S::LANES) {
            let column = place.column + c;
            let valid = if WHOLE { S::LANES } else { self.n.saturating_sub(column).min(S::LANES) };
            // SAFETY: bias and gate are padded to whole panels.
            let bias = self.bias.map_or(s.splat(0.0), |b| unsafe { s.load(b.as_ptr().add(column)) });
            // SAFETY: as above.
            let gate = self.gate.map(|g| unsafe { s.load(g.as_ptr().add(column)) });
            // SAFETY: as above; corrections are as wide as floats.
            let scales = self.scales.map(|scales| unsafe {
                let corrections = s.load(scales.corrections.as_ptr().add(column).cast());
                (scales.rows, s.load(scales.columns.as_ptr().add(column)), corrections)
            });
            for r in 0..place.rows {
                let at = (place.row + r) * self.row_stride + column;
                // SAFETY: the tile is readable; there is a scale for every row; `valid` keeps reads and writes within the n columns of the result.
                unsafe {
                    let mut value = s.load(place.tile.add(r * place.columns + c));
                    if let Some((rows, scale, corrections)) = scales {
                        let sum = s.sum_of_ints(value, corrections);
                        value = s.mul(s.mul(sum, s.splat(*rows.get_unchecked(place.row + r))), scale);
                    }
                    value = s.add(value, bias);
                    if let Some(gate) = gate {
                        value = s.mul(value, gate);
                    }
                    if let Some(residual) = self.residual {
                        value = s.add(value, load_up_to(s, residual.add(at), valid));
                    }
                    store_up_to(s, self.out.add(at), math::activate(s, value, activation), valid);
                }
            }
        }
    }
}
