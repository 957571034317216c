//! DPM-Solver++ (arXiv 2211.01095), orders 1 and 2 ("2M", midpoint), as an ODE and as an SDE.

use super::form::{Form, Vector};
use super::multistep::{History, Interval, Predictions};
use super::schedule::Step;
use kernels::Tensor;

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

    pub(super) fn history(&self) -> &History {
        &self.history
    }

    /// The latent after `step`, without its noise; `picture` is what the answer predicts, and `left` steps are left, this
    /// one included.
    pub(super) fn step(&self, picture: Form, step: &Step, left: usize) -> Form {
        let known = Predictions { history: &self.history, newest: Some((step.from, picture)) };
        let interval = Interval::between(step.from, step.to);
        let (keep, scale) = match self.stochastic {
            true => (interval.keep * (-interval.h).exp(), -interval.alpha * (-2.0 * interval.h).exp_m1()),
            false => (interval.keep, -interval.alpha * (-interval.h).exp_m1()),
        };
        let (latent, newest) = (Form::of(Vector::Latent), known.picture(0));
        // The last step is of first order: it leads to an infinite signal-to-noise ratio.
        if self.order_max.min(left).min(known.len()) == 1 {
            return latent.combined(keep, &[(scale, newest)]);
        }
        // Half a difference quotient, over the distance to the level before.
        let slope = -0.5 * scale / interval.position(known.level(1));
        latent.combined(keep, &[(scale + slope, newest), (-slope, known.picture(1))])
    }

    /// Keeps what the next step looks at.
    pub(super) fn remember(&mut self, step: &Step, picture: Tensor) {
        self.history.push(step.from, picture);
    }
}
