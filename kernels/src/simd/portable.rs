//! Vectors in plain Rust, which the compiler maps to whatever the target always has (SSE2, NEON).
#![allow(unsafe_code, reason = "vector loads and stores take pointers")]

use half::bf16;

use super::Simd;

const LANES: usize = 8;

/// Eight lanes of plain arithmetic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    type F = [f32; LANES];
    type W = [u32; LANES];
    const LANES: usize = LANES;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        [value; LANES]
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        // Adding 1.5·2²³ leaves no bits for a fraction (|a| < 2²²).
        std::array::from_fn(|i| (a[i] + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    fn scale_by_power(self, x: Self::F, n: Self::F) -> Self::F {
        std::array::from_fn(|i| x[i] * f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn swap_pairs(self, a: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i ^ 1])
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        (a[0] + a[4]) + (a[1] + a[5]) + ((a[2] + a[6]) + (a[3] + a[7]))
    }
    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn splat_word(self, word: u32) -> Self::W {
        [word; LANES]
    }
    #[inline(always)]
    fn dot_f32(self, acc: Self::F, a: Self::W, b: Self::W) -> Self::F {
        std::array::from_fn(|i| acc[i] + f32::from_bits(a[i]) * f32::from_bits(b[i]))
    }
    #[inline(always)]
    fn dot_bf16(self, acc: Self::F, a: Self::W, b: Self::W) -> Self::F {
        let low = |word: u32| f32::from_bits(word << 16);
        let high = |word: u32| f32::from_bits(word & 0xffff_0000);
        std::array::from_fn(|i| acc[i] + low(a[i]) * low(b[i]) + high(a[i]) * high(b[i]))
    }

    #[inline(always)]
    fn dot_int8(self, acc: Self::F, a: Self::W, b: Self::W) -> Self::F {
        let products = |a: u32, b: u32| {
            let (a, b) = (a.to_le_bytes(), b.to_le_bytes().map(u8::cast_signed));
            (0..4).map(|i| i32::from(a[i]) * i32::from(b[i])).sum::<i32>()
        };
        std::array::from_fn(|i| {
            let sum = acc[i].to_bits().cast_signed().wrapping_add(products(a[i], b[i]));
            f32::from_bits(sum.cast_unsigned())
        })
    }
    #[inline(always)]
    fn sum_of_ints(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].to_bits().wrapping_add(b[i].to_bits()).cast_signed() as f32)
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller gives 8 readable elements.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: Self::F) {
        // SAFETY: the caller gives room for 8 elements.
        unsafe { to.cast::<Self::F>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> Self::W {
        // SAFETY: the caller gives 8 readable words.
        unsafe { from.cast::<Self::W>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> Self::F {
        // SAFETY: the caller gives 8 readable elements.
        let halves = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        halves.map(|h| f32::from_bits(u32::from(h) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, value: Self::F) {
        let halves = value.map(|v| {
            let bits = v.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
            ((if v.is_nan() { bits | 0x0040_0000 } else { rounded }) >> 16) as u16
        });
        // SAFETY: the caller gives room for 8 elements.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(halves) }
    }
}
