//! AVX-512: 16 lanes, in three tiers: without bf16, with the dot products of bf16 and int8, with matrix tiles besides.
#![allow(unsafe_code, reason = "vendor intrinsics")]

use std::arch::x86_64::*;

use half::bf16;

use super::{Kernel, Simd, amx};

/// AVX-512 F, BW, DQ, VL.
pub(crate) const PLAIN: u8 = 0;
/// And BF16, VNNI.
pub(crate) const BF16: u8 = 1;
/// And AMX-TILE, AMX-BF16, AMX-INT8.
pub(crate) const AMX: u8 = 2;

/// Proof that the tier's instructions are available: made only by the entry functions below.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512<const TIER: u8>(());

/// # Safety
/// The processor must have AVX-512 F, BW, DQ, VL, BF16, VNNI, AVX2, FMA and AMX with tiles for bf16 and int8.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
pub(super) unsafe fn run_amx<K: Kernel>(kernel: K) -> K::Output {
    let output = kernel.run(Avx512::<AMX>(()));
    // SAFETY: the caller has AMX.
    unsafe { amx::release() };
    output
}

/// # Safety
/// The processor must have AVX-512 F, BW, DQ, VL, BF16, VNNI, AVX2 and FMA.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
pub(super) unsafe fn run_bf16<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<BF16>(()))
}

/// # Safety
/// The processor must have AVX-512 F, BW, DQ, VL, AVX2 and FMA.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<PLAIN>(()))
}

impl Avx512<AMX> {
    /// The plain tier, which this one includes.
    #[inline(always)]
    pub(crate) fn plain(self) -> Avx512<PLAIN> {
        Avx512(())
    }
}

/// The body of a trait method that only calls intrinsics on registers.
macro_rules! registers {
    ($body:expr) => {
        // SAFETY: `self` proves that the instruction set is available.
        unsafe { $body }
    };
}

impl<const TIER: u8> Simd for Avx512<TIER> {
    type F = __m512;
    type W = __m512i;
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        registers!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        registers!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        registers!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        registers!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        registers!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        registers!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        registers!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        registers!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn reciprocal(self, a: __m512) -> __m512 {
        registers!({
            // 14 bits by table, then one Newton step: a third of the time of a division.
            let guess = _mm512_rcp14_ps(a);
            let error = _mm512_fnmadd_ps(a, guess, _mm512_set1_ps(1.0));
            _mm512_fmadd_ps(guess, error, guess)
        })
    }
    #[inline(always)]
    fn rough_reciprocal(self, a: __m512) -> __m512 {
        registers!(_mm512_rcp14_ps(a))
    }
    #[inline(always)]
    fn rough_exp2(self, a: __m512) -> __m512 {
        registers!({
            // Smaller powers, and reciprocals of larger ones, are subnormal, which costs a microcode assist.
            let a = _mm512_max_ps(_mm512_min_ps(a, _mm512_set1_ps(125.0)), _mm512_set1_ps(-125.0));
            // a − ⌊a⌋; the scaling takes ⌊a⌋ by itself.
            let f = _mm512_reduce_ps::<1>(a);
            // The cubic with the least relative error over 0..1, 7.5e-5.
            let p = _mm512_fmadd_ps(_mm512_set1_ps(7.802_452e-2), f, _mm512_set1_ps(2.260_671_7e-1));
            let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.958_335e-1));
            _mm512_scalef_ps(_mm512_fmadd_ps(p, f, _mm512_set1_ps(9.999_252e-1)), a)
        })
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        registers!(_mm512_roundscale_ps::<0>(a))
    }
    #[inline(always)]
    fn scale_by_power(self, x: __m512, n: __m512) -> __m512 {
        registers!(_mm512_scalef_ps(x, n))
    }
    #[inline(always)]
    fn swap_pairs(self, a: __m512) -> __m512 {
        registers!(_mm512_permute_ps::<0b10_11_00_01>(a))
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        registers!(_mm512_reduce_add_ps(a))
    }
    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        registers!(_mm512_reduce_max_ps(a))
    }

    #[inline(always)]
    fn splat_word(self, word: u32) -> __m512i {
        registers!(_mm512_set1_epi32(word.cast_signed()))
    }
    #[inline(always)]
    fn dot_f32(self, acc: __m512, a: __m512i, b: __m512i) -> __m512 {
        registers!(_mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), acc))
    }
    #[inline(always)]
    fn dot_bf16(self, acc: __m512, a: __m512i, b: __m512i) -> __m512 {
        registers!(if TIER >= BF16 {
            // The two vector types have the same 512 bits.
            _mm512_dpbf16_ps(
                acc,
                std::mem::transmute::<__m512i, __m512bh>(a),
                std::mem::transmute::<__m512i, __m512bh>(b),
            )
        } else {
            let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            let low = |words| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words));
            let acc = _mm512_fmadd_ps(low(a), low(b), acc);
            let (a, b) = (_mm512_and_si512(a, high), _mm512_and_si512(b, high));
            _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), acc)
        })
    }

    #[inline(always)]
    fn dot_int8(self, acc: __m512, a: __m512i, b: __m512i) -> __m512 {
        registers!({
            let acc = _mm512_castps_si512(acc);
            _mm512_castsi512_ps(if TIER >= BF16 {
                _mm512_dpbusd_epi32(acc, a, b)
            } else {
                // Even and odd bytes in 16 bits each; unlike `vpmaddubsw`, this cannot saturate.
                let (even, odd) = (_mm512_and_si512(a, _mm512_set1_epi16(0xff)), _mm512_srli_epi16::<8>(a));
                let (b_even, b_odd) = (_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b)), _mm512_srai_epi16::<8>(b));
                let sum = _mm512_add_epi32(_mm512_madd_epi16(even, b_even), _mm512_madd_epi16(odd, b_odd));
                _mm512_add_epi32(acc, sum)
            })
        })
    }
    #[inline(always)]
    fn sum_of_ints(self, a: __m512, b: __m512) -> __m512 {
        registers!(_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b))))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: the caller gives 16 readable elements.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: __m512) {
        // SAFETY: the caller gives room for 16 elements.
        unsafe { _mm512_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> __m512i {
        // SAFETY: the caller gives 16 readable words.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m512 {
        // SAFETY: the caller gives 16 readable elements.
        unsafe { widen(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, value: __m512) {
        // SAFETY: the caller gives room for 16 elements.
        unsafe { _mm256_storeu_si256(to.cast(), narrow::<TIER>(value)) }
    }
    #[inline(always)]
    unsafe fn store_bf16_pair(self, to: *mut bf16, low: __m512, high: __m512) {
        // SAFETY: the caller gives room for 32 elements; the transmuted types have the same 512 bits.
        unsafe {
            if TIER >= BF16 {
                let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                return _mm512_storeu_si512(to.cast(), halves);
            }
            self.store_bf16(to, low);
            self.store_bf16(to.add(16), high);
        }
    }
    #[inline(always)]
    unsafe fn store_offset_bytes(self, to: *mut u8, value: __m512, n: usize) {
        // SAFETY: the caller gives room for n bytes; masked lanes are not touched.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value));
            _mm_mask_storeu_epi8(to.cast(), first(n), _mm_xor_si128(bytes, _mm_set1_epi8(i8::MIN)));
        }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, n: usize) -> __m512 {
        // SAFETY: the caller gives n readable elements; masked lanes are not touched.
        unsafe { _mm512_maskz_loadu_ps(first(n), from) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, value: __m512, n: usize) {
        // SAFETY: the caller gives room for n elements; masked lanes are not touched.
        unsafe { _mm512_mask_storeu_ps(to, first(n), value) }
    }
    #[inline(always)]
    unsafe fn load_first_bf16(self, from: *const bf16, n: usize) -> __m512 {
        // SAFETY: the caller gives n readable elements; masked lanes are not touched.
        unsafe { widen(_mm256_maskz_loadu_epi16(first(n), from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_first_bf16(self, to: *mut bf16, value: __m512, n: usize) {
        // SAFETY: the caller gives room for n elements; masked lanes are not touched.
        unsafe { _mm256_mask_storeu_epi16(to.cast(), first(n), narrow::<TIER>(value)) }
    }
}

/// A mask of the first n ≤ 16 lanes.
#[inline(always)]
fn first(n: usize) -> u16 {
    ((1u32 << n) - 1) as u16
}

#[inline(always)]
unsafe fn widen(halves: __m256i) -> __m512 {
    // SAFETY: called only from methods of `Avx512`, whose existence proves the instruction set.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves))) }
}

/// Rounds to the nearest bf16, ties to even.
#[inline(always)]
unsafe fn narrow<const TIER: u8>(value: __m512) -> __m256i {
    // SAFETY: called only from methods of `Avx512`, whose existence proves the instruction set; the transmuted types have
    // the same 256 bits.
    unsafe {
        if TIER >= BF16 {
            return std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(value));
        }
        let bits = _mm512_castps_si512(value);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet)))
    }
}
