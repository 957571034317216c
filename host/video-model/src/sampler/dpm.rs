//! DPM-Solver++ (arXiv 2211.01095), orders 1 and 2 ("2M", midpoint), as an ODE and as an SDE.

use super::combine::combine;
use super::multistep::{History, Interval};
use super::prediction::Mix;
use super::schedule::Step;

#[derive(Debug)]
pub(super) struct DpmSolver {
    history: History,
    order_max: usize,
    /// Whether noise is added at each step.
    stochastic: bool,
}

impl DpmSolver {
    pub(super) fn new(order: u32, stochastic: bool) -> Self {
        let order_max = (order as usize).clamp(1, 2);
        Self { history: History::new(order_max), order_max, stochastic }
    }

    /// Weight of the new noise of a step.
    pub(super) fn fresh(&self, step: &Step) -> f64 {
        match self.stochastic {
            true => step.to.sigma * (-(-2.0 * Interval::between(step.from, step.to).h).exp_m1()).sqrt(),
            false => 0.0,
        }
    }

    /// Moves `latent` over `step`, without its noise; `left` steps are left, this one included.
    pub(super) fn step(&mut self, mix: Mix, step: &Step, left: usize, latent: &mut [f32], answer: &[f32]) {
        let picture = self.history.predict(mix, latent, answer);
        self.history.push(step.from, picture);
        let interval = Interval::between(step.from, step.to);
        let (keep, scale) = match self.stochastic {
            true => (interval.keep * (-interval.h).exp(), -interval.alpha * (-2.0 * interval.h).exp_m1()),
            false => (interval.keep, -interval.alpha * (-interval.h).exp_m1()),
        };
        let newest = self.history.picture(0);
        // The last step is of first order: it leads to an infinite signal-to-noise ratio.
        if self.order_max.min(left).min(self.history.len()) == 1 {
            combine(latent, keep, &[(scale, newest)]);
            return;
        }
        // Half a difference quotient, over the distance to the level before.
        let slope = -0.5 * scale / interval.position(self.history.level(1));
        combine(latent, keep, &[(scale + slope, newest), (-slope, self.history.picture(1))]);
    }
}
