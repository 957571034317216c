//! Samplers that look at one answer only: Euler, DDIM, DDPM, LCM.
//!
//! All of them split the latent into the picture and the noise that the network sees, and put it together again at the
//! next level, where a part of the noise may be new:
//!
//! x′ = α′·picture + √(σ′² − ς²)·noise + ς·fresh
//!
//! - **Euler**: ς = 0. On a flow that is x + (σ′ − σ)·velocity; on a variance-preserving process it is Euler's step in
//!   x/α over σ/α. Above eta 0 it is ancestral: on a flow, Euler to σ↓ = σ′·(1 + eta·(σ′/σ − 1)) and noise up again.
//! - **DDIM** (arXiv 2010.02502, formulas 12 and 16): ς = eta·(standard deviation of the posterior of x′ given the latent
//!   and the picture), ς² = σ′²·(1 − (α·σ′ / (α′·σ))²). This is the posterior of any Gaussian process with these α and σ
//!   (arXiv 2107.00630, appendix A.2), so it also holds for α = 1 − σ, where eta 0 is Euler.
//! - **DDPM** (arXiv 2006.11239): DDIM at eta 1.
//! - **LCM** (arXiv 2310.04378): all noise is fresh. On a discrete process the consistency function adds a share of the
//!   latent that vanishes but at the smallest timesteps; on a flow the picture is the answer itself.

use super::level::Level;
use super::prediction;
use super::schedule::Step;
use pipeline::{NoiseProcess, Sampler};

/// x′ = latent·x + answer·m + fresh·(new noise).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Update {
    pub(super) latent: f64,
    pub(super) answer: f64,
    pub(super) fresh: f64,
}

/// One step of `sampler` over `step`.
pub(super) fn update(sampler: Sampler, process: &NoiseProcess, eta: f64, step: &Step) -> Update {
    let (picture, noise) = (prediction::picture(process, step.from), prediction::noise(process, step.from));
    let Split { picture: a, noise: b, fresh, latent } = split(sampler, process, eta, step);
    Update {
        latent: a * picture.latent + b * noise.latent + latent,
        answer: a * picture.answer + b * noise.answer,
        fresh,
    }
}

/// Weights of the next latent's parts.
struct Split {
    picture: f64,
    noise: f64,
    fresh: f64,
    /// Of the latent as it is: LCM's skip.
    latent: f64,
}

fn split(sampler: Sampler, process: &NoiseProcess, eta: f64, step: &Step) -> Split {
    let Level { alpha, sigma } = step.to;
    let fresh = match (sampler, process) {
        (Sampler::Lcm, NoiseProcess::Flow) => sigma,
        (Sampler::Lcm, NoiseProcess::Discrete(_)) => {
            let (skip, out) = consistency(f64::from(step.timestep));
            return Split { picture: alpha * out, noise: 0.0, fresh: sigma, latent: alpha * skip };
        }
        (Sampler::Ddpm, _) => posterior_deviation(step),
        (Sampler::Euler, NoiseProcess::Flow) => flow_ancestral(step, eta),
        _ => eta * posterior_deviation(step),
    };
    Split { picture: alpha, noise: (sigma * sigma - fresh * fresh).max(0.0).sqrt(), fresh, latent: 0.0 }
}

fn posterior_deviation(step: &Step) -> f64 {
    let ratio = step.from.alpha * step.to.sigma / (step.to.alpha * step.from.sigma);
    step.to.sigma * (1.0 - ratio * ratio).max(0.0).sqrt()
}

/// New noise of the ancestral Euler step of a rectified flow.
fn flow_ancestral(step: &Step, eta: f64) -> f64 {
    let (from, to) = (step.from.sigma, step.to.sigma);
    if to == 0.0 {
        return 0.0;
    }
    let down = to * (1.0 + eta * (to / from - 1.0));
    let kept = down * (1.0 - to) / (1.0 - down);
    (to * to - kept * kept).max(0.0).sqrt()
}

/// Weights of the latent and of the picture in LCM's consistency function at timestep `t`.
fn consistency(t: f64) -> (f64, f64) {
    // Standard deviation of the data, and the scale of time, that consistency models are distilled with.
    const DATA: f64 = 0.5;
    const TIME: f64 = 10.0;
    let square = (t * TIME).powi(2) + DATA * DATA;
    (DATA * DATA / square, t * TIME / square.sqrt())
}
