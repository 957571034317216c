//! Schedules of the classic discrete process: 1000 variance-preserving levels, of which an integration visits some.

use super::{Step, TRAIN_TIMESTEPS, chain, linspace, spread};
use crate::sampler::level::Level;
use pipeline::{BetaSchedule, DiscreteProcess, Sampler, SamplerSettings, SigmaSchedule, TimestepSpacing};

/// Steps of the schedule that latent consistency models are distilled on.
const DISTILLED_STEPS: usize = 50;

pub(super) fn steps(settings: &SamplerSettings, process: &DiscreteProcess) -> Vec<Step> {
    let count = settings.steps.max(1) as usize;
    let alpha_bars = alpha_bars(process);
    match settings.sampler {
        Sampler::Unipc | Sampler::DpmSolver | Sampler::DpmSolverSde | Sampler::Euler => by_sigma(settings, process),
        Sampler::Lcm => listed(distilled(count), &alpha_bars),
        Sampler::Ddpm => listed(spaced(process, count, count), &alpha_bars),
        Sampler::Ddim => ddim(spaced(process, count, count), process, &alpha_bars),
    }
}

/// ᾱ: the share of the picture's variance that is left, by timestep.
fn alpha_bars(process: &DiscreteProcess) -> Vec<f64> {
    let (start, end) = (f64::from(process.beta_start), f64::from(process.beta_end));
    let betas = match process.betas {
        BetaSchedule::Linear => linspace(start, end, TRAIN_TIMESTEPS),
        BetaSchedule::ScaledLinear => {
            linspace(start.sqrt(), end.sqrt(), TRAIN_TIMESTEPS).into_iter().map(|root| root * root).collect()
        }
    };
    let left = |product: &mut f64, beta: f64| {
        *product *= 1.0 - beta;
        Some(*product)
    };
    betas.into_iter().scan(1.0, left).collect()
}

/// σ/α by timestep.
pub(super) fn ratios(process: &DiscreteProcess) -> Vec<f64> {
    alpha_bars(process).into_iter().map(|bar| ((1.0 - bar) / bar).sqrt()).collect()
}

/// `count` timesteps from the highest down. `parts` is how many the range is cut into: solvers that jump from the last
/// level to the clean picture cut it into one more.
fn spaced(process: &DiscreteProcess, count: usize, parts: usize) -> Vec<usize> {
    let last = TRAIN_TIMESTEPS - 1;
    let rounded = |t: f64| t.round_ties_even().max(0.0) as usize;
    let offset = process.steps_offset as usize;
    match process.spacing {
        TimestepSpacing::Linspace => {
            linspace(0.0, last as f64, parts).into_iter().rev().take(count).map(rounded).collect()
        }
        TimestepSpacing::Leading => {
            let stride = TRAIN_TIMESTEPS / parts;
            (0..parts).rev().take(count).map(|i| (i * stride + offset).min(last)).collect()
        }
        TimestepSpacing::Trailing => {
            let stride = TRAIN_TIMESTEPS as f64 / count as f64;
            (0..count).map(|i| rounded(TRAIN_TIMESTEPS as f64 - i as f64 * stride).saturating_sub(1)).collect()
        }
    }
}

/// Some of the timesteps that a latent consistency model was distilled on.
fn distilled(count: usize) -> Vec<usize> {
    let all = DISTILLED_STEPS.max(count);
    (0..count).map(|i| (all - i * all / count) * (TRAIN_TIMESTEPS / all) - 1).collect()
}

/// Each timestep leads to the next of the list.
fn listed(timesteps: Vec<usize>, alpha_bars: &[f64]) -> Vec<Step> {
    let levels = timesteps.iter().map(|&t| Level::variance_preserving(alpha_bars[t])).collect();
    chain(timesteps.into_iter().map(|t| t as f32).collect(), levels)
}

/// Timestep t leads to t − ⌊1000 / steps⌋, which is not always the next of the list.
fn ddim(timesteps: Vec<usize>, process: &DiscreteProcess, alpha_bars: &[f64]) -> Vec<Step> {
    let stride = TRAIN_TIMESTEPS / timesteps.len();
    let end = if process.ends_clean { 1.0 } else { alpha_bars[0] };
    let step = |t: usize| Step {
        timestep: t as f32,
        from: Level::variance_preserving(alpha_bars[t]),
        to: Level::variance_preserving(t.checked_sub(stride).map_or(end, |to| alpha_bars[to])),
    };
    timesteps.into_iter().map(step).collect()
}

/// Schedules in σ/α, which may lie between the levels of training.
fn by_sigma(settings: &SamplerSettings, process: &DiscreteProcess) -> Vec<Step> {
    let count = settings.steps.max(1) as usize;
    let ratios = ratios(process);
    let multistep = settings.sampler.is_multistep();
    let grid = grid(process, count, multistep);
    let sigmas: Vec<f64> = grid.iter().map(|&t| ratio_at(t, &ratios)).collect();
    // Multistep schedulers spread over all of training, Euler's over its own grid.
    let limits = if multistep { (ratios[TRAIN_TIMESTEPS - 1], ratios[0]) } else { (sigmas[0], sigmas[count - 1]) };
    let (times, sigmas) = match spread::between(settings.schedule, limits.0, limits.1, count) {
        None => (grid, sigmas),
        Some(spread) => (spread.iter().map(|&sigma| timestep_of(sigma, &ratios)).collect(), spread),
    };
    // Multistep schedulers tell the model whole numbers: rounded for Karras, else cut. A logarithm's last digit must not
    // cut a whole number to the one below.
    const DIGIT: f64 = 1e-6;
    let told = |t: f64| match (multistep, settings.schedule) {
        (true, SigmaSchedule::Karras) => t.round_ties_even(),
        (true, _) => (t + DIGIT).trunc(),
        (false, _) => t,
    };
    let levels = sigmas.into_iter().map(|sigma| Level::of_ratio(f64::from(sigma as f32))).collect();
    chain(times.into_iter().map(|t| told(t) as f32).collect(), levels)
}

/// Times of the uniform schedule.
fn grid(process: &DiscreteProcess, count: usize, multistep: bool) -> Vec<f64> {
    match (multistep, process.spacing) {
        // Euler's grid is not rounded.
        (false, TimestepSpacing::Linspace) => {
            linspace(0.0, (TRAIN_TIMESTEPS - 1) as f64, count).into_iter().rev().collect()
        }
        _ => spaced(process, count, count + usize::from(multistep)).into_iter().map(|t| t as f64).collect(),
    }
}

/// σ/α at a time between whole timesteps, by linear interpolation.
fn ratio_at(t: f64, ratios: &[f64]) -> f64 {
    let low = (t as usize).min(ratios.len() - 2);
    ratios[low] + (t - low as f64) * (ratios[low + 1] - ratios[low])
}

/// The time at which σ/α is `ratio`, by interpolation of its logarithm.
fn timestep_of(ratio: f64, ratios: &[f64]) -> f64 {
    let low = ratios.partition_point(|&r| r <= ratio).saturating_sub(1).min(ratios.len() - 2);
    let (from, to) = (ratios[low].ln(), ratios[low + 1].ln());
    low as f64 + ((ratio.ln() - from) / (to - from)).clamp(0.0, 1.0)
}
