//! Which levels an integration visits, and what the model is told at each.

mod discrete;
mod flow;
mod spread;

use super::level::Level;
use pipeline::{NoiseProcess, SamplerSettings};

/// Timesteps of training: the model is told a time from 0 to 1000.
const TRAIN_TIMESTEPS: usize = 1000;

/// One step of an integration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Step {
    /// What the model is told.
    pub(super) timestep: f32,
    pub(super) from: Level,
    pub(super) to: Level,
}

/// The steps of the integration that `settings` describe.
pub(super) fn steps(settings: &SamplerSettings) -> Vec<Step> {
    match &settings.process {
        NoiseProcess::Flow => flow::steps(settings),
        NoiseProcess::Discrete(process) => discrete::steps(settings, process),
    }
}

/// Steps from each level to the next, the last one to the clean picture.
fn chain(timesteps: Vec<f32>, levels: Vec<Level>) -> Vec<Step> {
    let ends = levels.iter().copied().skip(1).chain([Level::CLEAN]).collect::<Vec<_>>();
    timesteps.into_iter().zip(levels).zip(ends).map(|((timestep, from), to)| Step { timestep, from, to }).collect()
}

/// `count` values from `first` to `last`, both included.
fn linspace(first: f64, last: f64, count: usize) -> Vec<f64> {
    let stride = (last - first) / (count.max(2) - 1) as f64;
    (0..count).map(|i| first + stride * i as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeline::{BetaSchedule, DiscreteProcess, Sampler, SigmaSchedule, TimestepSpacing};
    use proptest::prelude::*;

    fn process() -> impl Strategy<Value = NoiseProcess> {
        const SPACINGS: [TimestepSpacing; 3] =
            [TimestepSpacing::Linspace, TimestepSpacing::Leading, TimestepSpacing::Trailing];
        const BETAS: [BetaSchedule; 2] = [BetaSchedule::Linear, BetaSchedule::ScaledLinear];
        let discrete =
            (prop::sample::select(&SPACINGS[..]), prop::sample::select(&BETAS[..])).prop_map(|(spacing, betas)| {
                NoiseProcess::Discrete(DiscreteProcess { spacing, betas, ..DiscreteProcess::default() })
            });
        prop_oneof![Just(NoiseProcess::Flow), discrete]
    }

    proptest! {
        #[test]
        fn noise_only_ever_falls(
            sampler in prop::sample::select(&Sampler::ALL[..]),
            schedule in prop::sample::select(&SigmaSchedule::ALL[..]),
            process in process(),
            count in 1u32..=200,
            shift in 0.01f32..100.0,
        ) {
            let settings = SamplerSettings { schedule, process, ..SamplerSettings::new(sampler, count, shift) };
            let steps = steps(&settings);
            prop_assert_eq!(steps.len(), count as usize);
            for step in &steps {
                prop_assert!(step.from.sigma > step.to.sigma && step.to.alpha > step.from.alpha, "{:?}", step);
                prop_assert!((0.0..=1000.0).contains(&step.timestep), "{:?}", step);
            }
            // DDIM's stride on a discrete process is its own: it may end one level above the picture.
            let end = steps[count as usize - 1].to;
            prop_assert!(end == Level::CLEAN || (sampler == Sampler::Ddim && end.sigma < 0.02), "{:?}", end);
        }
    }
}
