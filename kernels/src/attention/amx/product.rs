//! Products of matrix tiles, with other work between them.
#![allow(unsafe_code, reason = "matrix tiles are loaded and stored through raw pointers")]

use super::{QUERIES, TILE};
use crate::packed::{LINE, Line};
use crate::simd::amx;

/// A matrix tile of bf16 ones.
static ONES: [Line; TILE] = [Line([0x3f80_3f80; LINE]); TILE];

/// Where the four tiles of sums come from or go to: a matrix of 32 by 32 floats, or nowhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) at: *mut f32,
    /// Floats from one row to the next.
    pub(super) row: usize,
}

impl Place {
    pub(super) const NOWHERE: Self = Self { at: std::ptr::null_mut(), row: 0 };

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
    pub(super) unsafe fn store<const T: u8>(self) {
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

/// Sums 0–3 += two tiles of A by two tiles of B, each 16 lines after the other. B is used once, A stays in the first-level
/// cache.
///
/// # Safety
/// The tiles must be configured, the lines readable.
#[inline(always)]
pub(super) unsafe fn product(a: *const Line, b: *const Line, meanwhile: &mut impl FnMut()) {
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
pub(super) unsafe fn first_product(
    a: *const Line,
    b: *const Line,
    before: Place,
    unstored: Place,
    meanwhile: &mut impl FnMut(),
) {
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
pub(super) unsafe fn add_totals(
    weights: &[[Line; QUERIES]],
    before: Place,
    unstored: Place,
    meanwhile: &mut impl FnMut(),
) {
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
