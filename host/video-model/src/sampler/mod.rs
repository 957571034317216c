//! Samplers: they integrate a network's answers from noise to a picture.
//!
//! Three things are kept apart: the *schedule* (which levels of noise, and what the network is told there), the meaning of
//! the network's answer (*prediction*), and the *update rule* (`one_step`, `unipc`, `dpm`). All are those of diffusers'
//! schedulers, quirks included, because published models were tuned with them.

mod combine;
mod dpm;
mod guidance;
mod level;
mod multistep;
mod one_step;
mod prediction;
mod schedule;
#[cfg(test)]
mod tests;
mod unipc;

use crate::noise::fill_gaussian;
use combine::combine;
use dpm::DpmSolver;
pub use guidance::Guidance;
use pipeline::{NoiseProcess, Sampler, SamplerSettings};
use schedule::Step;
use unipc::UniPc;

/// One integration in progress. Latents and answers are flat f32 slices of one length, in any layout; new noise is drawn in
/// that layout's order.
#[derive(Debug)]
pub struct SamplerState {
    process: NoiseProcess,
    steps: Vec<Step>,
    index: usize,
    rule: Rule,
    seed: u64,
    /// New noise of a step, kept for the next one.
    noise: Vec<f32>,
}

#[derive(Debug)]
enum Rule {
    OneStep { sampler: Sampler, eta: f64 },
    UniPc(UniPc),
    Dpm(DpmSolver),
}

impl SamplerState {
    /// The integration that `settings` describe. A stochastic sampler's step k draws from stream k + 1 of `seed`.
    pub fn new(settings: &SamplerSettings, seed: u64) -> Self {
        let rule = match settings.sampler {
            Sampler::Unipc => Rule::UniPc(UniPc::new(settings.solver_order, settings.solver_type)),
            Sampler::DpmSolver => Rule::Dpm(DpmSolver::new(settings.solver_order, false)),
            Sampler::DpmSolverSde => Rule::Dpm(DpmSolver::new(settings.solver_order, true)),
            sampler @ (Sampler::Euler | Sampler::Ddim | Sampler::Ddpm | Sampler::Lcm) => {
                Rule::OneStep { sampler, eta: f64::from(settings.eta) }
            }
        };
        let steps = schedule::steps(settings);
        Self { process: settings.process, steps, index: 0, rule, seed, noise: Vec::new() }
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Share of noise (σ) at the start of step `index`; 0 after the last one.
    pub fn sigma(&self, index: usize) -> f32 {
        self.steps.get(index).map_or(0.0, |step| step.from.sigma as f32)
    }

    /// What the model is told at step `index` (0 to 1000); whole numbers with the multistep samplers.
    pub fn timestep(&self, index: usize) -> f32 {
        self.steps[index].timestep
    }

    /// Steps already made.
    pub fn done(&self) -> usize {
        self.index
    }

    /// Moves `latent` one step along with the model's `answer` at the current timestep. Past the last step, or when the
    /// lengths differ, nothing moves and the answer is `false`.
    #[must_use]
    pub fn step(&mut self, latent: &mut [f32], answer: &[f32]) -> bool {
        let (seed, stream) = (self.seed, self.index as u64 + 1);
        self.step_with(latent, answer, |noise| fill_gaussian(seed, stream, noise))
    }

    fn step_with(&mut self, latent: &mut [f32], answer: &[f32], draw: impl FnOnce(&mut [f32])) -> bool {
        let Some(step) = self.steps.get(self.index).filter(|_| latent.len() == answer.len()) else { return false };
        let left = self.steps.len() - self.index;
        let picture = prediction::picture(&self.process, step.from);
        let fresh = match &mut self.rule {
            Rule::OneStep { sampler, eta } => {
                let update = one_step::update(*sampler, &self.process, *eta, step);
                combine(latent, update.latent, &[(update.answer, answer)]);
                update.fresh
            }
            Rule::UniPc(unipc) => {
                unipc.step(picture, step, left, latent, answer);
                0.0
            }
            Rule::Dpm(solver) => {
                solver.step(picture, step, left, latent, answer);
                solver.fresh(step)
            }
        };
        if fresh > 0.0 {
            self.noise.resize(latent.len(), 0.0);
            draw(&mut self.noise);
            combine(latent, 1.0, &[(fresh, &self.noise)]);
        }
        self.index += 1;
        true
    }
}
