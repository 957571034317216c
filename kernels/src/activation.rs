//! Activation functions that operations apply to their result before it is stored.

/// Pointwise function applied in the epilogue of a matrix product or convolution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// The identity.
    None,
    /// x·Φ(x) with the exact normal distribution function (BERT).
    Gelu,
    /// The tanh approximation of GELU (Wan's feed-forward layers).
    GeluTanh,
    /// x·σ(x).
    Silu,
    /// x for x ≥ 0, slope·x below (IFNet: slope 0.2).
    LeakyRelu(f32),
}

impl Activation {
    /// How CUDA kernels name the function: its code in `cuda/activation.cuh`, and the slope of a leaky ReLU.
    pub(crate) fn device_code(self) -> (i32, f32) {
        match self {
            Activation::None => (0, 0.0),
            Activation::Gelu => (1, 0.0),
            Activation::GeluTanh => (2, 0.0),
            Activation::Silu => (3, 0.0),
            Activation::LeakyRelu(slope) => (4, slope),
        }
    }

    /// The function at one point; the f32 reference of the vectorised versions.
    pub fn at(self, x: f32) -> f32 {
        match self {
            Activation::None => x,
            Activation::Gelu => {
                (f64::from(x) * 0.5 * (1.0 + erf(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2))) as f32
            }
            Activation::GeluTanh => {
                let inner = 0.797_884_6 * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::LeakyRelu(slope) => {
                if x >= 0.0 {
                    x
                } else {
                    slope * x
                }
            }
        }
    }
}

/// The error function: its Maclaurin series below 3, the continued fraction of erfc above (both to about 1e-14).
fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..80 {
            term *= -a * a / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let mut fraction = a;
        for n in (1..60).rev() {
            fraction = a + 0.5 * f64::from(n) / fraction;
        }
        1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_published_values() {
        // Abramowitz & Stegun, table 7.1.
        for (x, y) in [(0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0), (3.5, 0.999_999_256_9)] {
            assert!((erf(x) - y).abs() < 1e-9, "erf({x}) = {}", erf(x));
            assert!((erf(-x) + y).abs() < 1e-9);
        }
    }

    #[test]
    fn activations_match_their_closed_forms() {
        // x = -1.5 and 0.7 in double precision.
        let cases = [
            (Activation::Gelu, [-0.100_210_8, 0.530_625_5]),
            (Activation::GeluTanh, [-0.100_428_4, 0.530_570_1]),
            (Activation::Silu, [-0.273_638_3, 0.467_731_2]),
            (Activation::LeakyRelu(0.2), [-0.3, 0.7]),
        ];
        for (activation, expected) in cases {
            for (x, y) in [-1.5f32, 0.7].into_iter().zip(expected) {
                assert!((activation.at(x) - y).abs() < 2e-5, "{activation:?}({x}) = {}", activation.at(x));
            }
        }
    }
}
