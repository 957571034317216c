//! Vectorised functions: exponential, logistic, activations. Relative errors are below 3e-7 where not stated.

use super::Simd;
use crate::activation::Activation;

/// eˣ, with x clamped to ±87 so that neither the result nor its reciprocal is subnormal: those cost a microcode assist each.
/// Cody–Waite reduction and Cephes' polynomial.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.max(s.min(x, s.splat(87.0)), s.splat(-87.0));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_2e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let y = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    s.scale_by_power(y, n)
}

/// 2ˣ for x ≤ 127, and 2⁻¹²⁶ (as good as 0 in a softmax) below −126.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.max(x, s.splat(-126.0));
    let n = s.round(x);
    let f = s.sub(x, n);
    // ln(2)ⁱ / i!, from i = 6 down: the next term is below 2⁻²³ for |f| ≤ ½.
    let mut p = s.splat(1.540_353e-4);
    for c in [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, std::f32::consts::LN_2, 1.0] {
        p = s.fma(p, f, s.splat(c));
    }
    s.scale_by_power(p, n)
}

/// The first `n` lanes of `value`, `other` in the rest.
#[inline(always)]
#[allow(unsafe_code, reason = "vector loads and stores")]
pub(crate) fn keep_first<S: Simd>(s: S, value: S::F, n: usize, other: f32) -> S::F {
    if n >= S::LANES {
        return value;
    }
    let mut lanes = [other; 16];
    // SAFETY: the array has room for all lanes.
    unsafe {
        s.store_first(lanes.as_mut_ptr(), value, n);
        s.load(lanes.as_ptr())
    }
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub(crate) fn logistic<S: Simd>(s: S, x: S::F) -> S::F {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.reciprocal(s.add(s.splat(1.0), e))
}

/// The activation of every lane.
#[inline(always)]
pub(crate) fn activate<S: Simd>(s: S, x: S::F, activation: Activation) -> S::F {
    match activation {
        Activation::None => x,
        Activation::Silu => s.mul(x, logistic(s, x)),
        Activation::GeluTanh => {
            // x/2·(1 + tanh u) = x·σ(2u), u = √(2/π)·(x + 0.044715·x³).
            let twice = s.fma(s.mul(x, x), s.splat(2.0 * 0.797_884_6 * 0.044_715), s.splat(2.0 * 0.797_884_6));
            s.mul(x, logistic(s, s.mul(x, twice)))
        }
        Activation::Gelu => gelu(s, x),
        Activation::LeakyRelu(slope) => {
            let zero = s.splat(0.0);
            s.fma(s.splat(slope), s.min(x, zero), s.max(x, zero))
        }
    }
}

/// max(x, 0) − |x|/2·erfc(|x|/√2), with erfc of Abramowitz & Stegun 7.1.26 (absolute error below 1.5e-7).
#[inline(always)]
fn gelu<S: Simd>(s: S, x: S::F) -> S::F {
    let zero = s.splat(0.0);
    let magnitude = s.max(x, s.sub(zero, x));
    let z = s.mul(magnitude, s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = s.reciprocal(s.fma(z, s.splat(0.327_591_1), s.splat(1.0)));
    let mut p = s.splat(1.061_405_4);
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = s.fma(p, t, s.splat(c));
    }
    let erfc = s.mul(s.mul(p, t), exp(s, s.sub(zero, s.mul(z, z))));
    s.sub(s.max(x, zero), s.mul(s.mul(magnitude, s.splat(0.5)), erfc))
}
