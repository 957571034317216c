//! Instruction sets: which one runs, and the vector operations that kernels are written in.
//!
//! A kernel is written once, generic over `Simd`, and compiled for each instruction set. `Isa::run` enters the copy for
//! the level in force, inside a function that enables the set's target features; everything below it is inlined.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod element;
pub(crate) mod math;
mod portable;

use std::cell::Cell;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
pub(crate) use element::Element;
pub(crate) use portable::Portable;

use crate::error::{Result, argument_error};

/// A way to execute the operations, from the plainest to the fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// The plain references; slow, single-threaded, summing in f64. What the other levels are tested against.
    Reference,
    /// Vectors that any processor has.
    Portable,
    /// x86-64 with AVX2 and FMA; bf16 products are computed in f32.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL; bf16 products are computed in f32.
    Avx512,
    /// AVX-512 with the dot products of bf16 and of int8 (VNNI).
    Avx512Bf16,
    /// The same, with bf16 and int8 products on AMX tiles.
    Amx,
}

/// The levels this machine can run, plainest first.
pub fn available() -> Vec<Level> {
    let all = [Level::Reference, Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Amx];
    all.into_iter().filter(|&level| is_available(level)).collect()
}

/// The level that operations called from this thread use: the forced one, else the fastest available.
pub fn level() -> Level {
    FORCED.get().unwrap_or_else(detect)
}

/// Runs `f` with every operation *called from this thread* at `level`; an error when the machine lacks it.
pub fn force<R>(level: Level, f: impl FnOnce() -> R) -> Result<R> {
    if !is_available(level) {
        return argument_error("simd::force", format!("this machine cannot run {level:?}"));
    }
    struct Restore(Option<Level>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.replace(Some(level)));
    Ok(f())
}

thread_local! {
    static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
}

fn detect() -> Level {
    let fastest_first = [Level::Amx, Level::Avx512Bf16, Level::Avx512, Level::Avx2];
    fastest_first.into_iter().find(|&level| is_available(level)).unwrap_or(Level::Portable)
}

#[cfg(target_arch = "x86_64")]
fn is_available(level: Level) -> bool {
    let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = || {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
    };
    let bf16 = || is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vnni");
    match level {
        Level::Reference | Level::Portable => true,
        Level::Avx2 => avx2(),
        Level::Avx512 => avx2() && avx512(),
        Level::Avx512Bf16 => avx2() && avx512() && bf16(),
        Level::Amx => avx2() && avx512() && bf16() && amx::is_available(),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn is_available(level: Level) -> bool {
    matches!(level, Level::Reference | Level::Portable)
}

/// A level other than `Reference` that is known to be available. Taken once per operation and handed to its tasks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Isa(Level);

impl Isa {
    /// The level in force, or `None` when that is the reference.
    pub(crate) fn current() -> Option<Self> {
        match level() {
            Level::Reference => None,
            level => Some(Self(level)),
        }
    }

    /// Whether bf16 products run on matrix tiles.
    pub(crate) fn has_matrix_tiles(self) -> bool {
        self.0 == Level::Amx
    }

    /// Runs the copy of `kernel` that is compiled for this level.
    #[allow(unsafe_code, reason = "entering code compiled for target features that were detected")]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: an `Isa` holds only levels that `is_available` has found on this machine.
            #[cfg(target_arch = "x86_64")]
            Level::Amx => unsafe { avx512::run_amx(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => unsafe { avx512::run_bf16(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::run(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::run(kernel) },
            _ => kernel.run(Portable),
        }
    }
}

/// Work that can be compiled for any instruction set. `run` must be `#[inline(always)]`, so that it is compiled inside the
/// function that enables the features.
pub(crate) trait Kernel {
    /// What the work returns.
    type Output;
    fn run<S: crate::gemm::Tiles>(self, simd: S) -> Self::Output;
}

/// Vectors of `LANES` f32, and of as many 32-bit words.
///
/// A value of an implementing type is proof that the instruction set may be used, so the register operations are safe;
/// those that touch memory are unsafe and require `LANES` (or `n`) elements at the pointer, aligned as their type.
#[allow(unsafe_code, reason = "vector loads and stores take pointers")]
pub(crate) trait Simd: Copy {
    type F: Copy;
    type W: Copy;
    const LANES: usize;

    fn splat(self, value: f32) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// a·b + c
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// 1 / a for normal a, to about one unit in the last place.
    #[inline(always)]
    fn reciprocal(self, a: Self::F) -> Self::F {
        self.div(self.splat(1.0), a)
    }
    /// [`Simd::reciprocal`] to 2⁻¹³.
    #[inline(always)]
    fn rough_reciprocal(self, a: Self::F) -> Self::F {
        self.reciprocal(a)
    }
    /// 2ᵃ to 2⁻¹², for a below −125 about 0, for a above 125 a number so large that its reciprocal is about 0.
    #[inline(always)]
    fn rough_exp2(self, a: Self::F) -> Self::F {
        math::exp2(self, self.min(a, self.splat(125.0)))
    }
    /// The nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// x·2ⁿ for integral n in −126..=127.
    fn scale_by_power(self, x: Self::F, n: Self::F) -> Self::F;
    /// Swaps the two lanes of every pair.
    fn swap_pairs(self, a: Self::F) -> Self::F;
    /// Sum of the lanes.
    fn sum(self, a: Self::F) -> f32;
    /// Largest lane.
    fn largest(self, a: Self::F) -> f32;

    fn splat_word(self, word: u32) -> Self::W;
    /// acc + a·b with words holding f32.
    fn dot_f32(self, acc: Self::F, a: Self::W, b: Self::W) -> Self::F;
    /// acc + a₀·b₀ + a₁·b₁ with words holding pairs of bf16.
    fn dot_bf16(self, acc: Self::F, a: Self::W, b: Self::W) -> Self::F;

    /// acc + a₀·b₀ + … + a₃·b₃ with words holding four bytes, a's unsigned and b's signed. Sums are i32 that wrap, kept in a
    /// vector of floats as bits.
    fn dot_int8(self, acc: Self::F, a: Self::W, b: Self::W) -> Self::F;
    /// a + b as numbers, where both hold i32 as bits.
    fn sum_of_ints(self, a: Self::F, b: Self::F) -> Self::F;

    unsafe fn load(self, from: *const f32) -> Self::F;
    unsafe fn store(self, to: *mut f32, value: Self::F);
    unsafe fn load_words(self, from: *const u32) -> Self::W;
    unsafe fn load_bf16(self, from: *const half::bf16) -> Self::F;
    unsafe fn store_bf16(self, to: *mut half::bf16, value: Self::F);

    /// Stores two vectors, one behind the other.
    #[inline(always)]
    unsafe fn store_bf16_pair(self, to: *mut half::bf16, low: Self::F, high: Self::F) {
        // SAFETY: the caller gives room for 2 · LANES elements.
        unsafe {
            self.store_bf16(to, low);
            self.store_bf16(to.add(Self::LANES), high);
        }
    }

    /// Stores the first `n` ≤ `LANES` lanes, whole numbers in −128..=127, each as a byte of the number + 128.
    #[inline(always)]
    unsafe fn store_offset_bytes(self, to: *mut u8, value: Self::F, n: usize) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the caller gives room for n elements and n ≤ LANES ≤ 16.
        unsafe {
            self.store(lanes.as_mut_ptr(), value);
            for (i, lane) in lanes[..n].iter().enumerate() {
                to.add(i).write((lane + 128.0) as u8);
            }
        }
    }

    /// The first `n` ≤ `LANES` elements, zeros in the other lanes.
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, n: usize) -> Self::F {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the caller gives n readable elements and n ≤ LANES ≤ 16.
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), n);
            self.load(lanes.as_ptr())
        }
    }

    /// Stores the first `n` ≤ `LANES` lanes.
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, value: Self::F, n: usize) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the caller gives room for n elements and n ≤ LANES ≤ 16.
        unsafe {
            self.store(lanes.as_mut_ptr(), value);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, n);
        }
    }

    /// [`Simd::load_first`] of bf16.
    #[inline(always)]
    unsafe fn load_first_bf16(self, from: *const half::bf16, n: usize) -> Self::F {
        let mut lanes = [half::bf16::ZERO; 16];
        // SAFETY: the caller gives n readable elements and n ≤ LANES ≤ 16.
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), n);
            self.load_bf16(lanes.as_ptr())
        }
    }

    /// [`Simd::store_first`] of bf16.
    #[inline(always)]
    unsafe fn store_first_bf16(self, to: *mut half::bf16, value: Self::F, n: usize) {
        let mut lanes = [half::bf16::ZERO; 16];
        // SAFETY: the caller gives room for n elements and n ≤ LANES ≤ 16.
        unsafe {
            self.store_bf16(lanes.as_mut_ptr(), value);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forced_level_holds_inside_the_call_only() {
        let before = level();
        assert_eq!(force(Level::Reference, level).unwrap(), Level::Reference);
        let panicked = std::panic::catch_unwind(|| force(Level::Portable, || panic!("expected by this test")));
        assert!(panicked.is_err());
        assert_eq!(level(), before);
    }

    #[test]
    fn the_detected_level_is_the_fastest_available() {
        assert_eq!(Some(&detect()), available().last());
    }
}
