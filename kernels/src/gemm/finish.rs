//! What happens to a tile before it is stored.
#![allow(unsafe_code, reason = "writes disjoint parts of a shared output")]

use crate::activation::Activation;
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
        for r in 0..rows {
            let at = (row + r) * self.row_stride + column;
            for c in (0..columns).step_by(S::LANES) {
                let valid = self.n.saturating_sub(column + c).min(S::LANES);
                // SAFETY: the tile is readable; `valid` keeps reads and writes within the n columns of the result.
                unsafe {
                    let value = s.load(tile.add(r * columns + c));
                    self.finish(s, value, column + c, at + c, valid);
                }
            }
        }
    }
}

impl<T: Element> Finish<'_, T> {
    /// # Safety
    /// `at..at + valid` must lie within `out` (and the residual).
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, mut value: S::F, column: usize, at: usize, valid: usize) {
        // SAFETY: bias and gate are padded to whole panels; the rest is this function's contract.
        unsafe {
            if let Some(bias) = self.bias {
                value = s.add(value, s.load(bias.as_ptr().add(column)));
            }
            if let Some(gate) = self.gate {
                value = s.mul(value, s.load(gate.as_ptr().add(column)));
            }
            let whole = valid == S::LANES;
            if let Some(residual) = self.residual {
                let from = residual.add(at);
                let old = if whole { T::load(s, from) } else { T::load_first(s, from, valid) };
                value = s.add(value, old);
            }
            let value = math::activate(s, value, self.activation);
            if whole {
                T::store(s, self.out.add(at), value);
            } else {
                T::store_first(s, self.out.add(at), value, valid);
            }
        }
    }
}
