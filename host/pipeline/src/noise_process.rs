//! What a diffusion model was trained on: how noise covers a picture, and what the network answers.

use serde::Serialize;

/// How a latent goes from the picture to noise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoiseProcess {
    /// Flow matching (arXiv 2210.02747): (1 − σ)·picture + σ·noise; the network answers noise − picture.
    #[default]
    Flow,
    /// 1000 variance-preserving levels (arXiv 2006.11239): √ᾱ·picture + √(1 − ᾱ)·noise.
    Discrete(DiscreteProcess),
}

/// The variance-preserving process of Stable Diffusion and its relatives.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DiscreteProcess {
    /// Between which β lie, and how.
    pub betas: BetaSchedule,
    /// Variance that the first level adds.
    pub beta_start: f32,
    /// Variance that the last level adds.
    pub beta_end: f32,
    /// What the network answers.
    pub prediction: Prediction,
    /// Which levels an integration visits.
    pub spacing: TimestepSpacing,
    /// Added to each timestep of the leading spacing.
    pub steps_offset: u32,
    /// Whether DDIM's last step leads to the clean picture (`set_alpha_to_one`), else to the first level.
    pub ends_clean: bool,
}

impl Default for DiscreteProcess {
    fn default() -> Self {
        Self {
            betas: BetaSchedule::Linear,
            beta_start: 0.0001,
            beta_end: 0.02,
            prediction: Prediction::Epsilon,
            spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            ends_clean: true,
        }
    }
}

/// How β rises over the levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Evenly in √β.
    ScaledLinear,
}

/// What a network of a discrete process answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// √ᾱ·noise − √(1 − ᾱ)·picture (arXiv 2202.00512).
    Velocity,
    /// The picture.
    Sample,
}

/// Which of the 1000 timesteps an integration visits (arXiv 2305.08891, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimestepSpacing {
    /// Evenly with both ends.
    Linspace,
    /// Evenly from the low end.
    Leading,
    /// Evenly from the high end.
    Trailing,
}
