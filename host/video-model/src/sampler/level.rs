//! How much picture and how much noise a latent holds.

/// A latent is `alpha`·picture + `sigma`·noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Level {
    pub(super) alpha: f64,
    pub(super) sigma: f64,
}

impl Level {
    /// The picture itself.
    pub(super) const CLEAN: Self = Self { alpha: 1.0, sigma: 0.0 };

    /// Flow matching: the straight path from the picture (0) to the noise (1). Rounded to f32 first, as published
    /// schedules are: near 1 the rounding moves ln α by more than a percent.
    pub(super) fn flow(sigma: f64) -> Self {
        let sigma = f64::from(sigma as f32);
        Self { alpha: 1.0 - sigma, sigma }
    }

    /// Variance preserving: α² + σ² = 1, from ᾱ = α².
    pub(super) fn variance_preserving(alpha_bar: f64) -> Self {
        Self { alpha: alpha_bar.sqrt(), sigma: (1.0 - alpha_bar).sqrt() }
    }

    /// Variance preserving, from the ratio σ/α.
    pub(super) fn of_ratio(ratio: f64) -> Self {
        let alpha = 1.0 / (ratio * ratio + 1.0).sqrt();
        Self { alpha, sigma: ratio * alpha }
    }

    /// λ = ln α − ln σ; infinite for a clean picture.
    pub(super) fn half_log_snr(self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }
}
