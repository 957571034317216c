//! Guidance: the model's answer to the prompt, pushed away from its answer to the negative prompt.
//!
//! Sums over a latent run in f64 with a fixed order, so that a result does not depend on the number of threads.

use pipeline::{GuidanceKind, GuidanceSettings};

/// The guidance of one generation. Answers are flat f32 slices of one length, in any layout.
#[derive(Debug)]
pub struct Guidance {
    settings: GuidanceSettings,
    /// APG's running sum of differences; empty before the first one.
    momentum: Vec<f32>,
}

impl Guidance {
    /// Guidance before its first step.
    pub fn new(settings: &GuidanceSettings) -> Self {
        Self { settings: *settings, momentum: Vec::new() }
    }

    /// Whether step `step` (from 0) of `total` looks at the model's answer to the negative prompt.
    pub fn needs_negative(&self, step: usize, total: usize) -> bool {
        let interval = self.settings.interval;
        let at = |fraction: f32| (f64::from(fraction) * total as f64) as usize;
        let inside = (at(interval.start)..at(interval.end)).contains(&step);
        self.settings.is_guided() && inside && !self.moves_nothing(step)
    }

    /// Whether step `step` takes a velocity of zero whatever the model answers, so that it need not be asked at all
    /// (the zero-init of CFG-Zero*).
    pub fn moves_nothing(&self, step: usize) -> bool {
        match self.settings.kind {
            GuidanceKind::CfgZero { zero_steps } => self.settings.is_guided() && step < zero_steps as usize,
            GuidanceKind::Cfg | GuidanceKind::Apg { .. } => false,
        }
    }

    /// `conditional` becomes the guided answer of step `step`. Without `unconditional`, or with one of another length,
    /// it stays as it is: give one wherever [`needs_negative`](Self::needs_negative) says so.
    pub fn combine(&mut self, step: usize, conditional: &mut [f32], unconditional: Option<&[f32]>) {
        if self.moves_nothing(step) {
            conditional.fill(0.0);
            return;
        }
        let Some(unconditional) = unconditional.filter(|u| u.len() == conditional.len()) else { return };
        let spread = (self.settings.rescale > 0.0).then(|| standard_deviation(conditional));
        let scale = self.settings.scale;
        match self.settings.kind {
            GuidanceKind::Cfg => cfg(conditional, unconditional, scale),
            GuidanceKind::CfgZero { .. } => cfg_zero(conditional, unconditional, scale),
            GuidanceKind::Apg { momentum, norm, parallel } => {
                self.remember(conditional, unconditional, momentum);
                apg(conditional, unconditional, &self.momentum, scale, norm, parallel);
            }
        }
        if let Some(spread) = spread {
            rescale(conditional, spread, self.settings.rescale);
        }
    }

    /// Adds the difference of the two answers to `share` of the sum so far.
    fn remember(&mut self, conditional: &[f32], unconditional: &[f32], share: f32) {
        if self.momentum.len() != conditional.len() {
            self.momentum = vec![0.0; conditional.len()];
        }
        for ((sum, c), u) in self.momentum.iter_mut().zip(conditional).zip(unconditional) {
            *sum = (c - u) + share * *sum;
        }
    }
}

/// unconditional + scale·(conditional − unconditional).
fn cfg(conditional: &mut [f32], unconditional: &[f32], scale: f32) {
    for (c, u) in conditional.iter_mut().zip(unconditional) {
        *c = u + scale * (*c - u);
    }
}

/// The same with the unconditional answer projected onto the conditional one: scaled by ⟨c, u⟩ / ‖u‖².
fn cfg_zero(conditional: &mut [f32], unconditional: &[f32], scale: f32) {
    // Keeps the quotient finite for an answer of zeros.
    const TINY: f64 = 1e-8;
    let fit = (dot(conditional, unconditional) / (dot(unconditional, unconditional) + TINY)) as f32;
    for (c, u) in conditional.iter_mut().zip(unconditional) {
        let u = fit * u;
        *c = u + scale * (*c - u);
    }
}

/// unconditional + scale·(difference, cut to `norm`, with `parallel` of its part along the conditional answer).
fn apg(conditional: &mut [f32], unconditional: &[f32], difference: &[f32], scale: f32, norm: f32, parallel: f32) {
    let length = dot(difference, difference).sqrt();
    let cut = if norm > 0.0 && length > f64::from(norm) { f64::from(norm) / length } else { 1.0 };
    let along = match dot(conditional, conditional) {
        square if square > 0.0 => cut * dot(difference, conditional) / square,
        _ => 0.0,
    };
    let cut = cut as f32;
    let less = ((f64::from(parallel) - 1.0) * along) as f32;
    for ((c, u), d) in conditional.iter_mut().zip(unconditional).zip(difference) {
        *c = u + scale * (cut * d + less * *c);
    }
}

/// Mixes in `share` of the answer with its standard deviation taken back to `spread`.
fn rescale(answer: &mut [f32], spread: f64, share: f32) {
    let own = standard_deviation(answer);
    if own == 0.0 {
        return;
    }
    let factor = (f64::from(share) * spread / own + (1.0 - f64::from(share))) as f32;
    answer.iter_mut().for_each(|x| *x *= factor);
}

/// Independent sums, so that a core has something to do while it waits for the last addition.
const LANES: usize = 16;

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    for (a, b) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// Of a sample: divided by n − 1.
fn standard_deviation(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f64 = chunks.remainder().iter().map(|x| f64::from(*x)).sum();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += f64::from(chunk[lane]);
        }
    }
    let count = values.len() as f64;
    let mean = (sums.iter().sum::<f64>() + rest) / count;
    let variance = (dot(values, values) - count * mean * mean) / (count - 1.0).max(1.0);
    variance.max(0.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeline::GuidanceInterval;
    use safetensors::SafeTensors;

    fn settings(scale: f32, kind: &str) -> GuidanceSettings {
        GuidanceSettings { kind: kind.parse().unwrap(), ..GuidanceSettings::cfg(scale) }
    }

    const GOLDEN: &[u8] =
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/parity/goldens/guidance.safetensors"));

    /// The guiders of diffusers, over the steps of a generation (`tests/parity/guidance.py`).
    #[test]
    fn every_kind_of_guidance_follows_diffusers_step_by_step() {
        let file = SafeTensors::deserialize(GOLDEN).unwrap();
        let rows = |name: &str| -> Vec<Vec<f32>> {
            let tensor = file.tensor(name).unwrap();
            let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            values.collect::<Vec<_>>().chunks(tensor.shape()[1]).map(<[f32]>::to_vec).collect()
        };
        let (_, metadata) = SafeTensors::read_metadata(GOLDEN).unwrap();
        let cases = metadata.metadata().clone().unwrap();
        assert_eq!(cases.len(), 24);
        let (conditional, unconditional) = (rows("conditional"), rows("unconditional"));
        for (name, case) in &cases {
            let case: serde_json::Value = serde_json::from_str(case).unwrap();
            let number = |key: &str| case[key].as_f64().unwrap() as f32;
            let mut guidance = Guidance::new(&GuidanceSettings {
                kind: case["kind"].as_str().unwrap().parse().unwrap(),
                interval: case["interval"].as_str().unwrap().parse().unwrap(),
                rescale: number("rescale"),
                scale: number("scale"),
            });
            for (step, expected) in rows(name).iter().enumerate() {
                let mut answer = conditional[step].clone();
                let needed = guidance.needs_negative(step, conditional.len());
                guidance.combine(step, &mut answer, needed.then_some(unconditional[step].as_slice()));
                for (a, b) in answer.iter().zip(expected) {
                    // Sums of 40 in float32.
                    assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{name}, step {step}: {a} is not {b}");
                }
            }
        }
    }

    #[test]
    fn a_scale_of_one_is_the_conditional_answer_and_more_goes_past_it() {
        for scale in [0.0, 1.0] {
            assert!(!Guidance::new(&GuidanceSettings::cfg(scale)).needs_negative(0, 10));
        }
        let mut guidance = Guidance::new(&GuidanceSettings::cfg(3.0));
        let mut c = [2.0, -1.0];
        guidance.combine(0, &mut c, Some(&[1.0, 1.0]));
        assert_eq!(c, [4.0, -5.0]);
    }

    #[test]
    fn the_negative_pass_is_saved_outside_of_the_interval() {
        let interval = GuidanceInterval { start: 0.2, end: 0.75 };
        let guidance = Guidance::new(&GuidanceSettings { interval, ..GuidanceSettings::cfg(5.0) });
        let guided: Vec<usize> = (0..10).filter(|&step| guidance.needs_negative(step, 10)).collect();
        assert_eq!(guided, [2, 3, 4, 5, 6]);
    }

    #[test]
    fn zero_init_moves_nothing_and_asks_for_no_pass() {
        let mut guidance = Guidance::new(&settings(5.0, "cfg-zero:steps=2"));
        assert!(guidance.moves_nothing(1) && !guidance.needs_negative(1, 10) && guidance.needs_negative(2, 10));
        let mut c = [2.0, -1.0];
        guidance.combine(1, &mut c, None);
        assert_eq!(c, [0.0, 0.0]);
        assert!(!Guidance::new(&settings(1.0, "cfg-zero")).moves_nothing(0), "a scale of 1 switches it off");
    }

    #[test]
    fn apg_without_its_parallel_part_moves_at_right_angles() {
        let mut guidance = Guidance::new(&settings(4.0, "apg:norm=0,parallel=0"));
        let (conditional, unconditional) = ([3.0f32, 4.0, 0.0], [1.0f32, 1.0, 1.0]);
        let mut guided = conditional;
        guidance.combine(0, &mut guided, Some(&unconditional));
        let push: Vec<f32> = guided.iter().zip(&unconditional).map(|(g, u)| g - u).collect();
        assert!(dot(&push, &conditional).abs() < 1e-4, "{push:?}");
    }

    #[test]
    fn full_rescale_restores_the_conditional_answer_s_spread() {
        let mut guidance = Guidance::new(&GuidanceSettings { rescale: 1.0, ..GuidanceSettings::cfg(7.0) });
        let mut c: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
        let u: Vec<f32> = (0..100).map(|i| (i as f32 * 0.3).cos()).collect();
        let before = standard_deviation(&c);
        guidance.combine(0, &mut c, Some(&u));
        assert!((standard_deviation(&c) - before).abs() < 1e-5);
    }
}
