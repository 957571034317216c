//! Scores to weights: the exponential of the softmax, in 16-bit integers.
#![allow(unsafe_code, reason = "rows are read and written through raw pointers")]

use std::arch::x86_64::*;

use super::{KEYS, QUERIES};
use crate::packed::LINE;

/// Smallest exponent of 2 that a weight may have.
pub(super) const EXPONENT_MIN: f32 = -126.0;
/// Floats from 2¹⁵ to 2¹⁶ have 8 bits after the point; 127 is the bias of the exponent.
pub(super) const FIXED_POINT: f32 = 32_768.0 + 127.0;

/// Turns a tick's scores into weights, some rows at a time.
pub(super) struct Soften {
    /// [32 rows, 32 keys]
    pub(super) scores: *const f32,
    /// One per row.
    pub(super) references: *const f32,
    /// 32 rows of 32 bf16.
    pub(super) weights: *mut __m512i,
    /// The next row.
    pub(super) row: usize,
    pub(super) scale: __m512,
    /// The lanes of weights that count.
    pub(super) visible: u32,
}

impl Soften {
    /// The next ROWS rows, if there are any; DEEP when exponents may be too small.
    ///
    /// # Safety
    /// The pointers must be valid for 32 rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    #[inline]
    pub(super) unsafe fn rows<const ROWS: usize, const DEEP: bool>(&mut self) {
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

/// A mask of the weights of the first `n` of 32 keys: lanes hold keys 0, 16, 1, 17, ….
pub(super) fn first_weights(n: usize) -> u32 {
    let is_visible = |lane: usize| lane / 2 + lane % 2 * LINE < n;
    (0..32).filter(|&lane| is_visible(lane)).fold(0, |mask, lane| mask | 1 << lane)
}
