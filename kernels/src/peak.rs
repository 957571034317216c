//! What one core of this machine can do at most, measured: the yardstick of every other figure.
#![allow(unsafe_code, reason = "the probes are single instructions of the level in force")]

use std::hint::black_box;
use std::time::Instant;

use crate::gemm::{Bf16Product, F32Product, Int8Product, Product, Segment, Tile, Tiles};
use crate::packed::{LINE, Line};
#[cfg(target_arch = "x86_64")]
use crate::simd::amx;
use crate::simd::{self, Isa, Kernel, Level};

/// Operations per second of one core; a multiply-add is two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MultiplyRates {
    /// Independent f32 multiply-adds.
    pub f32: f64,
    /// bf16 dot products; the f32 rate where there are none.
    pub bf16: f64,
    /// int8 dot products; the f32 rate where they are made of other instructions.
    pub int8: f64,
}

impl MultiplyRates {
    fn all(rate: f64) -> Self {
        Self { f32: rate, bf16: rate, int8: rate }
    }
}

/// Best of some runs of `work` amounts per call, per second.
fn best(work: f64, mut run: impl FnMut()) -> f64 {
    let mut seconds = f64::INFINITY;
    for _ in 0..20 {
        let begin = Instant::now();
        run();
        seconds = seconds.min(begin.elapsed().as_secs_f64());
    }
    work / seconds
}

/// Bytes read and written by a copy between buffers larger than the second-level cache.
pub fn copy_rate() -> f64 {
    let (from, mut to) = (vec![1.0f32; 16 << 20], vec![0.0f32; 16 << 20]);
    best(2.0 * 4.0 * from.len() as f64, || black_box(&mut to).copy_from_slice(black_box(&from)))
}

/// Measures one core with the instructions of the level in force. Takes a few milliseconds.
#[cfg(target_arch = "x86_64")]
pub fn multiply_rates() -> MultiplyRates {
    const ROUNDS: usize = 300_000;
    let flop = |lanes: f64| ROUNDS as f64 * 12.0 * lanes * 2.0;
    let avx512_rate = || {
        // SAFETY: called for levels that include AVX-512, which were detected.
        best(flop(16.0), || unsafe {
            black_box(avx512(ROUNDS));
        })
    };
    match simd::level() {
        Level::Amx => {
            // SAFETY: the level in force was detected on this machine.
            let (bf16, int8) = unsafe { (matrix_tiles::<false, false>(), matrix_tiles::<true, false>()) };
            MultiplyRates { f32: avx512_rate(), bf16, int8 }
        }
        Level::Avx512Bf16 => {
            // SAFETY: as above.
            let bf16 = best(flop(32.0), || unsafe {
                black_box(avx512_bf16(ROUNDS));
            });
            // SAFETY: as above.
            let int8 = best(flop(64.0), || unsafe {
                black_box(avx512_int8(ROUNDS));
            });
            MultiplyRates { f32: avx512_rate(), bf16, int8 }
        }
        Level::Avx512 => MultiplyRates::all(avx512_rate()),
        Level::Avx2 => {
            // SAFETY: as above.
            let rate = best(flop(8.0), || unsafe {
                black_box(avx2(ROUNDS));
            });
            MultiplyRates::all(rate)
        }
        _ => portable(),
    }
}

/// Measures one core with the instructions of the level in force. Takes a few milliseconds.
#[cfg(not(target_arch = "x86_64"))]
pub fn multiply_rates() -> MultiplyRates {
    portable()
}

/// [`multiply_rates`] with operands that are loaded from the first-level cache for every step, as a product must load them:
/// the most that any product of matrices can reach. Loading costs issue slots, and power that the clock then lacks.
pub fn multiply_rates_from_cache() -> MultiplyRates {
    let Some(isa) = Isa::current() else { return portable() };
    let f32 = isa.run(FromCache(F32Product));
    match simd::level() {
        #[cfg(target_arch = "x86_64")]
        Level::Amx => {
            // SAFETY: the level in force was detected on this machine.
            let (bf16, int8) = unsafe { (matrix_tiles::<false, true>(), matrix_tiles::<true, true>()) };
            MultiplyRates { f32, bf16, int8 }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Bf16 => {
            let (bf16, int8) = (isa.run(FromCache(Bf16Product)), isa.run(FromCache(Int8Product)));
            MultiplyRates { f32, bf16, int8 }
        }
        _ => MultiplyRates::all(f32),
    }
}

/// Operations per second of the largest register tile of a level.
struct FromCache<P>(P);

impl<P: Product> Kernel for FromCache<P> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Tiles>(self, s: S) -> f64 {
        const STEPS: usize = 128;
        const CALLS: usize = 1000;
        let vectors = S::TILE_VECTORS;
        let (rows, columns) = (S::tile_rows(vectors), vectors * S::LANES);
        // Numbers of ordinary size in every format, on whole lines of the cache.
        let words = |count: usize| vec![Line([0x3f81_3f82; LINE]); count.div_ceil(LINE)];
        let (a, b, mut out) = (words(rows * STEPS), words(columns * STEPS), words(rows * columns));
        let segments = [Segment { a: 0, b: 0 }];
        let tile = Tile {
            a: a.as_ptr().cast(),
            a_stride: STEPS,
            segments: &segments,
            steps: STEPS,
            b: b.as_ptr().cast(),
            b_stride: columns,
            out: out.as_mut_ptr().cast(),
        };
        let operations = 2 * rows * columns * STEPS * P::FORMAT.values_per_word() * CALLS;
        best(operations as f64, || {
            for _ in 0..CALLS {
                // SAFETY: the operands hold all steps of all rows and columns, the output all rows.
                unsafe { s.tile::<P>(rows, vectors, black_box(&tile)) };
            }
        })
    }
}

fn portable() -> MultiplyRates {
    const ROUNDS: usize = 1_000_000;
    let rate = best(ROUNDS as f64 * 64.0, || {
        let (mut sums, factor) = ([0.0f32; 32], black_box(0.5f32));
        for _ in 0..ROUNDS {
            sums = sums.map(|s| s * factor + factor);
        }
        black_box(sums);
    });
    MultiplyRates::all(rate)
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(rounds: usize) -> f32 {
    let a = black_box(_mm512_set1_ps(1e-9));
    let mut sums = [_mm512_setzero_ps(); 12];
    for _ in 0..rounds {
        for s in &mut sums {
            *s = _mm512_fmadd_ps(a, a, *s);
        }
    }
    let mut sum = 0.0;
    for s in sums {
        sum += _mm512_reduce_add_ps(s);
    }
    sum
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn avx512_bf16(rounds: usize) -> f32 {
    // SAFETY: both types are 512 bits.
    let a = unsafe { std::mem::transmute::<__m512i, __m512bh>(black_box(_mm512_set1_epi32(0x3f80_3f80))) };
    let mut sums = [_mm512_setzero_ps(); 12];
    for _ in 0..rounds {
        for s in &mut sums {
            *s = _mm512_dpbf16_ps(*s, a, a);
        }
    }
    let mut sum = 0.0;
    for s in sums {
        sum += _mm512_reduce_add_ps(s);
    }
    sum
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn avx512_int8(rounds: usize) -> i32 {
    let a = black_box(_mm512_set1_epi8(1));
    let mut sums = [_mm512_setzero_si512(); 12];
    for _ in 0..rounds {
        for s in &mut sums {
            *s = _mm512_dpbusd_epi32(*s, a, a);
        }
    }
    let mut sum = 0;
    for s in sums {
        sum += _mm512_reduce_add_epi32(s);
    }
    sum
}

/// Operations per second of four matrix tiles of sums, in int8 or bf16; with LOADS, of operands that are loaded for every
/// step.
///
/// # Safety
/// AMX must be available.
#[cfg(target_arch = "x86_64")]
unsafe fn matrix_tiles<const INT8: bool, const LOADS: bool>() -> f64 {
    /// Steps until loaded operands' sums start again: as they do in a product, and so that they stay finite.
    const STEPS: usize = 16;
    const SUMS: usize = 3000;
    // Two tiles of A and of B for each of eight steps: two thirds of the first-level cache.
    let words = |line: u32| {
        std::array::from_fn(|word| 0x3f80_3f80 | (16 * line + word as u32).wrapping_mul(2_654_435_761) & 0x7f_007f)
    };
    let operands: Vec<Line> = (0..8 * 4 * amx::TILE as u32).map(|line| Line(words(line))).collect();
    let values_per_word = if INT8 { 4 } else { 2 };
    let rate = best((SUMS * STEPS * 4 * amx::TILE.pow(3) * values_per_word * 2) as f64, || {
        // SAFETY: the caller has AMX; all tiles are whole and lie within the operands.
        unsafe {
            amx::configure(2 * amx::TILE);
            for _ in 0..SUMS {
                if LOADS {
                    amx::clear::<0>();
                    amx::clear::<1>();
                    amx::clear::<2>();
                    amx::clear::<3>();
                }
                for step in 0..STEPS {
                    if LOADS {
                        let tile = |i: usize| operands[(step % 8 * 4 + i) * amx::TILE..][..amx::TILE].as_ptr().cast();
                        amx::load::<4>(tile(0), amx::TILE);
                        amx::load::<6>(tile(1), amx::TILE);
                        amx::load::<7>(tile(2), amx::TILE);
                        amx::load::<5>(tile(3), amx::TILE);
                    }
                    dot::<INT8, 0, 4, 6>();
                    dot::<INT8, 1, 4, 7>();
                    dot::<INT8, 2, 5, 6>();
                    dot::<INT8, 3, 5, 7>();
                }
            }
        }
    });
    // SAFETY: as above.
    unsafe { amx::release() };
    rate
}

/// # Safety
/// The matrix tiles must be configured.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn dot<const INT8: bool, const C: u8, const A: u8, const B: u8>() {
    // SAFETY: the caller's contract.
    unsafe { if INT8 { amx::dot_int8::<C, A, B>() } else { amx::dot_bf16::<C, A, B>() } }
}

/// Twelve accumulators: as many as 16 registers allow.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(rounds: usize) -> __m256 {
    let a = black_box(_mm256_set1_ps(1e-9));
    let mut sums = [_mm256_setzero_ps(); 12];
    for _ in 0..rounds {
        for s in &mut sums {
            *s = _mm256_fmadd_ps(a, a, *s);
        }
    }
    let mut sum = a;
    for s in sums {
        sum = _mm256_add_ps(sum, s);
    }
    sum
}
