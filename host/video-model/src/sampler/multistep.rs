//! What UniPC and DPM-Solver++ share: predictions of the picture at past levels, and the exact solution of the linear
//! part of the equation between two levels.

use super::form::{Form, Vector};
use super::level::Level;
use kernels::Tensor;

/// Predicted pictures at the last levels, newest first.
#[derive(Debug)]
pub(super) struct History {
    entries: Vec<(Level, Tensor)>,
    count_max: usize,
}

impl History {
    pub(super) fn new(count_max: usize) -> Self {
        Self { entries: Vec::with_capacity(count_max + 1), count_max }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Puts a prediction first; the oldest one goes, once there are as many as are looked at.
    pub(super) fn push(&mut self, level: Level, picture: Tensor) {
        self.entries.truncate(self.count_max - 1);
        self.entries.insert(0, (level, picture));
    }

    pub(super) fn pictures(&self) -> impl Iterator<Item = (Vector, &Tensor)> {
        self.entries.iter().enumerate().map(|(age, (_, picture))| (Vector::Picture(age), picture))
    }

    pub(super) fn level(&self, age: usize) -> Level {
        self.entries[age].0
    }
}

/// The predictions that a rule looks at within a step: the one just made, and those before it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Predictions<'a> {
    pub(super) history: &'a History,
    pub(super) newest: Option<(Level, Form)>,
}

impl Predictions<'_> {
    pub(super) fn len(&self) -> usize {
        (self.history.len() + usize::from(self.newest.is_some())).min(self.history.count_max)
    }

    pub(super) fn picture(&self, age: usize) -> Form {
        match (self.newest, age) {
            (Some((_, form)), 0) => form,
            (Some(_), age) => Form::of(Vector::Picture(age - 1)),
            (None, age) => Form::of(Vector::Picture(age)),
        }
    }

    pub(super) fn level(&self, age: usize) -> Level {
        match (self.newest, age) {
            (Some((level, _)), 0) => level,
            (Some(_), age) => self.history.level(age - 1),
            (None, age) => self.history.level(age),
        }
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
