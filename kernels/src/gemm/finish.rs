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

/// `out = activation((tile + bias) · gate + residual)`, stored as `T`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finish<'a, T> {
    /// Columns of the result.
    pub(crate) n: usize,
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
        let whole = column + columns <= self.n;
        let plain = self.activation == Activation::None && self.gate.is_none() && self.residual.is_none();
        // SAFETY: the same contract. The common cases are compiled apart: with a short k this takes as long as the product.
        unsafe {
            match (whole, plain) {
                (true, true) => self.rows::<S, true, true>(s, row, rows, column, columns, tile),
                (true, false) => self.rows::<S, true, false>(s, row, rows, column, columns, tile),
                (false, _) => self.rows::<S, false, false>(s, row, rows, column, columns, tile),
            }
        }
    }
}

impl<T: Element> Finish<'_, T> {
    /// # Safety
    /// As [`Epilogue::store`]; WHOLE only when no column is past n, PLAIN only when there is nothing but a bias.
    #[inline(always)]
    unsafe fn rows<S: Simd, const WHOLE: bool, const PLAIN: bool>(
        &self,
        s: S,
        row: usize,
        rows: usize,
        column: usize,
        columns: usize,
        tile: *const f32,
    ) {
        for c in (0..columns).step_by(S::LANES) {
            let valid = if WHOLE { S::LANES } else { self.n.saturating_sub(column + c).min(S::LANES) };
            // SAFETY: bias and gate are padded to whole panels.
            let bias = self.bias.map_or(s.splat(0.0), |b| unsafe { s.load(b.as_ptr().add(column + c)) });
            // SAFETY: as above.
            let gate = self.gate.map(|g| unsafe { s.load(g.as_ptr().add(column + c)) });
            for r in 0..rows {
                let at = (row + r) * self.row_stride + column + c;
                // SAFETY: the tile is readable; `valid` keeps reads and writes within the n columns of the result.
                unsafe {
                    let mut value = s.add(s.load(tile.add(r * columns + c)), bias);
                    if !PLAIN {
                        if let Some(gate) = gate {
                            value = s.mul(value, gate);
                        }
                        if let Some(residual) = self.residual {
                            value = s.add(value, load_up_to(s, residual.add(at), valid));
                        }
                        value = math::activate(s, value, self.activation);
                    }
                    store_up_to(s, self.out.add(at), value, valid);
                }
            }
        }
    }
}
