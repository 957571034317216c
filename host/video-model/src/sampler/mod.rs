//! Samplers: they integrate a network's answers from noise to a picture.
//!
//! Three things are kept apart: the *schedule* (which levels of noise, and what the network is told there), the meaning of
//! the network's answer (*prediction*), and the *update rule* (`one_step`, `unipc`, `dpm`). All are those of diffusers'
//! schedulers, quirks included, because published models were tuned with them.

mod dpm;
mod form;
mod guidance;
mod level;
mod multistep;
mod one_step;
mod prediction;
mod schedule;
#[cfg(test)]
mod tests;
mod unipc;

use crate::error::{ModelError, Result};
use crate::noise::fill_gaussian;
use dpm::DpmSolver;
use form::{Form, Vector, Vectors};
pub use guidance::{Guidance, Guided};
use kernels::Tensor;
use pipeline::{NoiseProcess, Sampler, SamplerSettings};
use schedule::Step;
use unipc::UniPc;

/// One integration in progress. Latents and answers are f32 tensors of one shape, in any layout; new noise is drawn in that
/// layout's order.
#[derive(Debug)]
pub struct SamplerState {
    process: NoiseProcess,
    steps: Vec<Step>,
    index: usize,
    rule: Rule,
    seed: u64,
    /// New noise of a step; the memory is kept for the next one.
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

    /// Moves `latent` one step along with the model's answer at the current timestep. Past the last step, or when the
    /// shapes differ, nothing moves and it is an error.
    pub fn step(&mut self, latent: &mut Tensor, answer: &Guided) -> Result<()> {
        let (seed, stream) = (self.seed, self.index as u64 + 1);
        self.step_with(latent, answer, |noise| fill_gaussian(seed, stream, noise))
    }

    fn step_with(&mut self, latent: &mut Tensor, answer: &Guided, draw: impl FnOnce(&mut [f32])) -> Result<()> {
        let Some(step) = self.steps.get(self.index) else {
            return Err(ModelError::Input(format!("the {} steps are made", self.steps.len())));
        };
        if answer.shape() != latent.shape() {
            let shapes = format!("an answer of {:?} for a latent of {:?}", answer.shape(), latent.shape());
            return Err(ModelError::Input(shapes));
        }
        let left = self.steps.len() - self.index;
        let x = Form::of(Vector::Latent);
        let picture = prediction::picture(&self.process, step.from);
        let picture = x.combined(picture.latent, &[(picture.answer, answer.form())]);
        let (mut forms, fresh) = match &self.rule {
            Rule::OneStep { sampler, eta } => {
                let update = one_step::update(*sampler, &self.process, *eta, step);
                (vec![x.combined(update.latent, &[(update.answer, answer.form())])], update.fresh)
            }
            Rule::UniPc(unipc) => {
                let [next, start] = unipc.step(picture, step, left);
                (vec![next, picture, start], 0.0)
            }
            Rule::Dpm(solver) => (vec![solver.step(picture, step, left), picture], solver.fresh(step)),
        };
        let noise = match fresh > 0.0 {
            true => {
                self.noise.resize(latent.len(), 0.0);
                draw(&mut self.noise);
                forms[0] = forms[0].combined(1.0, &[(fresh, Form::of(Vector::Last))]);
                Some(Tensor::from_f32(&self.noise, latent.shape())?)
            }
            false => None,
        };
        let mut made = self.vectors(latent, answer, noise.as_ref()).sums(&forms)?.into_iter();
        let next = made.next();
        match (&mut self.rule, made.next(), made.next()) {
            (Rule::UniPc(unipc), Some(picture), Some(start)) => unipc.remember(step, left, picture, start),
            (Rule::Dpm(solver), Some(picture), _) => solver.remember(step, picture),
            _ => (),
        }
        *latent = next.unwrap_or_else(|| latent.clone());
        self.index += 1;
        Ok(())
    }

    /// The tensors that a step starts from.
    fn vectors<'a>(&'a self, latent: &'a Tensor, answer: &'a Guided, noise: Option<&'a Tensor>) -> Vectors<'a> {
        let mut vectors = Vectors::default();
        vectors.set(Vector::Latent, Some(latent));
        answer.put_into(&mut vectors);
        let history = match &self.rule {
            Rule::OneStep { .. } => None,
            Rule::UniPc(unipc) => Some(unipc.history()),
            Rule::Dpm(solver) => Some(solver.history()),
        };
        history
            .into_iter()
            .flat_map(multistep::History::pictures)
            .for_each(|(v, picture)| vectors.set(v, Some(picture)));
        let start = match &self.rule {
            Rule::UniPc(unipc) => unipc.start(),
            _ => None,
        };
        vectors.set(Vector::Last, noise.or(start));
        vectors
    }
}
