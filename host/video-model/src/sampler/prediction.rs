//! What the network's answer means. Picture and noise are both linear in the latent and the answer.

use super::level::Level;
use pipeline::{NoiseProcess, Prediction};

/// `latent`·latent + `answer`·answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mix {
    pub(super) latent: f64,
    pub(super) answer: f64,
}

/// The picture that the network sees in a latent at `level`.
pub(super) fn picture(process: &NoiseProcess, Level { alpha, sigma }: Level) -> Mix {
    match process {
        // velocity = noise − picture (arXiv 2210.02747)
        NoiseProcess::Flow => Mix { latent: 1.0, answer: -sigma },
        NoiseProcess::Discrete(process) => match process.prediction {
            Prediction::Epsilon => Mix { latent: 1.0 / alpha, answer: -sigma / alpha },
            // v = α·noise − σ·picture (arXiv 2202.00512)
            Prediction::Velocity => Mix { latent: alpha, answer: -sigma },
            Prediction::Sample => Mix { latent: 0.0, answer: 1.0 },
        },
    }
}

/// The noise that it sees there.
pub(super) fn noise(process: &NoiseProcess, Level { alpha, sigma }: Level) -> Mix {
    match process {
        NoiseProcess::Flow => Mix { latent: 1.0, answer: alpha },
        NoiseProcess::Discrete(process) => match process.prediction {
            Prediction::Epsilon => Mix { latent: 0.0, answer: 1.0 },
            Prediction::Velocity => Mix { latent: sigma, answer: alpha },
            Prediction::Sample => Mix { latent: 1.0 / sigma, answer: -alpha / sigma },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeline::DiscreteProcess;

    #[test]
    fn picture_and_noise_make_the_latent_again() {
        let discrete =
            |prediction| NoiseProcess::Discrete(DiscreteProcess { prediction, ..DiscreteProcess::default() });
        let (x, m) = (0.7, -0.4);
        for (process, level) in [
            (NoiseProcess::Flow, Level::flow(0.3)),
            (discrete(Prediction::Epsilon), Level::variance_preserving(0.2)),
            (discrete(Prediction::Velocity), Level::variance_preserving(0.2)),
            (discrete(Prediction::Sample), Level::of_ratio(1.5)),
        ] {
            let at = |mix: Mix| mix.latent * x + mix.answer * m;
            let again = level.alpha * at(picture(&process, level)) + level.sigma * at(noise(&process, level));
            assert!((again - x).abs() < 1e-12, "{process:?}: {again}");
        }
    }
}
