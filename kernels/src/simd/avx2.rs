//! AVX2 with FMA: 8 lanes.
#![allow(unsafe_code, reason = "vendor intrinsics")]

use std::arch::x86_64::*;

use half::bf16;

use super::{Kernel, Simd};

/// Proof that AVX2 and FMA are available: made only by the entry function below.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

/// # Safety
/// The processor must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// The body of a trait method that only calls intrinsics on registers.
macro_rules! registers {
    ($body:expr) => {
        // SAFETY: `self` proves that the instruction set is available.
        unsafe { $body }
    };
}

impl Simd for Avx2 {
    type F = __m256;
    type W = __m256i;
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        registers!(_mm256_set1_ps(value))
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        registers!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        registers!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        registers!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        registers!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        registers!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        registers!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        registers!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        registers!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn scale_by_power(self, x: __m256, n: __m256) -> __m256 {
        registers!({
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        })
    }
    #[inline(always)]
    fn swap_pairs(self, a: __m256) -> __m256 {
        registers!(_mm256_permute_ps::<0b10_11_00_01>(a))
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        let lanes = self.lanes(a);
        let (low, high) = lanes.split_at(4);
        (low[0] + high[0]) + (low[1] + high[1]) + ((low[2] + high[2]) + (low[3] + high[3]))
    }
    #[inline(always)]
    fn largest(self, a: __m256) -> f32 {
        self.lanes(a).into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn splat_word(self, word: u32) -> __m256i {
        registers!(_mm256_set1_epi32(word.cast_signed()))
    }
    #[inline(always)]
    fn dot_f32(self, acc: __m256, a: __m256i, b: __m256i) -> __m256 {
        registers!(_mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), acc))
    }
    #[inline(always)]
    fn dot_bf16(self, acc: __m256, a: __m256i, b: __m256i) -> __m256 {
        registers!({
            let high = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            let low = |words| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words));
            let acc = _mm256_fmadd_ps(low(a), low(b), acc);
            let (a, b) = (_mm256_and_si256(a, high), _mm256_and_si256(b, high));
            _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), acc)
        })
    }

    #[inline(always)]
    fn dot_int8(self, acc: __m256, a: __m256i, b: __m256i) -> __m256 {
        registers!({
            // Even and odd bytes in 16 bits each; unlike `vpmaddubsw`, this cannot saturate.
            let (even, odd) = (_mm256_and_si256(a, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(a));
            let (b_even, b_odd) = (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b)), _mm256_srai_epi16::<8>(b));
            let sum = _mm256_add_epi32(_mm256_madd_epi16(even, b_even), _mm256_madd_epi16(odd, b_odd));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(acc), sum))
        })
    }
    #[inline(always)]
    fn sum_of_ints(self, a: __m256, b: __m256) -> __m256 {
        registers!(_mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b))))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: the caller gives 8 readable elements.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: __m256) {
        // SAFETY: the caller gives room for 8 elements.
        unsafe { _mm256_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> __m256i {
        // SAFETY: the caller gives 8 readable words.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m256 {
        // SAFETY: the caller gives 8 readable elements.
        unsafe {
            let halves = _mm_loadu_si128(from.cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, value: __m256) {
        // SAFETY: the caller gives room for 8 elements.
        unsafe {
            let bits = _mm256_castps_si256(value);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let words = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            // Packing works within 128-bit halves; the permutation brings the two results together.
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(words, words));
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed));
        }
    }
}

impl Avx2 {
    #[inline(always)]
    fn lanes(self, a: __m256) -> [f32; 8] {
        let mut lanes = [0.0; 8];
        // SAFETY: the array has room for the 8 lanes.
        unsafe { self.store(lanes.as_mut_ptr(), a) };
        lanes
    }
}
