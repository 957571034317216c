//! UniPC (arXiv 2302.04867), orders 1 to 3, on predictions of the picture.

use super::form::{Form, Vector};
use super::multistep::{History, Interval, Predictions};
use super::schedule::Step;
use kernels::Tensor;
use pipeline::SolverType;

/// Highest order.
const ORDER_MAX: usize = 3;

/// A predictor step forwards, and at its end, when the network has answered there, the same step again as a corrector.
#[derive(Debug)]
pub(super) struct UniPc {
    history: History,
    /// The latent that the last step started from.
    start: Option<Tensor>,
    solver_type: SolverType,
    order_max: usize,
    /// Order of the last step.
    order: usize,
}

impl UniPc {
    pub(super) fn new(order: u32, solver_type: SolverType) -> Self {
        let order_max = (order as usize).clamp(1, ORDER_MAX);
        Self { history: History::new(order_max), start: None, solver_type, order_max, order: 0 }
    }

    pub(super) fn history(&self) -> &History {
        &self.history
    }

    /// The tensor called [`Vector::Last`].
    pub(super) fn start(&self) -> Option<&Tensor> {
        self.start.as_ref()
    }

    /// The latent after `step`, and the corrected one before it; `picture` is what the answer predicts, and `left` steps
    /// are left, this one included.
    pub(super) fn step(&self, picture: Form, step: &Step, left: usize) -> [Form; 2] {
        let before = Predictions { history: &self.history, newest: None };
        // The corrector redoes the previous step, now that its end has been evaluated.
        let start = match self.order {
            0 => Form::of(Vector::Latent),
            order => {
                let interval = Interval::between(before.level(0), step.from);
                self.advanced(Form::of(Vector::Last), interval, before, order, Some(picture))
            }
        };
        let now = Predictions { history: &self.history, newest: Some((step.from, picture)) };
        let order = self.next_order(left, now.len());
        [self.advanced(start, Interval::between(step.from, step.to), now, order, None), start]
    }

    /// Keeps what the next step looks at.
    pub(super) fn remember(&mut self, step: &Step, left: usize, picture: Tensor, start: Tensor) {
        self.history.push(step.from, picture);
        self.start = Some(start);
        self.order = self.next_order(left, self.history.len());
    }

    /// Lower orders at the end: the last step leads to an infinite signal-to-noise ratio.
    fn next_order(&self, left: usize, known: usize) -> usize {
        self.order_max.min(left).min(known)
    }

    /// `latent` over `interval` from the newest level, with the picture at its end when that is known.
    fn advanced(
        &self,
        latent: Form,
        interval: Interval,
        known: Predictions<'_>,
        order: usize,
        end: Option<Form>,
    ) -> Form {
        let ratios: Vec<f64> = (1..order).map(|age| interval.position(known.level(age))).collect();
        let weights = self.weights(interval.h, &ratios, end.is_some());
        let scale = -interval.alpha * self.base(-interval.h);
        let mut newest = -interval.alpha * (-interval.h).exp_m1();
        let mut terms = Vec::with_capacity(ORDER_MAX + 1);
        for (age, (ratio, weight)) in ratios.iter().zip(&weights).enumerate() {
            let slope = scale * weight / ratio;
            terms.push((slope, known.picture(age + 1)));
            newest -= slope;
        }
        if let (Some(end), Some(weight)) = (end, weights.last()) {
            terms.push((scale * weight, end));
            newest -= scale * weight;
        }
        terms.push((newest, known.picture(0)));
        latent.combined(interval.keep, &terms)
    }

    /// B(h) for h with its sign changed.
    fn base(&self, z: f64) -> f64 {
        match self.solver_type {
            SolverType::Bh1 => z,
            SolverType::Bh2 => z.exp_m1(),
        }
    }

    /// Weights ρ of the differences from the newest prediction: those at `ratios`, then that of the step's end for the
    /// corrector. They solve Σ ρ·ratioᵏ = φ(k + 2)·(k + 1)!·h / B(h); the lowest orders have constants instead.
    fn weights(&self, h: f64, ratios: &[f64], corrects: bool) -> Vec<f64> {
        let known = ratios.len() + usize::from(corrects);
        if known <= 1 {
            return vec![0.5; known];
        }
        let z = -h;
        let base = self.base(z);
        let mut phi = z.exp_m1() / z - 1.0;
        let mut factorial = 1.0;
        let mut right = [0.0; ORDER_MAX];
        for (k, value) in right.iter_mut().enumerate() {
            *value = phi * factorial / base;
            factorial *= (k + 2) as f64;
            phi = phi / z - 1.0 / factorial;
        }
        let mut nodes = ratios.to_vec();
        if corrects {
            nodes.push(1.0);
        }
        solve_moments(&nodes, &right[..known])
    }
}

/// ρ with Σ ρᵢ·nodeᵢᵏ = rightₖ for each k from 0, for distinct nodes: each ρ is `right` applied to the coefficients of the
/// Lagrange polynomial that is 1 at its node and 0 at the others.
fn solve_moments(nodes: &[f64], right: &[f64]) -> Vec<f64> {
    let weight = |i: usize| {
        let mut polynomial = vec![1.0];
        let mut scale = 1.0;
        for (_, node) in nodes.iter().enumerate().filter(|(j, _)| *j != i) {
            // Times (x − node).
            polynomial.push(0.0);
            for k in (0..polynomial.len()).rev() {
                let lower = if k > 0 { polynomial[k - 1] } else { 0.0 };
                polynomial[k] = lower - node * polynomial[k];
            }
            scale *= nodes[i] - node;
        }
        polynomial.iter().zip(right).map(|(p, r)| p * r).sum::<f64>() / scale
    };
    (0..nodes.len()).map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_the_moments_that_were_asked_for() {
        let (nodes, right) = ([-1.7, -0.6, 1.0], [0.4, 0.3, -0.2]);
        let weights = solve_moments(&nodes, &right);
        for (k, expected) in right.iter().enumerate() {
            let moment: f64 = weights.iter().zip(&nodes).map(|(w, n)| w * n.powi(k as i32)).sum();
            assert!((moment - expected).abs() < 1e-12);
        }
    }
}
