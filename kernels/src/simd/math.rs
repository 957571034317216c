//! Vectorised functions: powers of two, logistic, activations.

use std::f32::consts::{LN_2, LOG2_E};

use super::Simd;
use crate::activation::Activation;

/// 2ˣ for x ≤ 127 to a relative error of 3e-7, and 2⁻¹²⁶ (as good as 0 in a softmax) below −126.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.max(x, s.splat(-126.0));
    let n = s.round(x);
    let f = s.sub(x, n);
    // ln(2)ⁱ / i!, from i = 6 down: the next term is below 2⁻²³ for |f| ≤ ½.
    let mut p = s.splat(1.540_353e-4);
    for c in [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, LN_2, 1.0] {
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
    logistic_of_power(s, s.mul(x, s.splat(-LOG2_E)))
}

/// 1 / (1 + 2ᵗ). t is held below 125: the reciprocal of a larger power is subnormal, which costs a microcode assist.
#[inline(always)]
fn logistic_of_power<S: Simd>(s: S, t: S::F) -> S::F {
    s.reciprocal(s.add(s.splat(1.0), exp2(s, s.min(t, s.splat(125.0)))))
}

/// [`activate`] for results that are then rounded to bf16, 2⁻⁹ of their size: to 2⁻¹² of it, in two thirds of the time.
#[inline(always)]
pub(crate) fn activate_for_bf16<S: Simd>(s: S, x: S::F, activation: Activation) -> S::F {
    match activation {
        Activation::Silu => s.mul(x, rough_logistic_of_power(s, s.mul(x, s.splat(-LOG2_E)))),
        Activation::GeluTanh => s.mul(x, rough_logistic_of_power(s, gelu_tanh_power(s, x))),
        _ => activate(s, x, activation),
    }
}

#[inline(always)]
fn rough_logistic_of_power<S: Simd>(s: S, t: S::F) -> S::F {
    s.rough_reciprocal(s.add(s.splat(1.0), s.rough_exp2(t)))
}

/// t of gelu's tanh form: x/2·(1 + tanh u) = x·σ(2u) = x / (1 + 2ᵗ), u = √(2/π)·(x + 0.044715·x³).
#[inline(always)]
fn gelu_tanh_power<S: Simd>(s: S, x: S::F) -> S::F {
    const FACTOR: f32 = -2.0 * 0.797_884_6 * LOG2_E;
    s.mul(x, s.fma(s.mul(x, x), s.splat(0.044_715 * FACTOR), s.splat(FACTOR)))
}

/// The activation of every lane.
#[inline(always)]
pub(crate) fn activate<S: Simd>(s: S, x: S::F, activation: Activation) -> S::F {
    match activation {
        Activation::None => x,
        Activation::Silu => s.mul(x, logistic(s, x)),
        Activation::GeluTanh => s.mul(x, logistic_of_power(s, gelu_tanh_power(s, x))),
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
    let erfc = s.mul(s.mul(p, t), exp2(s, s.mul(s.mul(z, z), s.splat(-LOG2_E))));
    s.sub(s.max(x, zero), s.mul(s.mul(magnitude, s.splat(0.5)), erfc))
}
