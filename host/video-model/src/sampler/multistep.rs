//! What UniPC and DPM-Solver++ share: predictions of the picture at past levels, and the exact solution of the linear
//! part of the equation between two levels.

use super::combine::combine;
use super::level::Level;
use super::prediction::Mix;

/// Predicted pictures at the last levels, newest first. Buffers are used again.
#[derive(Debug)]
pub(super) struct History {
    entries: Vec<(Level, Vec<f32>)>,
    count_max: usize,
}

impl History {
    pub(super) fn new(count_max: usize) -> Self {
        Self { entries: Vec::with_capacity(count_max + 1), count_max }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// A buffer for the next prediction: the oldest one's, once there are as many as are looked at.
    pub(super) fn predict(&mut self, mix: Mix, latent: &[f32], answer: &[f32]) -> Vec<f32> {
        let mut picture = match self.entries.len() > self.count_max {
            true => self.entries.pop().map(|(_, picture)| picture).unwrap_or_default(),
            false => Vec::new(),
        };
        picture.clear();
        picture.extend_from_slice(latent);
        combine(&mut picture, mix.latent, &[(mix.answer, answer)]);
        picture
    }

    pub(super) fn push(&mut self, level: Level, picture: Vec<f32>) {
        self.entries.insert(0, (level, picture));
    }

    pub(super) fn picture(&self, age: usize) -> &[f32] {
        &self.entries[age].1
    }

    pub(super) fn level(&self, age: usize) -> Level {
        self.entries[age].0
    }
}

/// x′ = keep·x − α·(e⁻ʰ − 1)·picture + …, with h the step in half log signal-to-noise ratio.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interval {
    pub(super) keep: f64,
    pub(super) alpha: f64,
    /// Infinite on the way to a clean picture.
    pub(super) h: f64,
    from: f64,
}

impl Interval {
    pub(super) fn between(from: Level, to: Level) -> Self {
        let lambda = from.half_log_snr();
        Self { keep: to.sigma / from.sigma, alpha: to.alpha, h: to.half_log_snr() - lambda, from: lambda }
    }

    /// Where a level lies, in units of this step from its start: below 0 for past ones.
    pub(super) fn position(&self, level: Level) -> f64 {
        (level.half_log_snr() - self.from) / self.h
    }
}
