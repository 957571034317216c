//! Spreads noise levels between two limits.

use super::linspace;
use pipeline::SigmaSchedule;

/// `count` levels from `highest` down to `lowest`; none for the uniform schedule, which is a grid of its own.
pub(super) fn between(schedule: SigmaSchedule, highest: f64, lowest: f64, count: usize) -> Option<Vec<f64>> {
    // Evenly in the image of `there`.
    let even = |there: fn(f64) -> f64, back: fn(f64) -> f64| {
        linspace(there(highest), there(lowest), count).into_iter().map(back).collect()
    };
    match schedule {
        SigmaSchedule::Uniform => None,
        SigmaSchedule::Karras => Some(even(|sigma| sigma.powf(1.0 / RHO), |root| root.powf(RHO))),
        SigmaSchedule::Exponential => Some(even(f64::ln, f64::exp)),
        SigmaSchedule::Beta => {
            let quantiles = linspace(1.0, 0.0, count).into_iter().map(beta_quantile);
            Some(quantiles.map(|quantile| lowest + quantile * (highest - lowest)).collect())
        }
    }
}

/// ρ of arXiv 2206.00364.
const RHO: f64 = 7.0;
/// Both parameters of the Beta distribution of arXiv 2407.12173.
const SHAPE: f64 = 0.6;
/// Γ(0.6)² / Γ(1.2).
const BETA_FUNCTION: f64 = 1.489_192_248_812_817 * 1.489_192_248_812_817 / 0.918_168_742_399_760_6;

/// The x below which Beta(0.6, 0.6) has the probability `p`.
fn beta_quantile(p: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return p.clamp(0.0, 1.0);
    }
    if p > 0.5 {
        return 1.0 - beta_quantile(1.0 - p);
    }
    let (mut low, mut high) = (0.0, 0.5);
    // Each halving is a bit; f64 has no more than these at a half.
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if beta_probability(middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Probability below `x`, at most a half: the hypergeometric series of the incomplete beta function, whose terms at least
/// halve.
fn beta_probability(x: f64) -> f64 {
    let (mut term, mut sum) = (1.0, 0.0);
    for n in 0..60 {
        let n = f64::from(n);
        sum += term / (SHAPE + n);
        term *= (1.0 - SHAPE + n) / (n + 1.0) * x;
    }
    x.powf(SHAPE) * sum / BETA_FUNCTION
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By scipy.stats.beta.ppf(p, 0.6, 0.6).
    const QUANTILES: [(f64, f64); 5] = [
        (0.01, 0.000_861_238_821_542_905_9),
        (0.2, 0.122_921_750_458_332_92),
        (0.5, 0.5),
        (0.75, 0.824_319_621_347_305),
        (0.99, 0.999_138_761_178_457_1),
    ];

    #[test]
    fn quantiles_of_beta_are_those_of_a_statistics_library() {
        for (p, expected) in QUANTILES {
            let x = beta_quantile(p);
            assert!((x - expected).abs() < 1e-12, "{p}: {x} is not {expected}");
        }
    }
}
