//! Numbers of 8 bits: a sign, 4 bits of exponent (bias 7) and 3 of fraction (OCP 8-bit floating point, E4M3). There are no
//! infinities; the largest magnitude is 448.

/// Largest magnitude.
pub(super) const LARGEST: f32 = 448.0;
/// Rows whose largest value is smaller are taken as zeros: their inverse scale would not be finite.
const SMALLEST: f32 = 1e-30;

/// x rounded to the nearest e4m3 (ties to even fractions), at most ±448.
pub(super) fn rounded(x: f32) -> f32 {
    let magnitude = x.abs().min(LARGEST);
    if x.is_nan() || magnitude == 0.0 {
        return x;
    }
    // Three bits below the first one; from 2⁻⁶ down multiples of 2⁻⁹.
    let exponent = (magnitude.to_bits() >> 23) as i32 - 127;
    let step = 2.0f32.powi(exponent.max(-6) - 3);
    ((magnitude / step).round_ties_even() * step).copysign(x)
}

/// Rows of `k` values, each divided by its scale (max |x| / 448) and rounded; and the scales. The scale of a row with a value
/// that is not finite is not finite.
pub(super) fn quantised_rows(values: &[f32], k: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut quantised, mut scales) = (Vec::with_capacity(values.len()), Vec::new());
    for row in values.chunks_exact(k.max(1)) {
        let largest = row.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
        let (scale, inverse) = if largest < SMALLEST { (0.0, 0.0) } else { (largest / LARGEST, LARGEST / largest) };
        quantised.extend(row.iter().map(|v| rounded(v * inverse)));
        scales.push(if row.iter().all(|v| v.is_finite()) { scale } else { f32::NAN });
    }
    (quantised, scales)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_takes_the_nearest_of_all_values() {
        let mut all: Vec<f32> = vec![];
        for bits in 0u8..0x7f {
            let (exponent, fraction) = (i32::from(bits >> 3), f32::from(bits & 7));
            let size = if exponent == 0 { fraction / 512.0 } else { (8.0 + fraction) * 2.0f32.powi(exponent - 10) };
            all.extend([size, -size]);
        }
        assert_eq!(all.iter().copied().fold(0.0, f32::max), LARGEST);
        for value in &all {
            assert_eq!(rounded(*value), *value);
        }
        let mut x = 1.1e-4f32;
        while x < 600.0 {
            let nearest = all.iter().map(|v| (v - x).abs()).fold(f32::INFINITY, f32::min);
            assert_eq!((rounded(x) - x).abs(), nearest, "{x} became {}", rounded(x));
            assert_eq!(rounded(-x), -rounded(x));
            x *= 1.013;
        }
        // Ties go to even fractions: 17 lies between 16 and 18, 19 between 18 and 20.
        assert_eq!((rounded(17.0), rounded(19.0)), (16.0, 20.0));
        assert!(rounded(f32::NAN).is_nan());
    }

    #[test]
    fn the_largest_of_a_row_keeps_its_value() {
        let (values, scales) = quantised_rows(&[0.5, -2.0, 0.0, 0.0, f32::NAN, 1.0], 2);
        assert_eq!(values[1] * scales[0], -2.0);
        assert_eq!(scales[1], 0.0);
        assert!(scales[2].is_nan());
    }
}
