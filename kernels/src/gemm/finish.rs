//! What happens to a tile before it is stored.
#![allow(unsafe_code, reason = "writes disjoint parts of a shared output")]

use crate::activation::Activation;
use crate::elementwise::{load_up_to, store_up_to};
use crate::simd::{Element, Simd, math};
use crate::tensor::Dtype;

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
        let mut c = 0;
        while c < place.columns {
            // SAFETY: the same contract; the columns are whole vectors.
            unsafe {
                if WHOLE && c + 2 * S::LANES <= place.columns {
                    self.vectors::<S, 2, WHOLE>(s, place, c, activation);
                    c += 2 * S::LANES;
                } else {
                    self.vectors::<S, 1, WHOLE>(s, place, c, activation);
                    c += S::LANES;
                }
            }
        }
    }

    /// All rows of VECTORS vectors of columns, `c` columns into the tile.
    ///
    /// # Safety
    /// As [`Epilogue::store`]; WHOLE only when no column is past n, and then only may VECTORS be 2.
    #[inline(always)]
    unsafe fn vectors<S: Simd, const VECTORS: usize, const WHOLE: bool>(
        &self,
        s: S,
        place: Place,
        c: usize,
        activation: Activation,
    ) {
        let column = place.column + c;
        let valid = if WHOLE { S::LANES } else { self.n.saturating_sub(column).min(S::LANES) };
        // SAFETY: bias, gate and scales are padded to whole panels; corrections are as wide as floats.
        let (bias, gate, scale, corrections) = unsafe {
            let of = |values: &[f32]| values.as_ptr().wrapping_add(column);
            let scales = self.scales.map(|scales| (of(scales.columns), scales.corrections.as_ptr().add(column).cast()));
            (
                load_vectors::<S, VECTORS>(s, self.bias.map(of)),
                load_vectors::<S, VECTORS>(s, self.gate.map(of)),
                load_vectors::<S, VECTORS>(s, scales.map(|(columns, _)| columns)),
                load_vectors::<S, VECTORS>(s, scales.map(|(_, corrections)| corrections)),
            )
        };
        for r in 0..place.rows {
            let at = (place.row + r) * self.row_stride + column;
            // SAFETY: the tile is readable; there is a scale for every row; `valid` keeps reads and writes within the n
            // columns of the result.
            unsafe {
                let tile = place.tile.add(r * place.columns + c);
                let mut values = load_vectors::<S, VECTORS>(s, Some(tile));
                if let Some(scales) = self.scales {
                    let row = s.splat(*scales.rows.get_unchecked(place.row + r));
                    for v in 0..VECTORS {
                        values[v] = s.mul(s.mul(s.sum_of_ints(values[v], corrections[v]), row), scale[v]);
                    }
                }
                for (value, bias) in values.iter_mut().zip(bias) {
                    *value = s.add(*value, bias);
                }
                if self.gate.is_some() {
                    for (value, gate) in values.iter_mut().zip(gate) {
                        *value = s.mul(*value, gate);
                    }
                }
                if let Some(residual) = self.residual {
                    for (v, value) in values.iter_mut().enumerate() {
                        *value = s.add(*value, load_up_to(s, residual.add(at + v * S::LANES), valid));
                    }
                }
                for value in &mut values {
                    *value = match T::DTYPE {
                        Dtype::F32 => math::activate(s, *value, activation),
                        Dtype::Bf16 => math::activate_for_bf16(s, *value, activation),
                    };
                }
                if VECTORS == 2 {
                    T::store_pair(s, self.out.add(at), values[0], values[VECTORS - 1]);
                } else {
                    store_up_to(s, self.out.add(at), values[0], valid);
                }
            }
        }
    }
}

/// Vectors from `from` on, or zeros.
///
/// # Safety
/// They must be readable.
#[inline(always)]
unsafe fn load_vectors<S: Simd, const VECTORS: usize>(s: S, from: Option<*const f32>) -> [S::F; VECTORS] {
    let mut values = [s.splat(0.0); VECTORS];
    if let Some(from) = from {
        for (v, value) in values.iter_mut().enumerate() {
            // SAFETY: the caller's contract.
            *value = unsafe { s.load(from.add(v * S::LANES)) };
        }
    }
    values
}
