//! Schedules of flow matching, σ from 1 to 0. Each family of samplers has a grid of its own, as published models were
//! tuned with them: those of diffusers' FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler and
//! DPMSolverMultistepScheduler.

use super::discrete::ratios;
use super::{Step, TRAIN_TIMESTEPS, chain, linspace, spread};
use crate::sampler::level::Level;
use pipeline::{DiscreteProcess, Sampler, SamplerSettings, SigmaSchedule};

const LOWEST: f64 = 1.0 / TRAIN_TIMESTEPS as f64;

pub(super) fn steps(settings: &SamplerSettings) -> Vec<Step> {
    let (count, shift) = (settings.steps.max(1) as usize, f64::from(settings.shift));
    let multistep = settings.sampler.is_multistep();
    let sigmas = match (settings.sampler, settings.schedule) {
        (Sampler::Unipc, SigmaSchedule::Uniform) => unipc(count, shift),
        (_, SigmaSchedule::Uniform) if multistep => dpm(count, shift),
        (_, schedule) if multistep => by_ratio(schedule, count),
        (_, schedule) => {
            let grid = euler(count, shift);
            spread::between(schedule, grid[0], grid[count - 1], count).unwrap_or(grid)
        }
    };
    // Multistep schedulers cut the timestep to a whole number, and σ not.
    let timestep = |sigma: f64| match multistep {
        true => (sigma * TRAIN_TIMESTEPS as f64).trunc() as f32,
        false => sigma as f32 * TRAIN_TIMESTEPS as f32,
    };
    let timesteps = sigmas.iter().map(|&sigma| timestep(sigma)).collect();
    chain(timesteps, sigmas.into_iter().map(Level::flow).collect())
}

/// The shift bends the grid's lower end and then the whole grid again: the grid lies between limits that have already
/// been shifted.
fn euler(count: usize, shift: f64) -> Vec<f64> {
    linspace(1.0, shifted(LOWEST, shift), count).into_iter().map(|t| shifted(t, shift)).collect()
}

/// The grid ends one step before 1/1000.
fn unipc(count: usize, shift: f64) -> Vec<f64> {
    // σ = 1 would have a logarithmic signal-to-noise ratio of −∞.
    const BELOW_ONE: f64 = 1e-6;
    let mut sigmas: Vec<f64> = linspace(1.0, LOWEST, count + 1)[..count].iter().map(|&t| shifted(t, shift)).collect();
    if (sigmas[0] - 1.0).abs() < BELOW_ONE {
        sigmas[0] -= BELOW_ONE;
    }
    sigmas
}

/// The grid is even in 1 − σ and starts at 999/1000.
fn dpm(count: usize, shift: f64) -> Vec<f64> {
    let alphas = linspace(1.0, LOWEST, count + 1);
    alphas[1..].iter().rev().map(|alpha| shifted(1.0 - alpha, shift)).collect()
}

/// Spread in σ/(1 − σ), between the limits of a discrete process: what UniPC does with Karras sigmas of a flow. The shift
/// has no say in it.
fn by_ratio(schedule: SigmaSchedule, count: usize) -> Vec<f64> {
    let ratios = ratios(&DiscreteProcess::default());
    let spread = spread::between(schedule, ratios[TRAIN_TIMESTEPS - 1], ratios[0], count).unwrap_or_default();
    spread.into_iter().map(|ratio| ratio / (1.0 + ratio)).collect()
}

fn shifted(t: f64, shift: f64) -> f64 {
    shift * t / (1.0 + (shift - 1.0) * t)
}
