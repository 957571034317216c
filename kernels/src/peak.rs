//! What one core of this machine can do at most, measured: the yardstick of every other figure.
#![allow(unsafe_code, reason = "the probes are single instructions of the level in force")]

use std::hint::black_box;
use std::time::Instant;

use crate::simd::{self, Level};

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
            let bf16 = best(flop(2.0 * 16.0 * 16.0), || unsafe { amx_bf16(ROUNDS) });
            // SAFETY: as above.
            let int8 = best(flop(4.0 * 16.0 * 16.0), || unsafe { amx_int8(ROUNDS) });
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

/// A loop of four tile products into as many sums; as many in all as the caller counts: 12 rows of 16 words a round.
#[cfg(target_arch = "x86_64")]
macro_rules! amx_loop {
    ($name:ident, $instruction:literal) => {
        unsafe fn $name(rounds: usize) {
            #[repr(C, align(64))]
            struct Config([u8; 64]);
            let mut config = Config([0; 64]);
            config.0[0] = 1;
            for tile in 0..8 {
                config.0[16 + 2 * tile] = 64;
                config.0[48 + tile] = 16;
            }
            // SAFETY: the caller has AMX; the configuration is well-formed.
            unsafe { std::arch::asm!("ldtilecfg [{0}]", in(reg) &raw const config) };
            for _ in 0..rounds * 12 / 16 / 4 {
                // SAFETY: the tiles are configured.
                unsafe {
                    std::arch::asm!(
                        concat!($instruction, " tmm0, tmm4, tmm6"),
                        concat!($instruction, " tmm1, tmm4, tmm7"),
                        concat!($instruction, " tmm2, tmm5, tmm6"),
                        concat!($instruction, " tmm3, tmm5, tmm7")
                    );
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
amx_loop!(amx_bf16, "tdpbf16ps");
#[cfg(target_arch = "x86_64")]
amx_loop!(amx_int8, "tdpbusd");

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
