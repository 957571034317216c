//! Guidance: the model's answer to the prompt, pushed away from its answer to the negative prompt.
//!
//! Every kind of it is a weighted sum of the two answers (and of APG's memory); the weights may depend on the answers'
//! lengths and angles, which are sums over the whole latent in f64.

use super::form::{Form, Vector, Vectors};
use crate::error::Result;
use kernels::{Gram, Tensor, gram};
use pipeline::{GuidanceKind, GuidanceSettings};

/// The guidance of one generation. Answers are f32 tensors of one shape, in any layout.
#[derive(Debug)]
pub struct Guidance {
    settings: GuidanceSettings,
    /// APG's running sum of differences; none before the first one.
    momentum: Option<Tensor>,
}

/// A guided answer: not a tensor yet, but the weights of those that it is the sum of.
#[derive(Debug, Clone)]
pub struct Guided {
    conditional: Tensor,
    unconditional: Option<Tensor>,
    momentum: Option<Tensor>,
    form: Form,
}

impl Guided {
    /// An answer as it is.
    pub fn plain(answer: Tensor) -> Self {
        Self { conditional: answer, unconditional: None, momentum: None, form: Form::of(Vector::Conditional) }
    }

    /// An answer of zeros, of the shape of `like`.
    pub fn nothing(like: &Tensor) -> Self {
        Self { form: Form::NOTHING, ..Self::plain(like.clone()) }
    }

    /// The sum itself.
    pub fn tensor(&self) -> Result<Tensor> {
        let mut vectors = Vectors::default();
        self.put_into(&mut vectors);
        // A sum of nothing has no inputs to take its shape from.
        let zeros = Form::NOTHING == self.form;
        let form = if zeros { Form::of(Vector::Conditional) } else { self.form };
        let mut sums = vectors.sums(&[form])?;
        match sums.pop().filter(|_| !zeros) {
            Some(sum) => Ok(sum),
            None => Ok(Tensor::zeros(self.shape(), self.conditional.dtype())?),
        }
    }

    pub(super) fn shape(&self) -> &[usize] {
        self.conditional.shape()
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    pub(super) fn put_into<'a>(&'a self, vectors: &mut Vectors<'a>) {
        vectors.set(Vector::Conditional, Some(&self.conditional));
        vectors.set(Vector::Unconditional, self.unconditional.as_ref());
        vectors.set(Vector::Momentum, self.momentum.as_ref());
    }
}

impl Guidance {
    /// Guidance before its first step.
    pub fn new(settings: &GuidanceSettings) -> Self {
        Self { settings: *settings, momentum: None }
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

    /// The guided answer of step `step`. Without `unconditional` it is the conditional one as it is: give one wherever
    /// [`needs_negative`](Self::needs_negative) says so.
    pub fn combine(&mut self, step: usize, conditional: Tensor, unconditional: Option<Tensor>) -> Result<Guided> {
        if self.moves_nothing(step) {
            return Ok(Guided::nothing(&conditional));
        }
        let Some(unconditional) = unconditional else { return Ok(Guided::plain(conditional)) };
        if let GuidanceKind::Apg { momentum, .. } = self.settings.kind {
            self.remember(&conditional, &unconditional, momentum)?;
        }
        let mut guided = Guided {
            unconditional: Some(unconditional),
            momentum: self.momentum.clone(),
            ..Guided::plain(conditional)
        };
        guided.form = self.form(&guided)?;
        Ok(guided)
    }

    fn form(&self, answers: &Guided) -> Result<Form> {
        let scale = f64::from(self.settings.scale);
        let (c, u) = (Form::of(Vector::Conditional), Form::of(Vector::Unconditional));
        let plain = c.combined(scale, &[(1.0 - scale, u)]);
        let rescale = f64::from(self.settings.rescale);
        if rescale == 0.0 && matches!(self.settings.kind, GuidanceKind::Cfg) {
            return Ok(plain);
        }
        let present = [Some(&answers.conditional), answers.unconditional.as_ref(), answers.momentum.as_ref()];
        let products = gram(&present.into_iter().flatten().collect::<Vec<_>>())?;
        let guided = match self.settings.kind {
            GuidanceKind::Cfg => plain,
            GuidanceKind::CfgZero { .. } => cfg_zero(&products, scale),
            GuidanceKind::Apg { norm, parallel, .. } => apg(&products, scale, f64::from(norm), f64::from(parallel)),
        };
        Ok(if rescale > 0.0 { rescaled(&products, guided, rescale) } else { guided })
    }

    /// Adds the difference of the two answers to `share` of the sum so far.
    fn remember(&mut self, conditional: &Tensor, unconditional: &Tensor, share: f32) -> Result<()> {
        let mut vectors = Vectors::default();
        vectors.set(Vector::Conditional, Some(conditional));
        vectors.set(Vector::Unconditional, Some(unconditional));
        vectors.set(Vector::Momentum, self.momentum.as_ref());
        let difference = Form::of(Vector::Conditional).combined(1.0, &[(-1.0, Form::of(Vector::Unconditional))]);
        let sum = match self.momentum {
            Some(_) => difference.combined(1.0, &[(f64::from(share), Form::of(Vector::Momentum))]),
            None => difference,
        };
        self.momentum = vectors.sums(&[sum])?.pop();
        Ok(())
    }
}

/// The unconditional answer projected onto the conditional one (scaled by ⟨c, u⟩ / ‖u‖²), then as always.
fn cfg_zero(products: &Gram, scale: f64) -> Form {
    // Keeps the quotient finite for an answer of zeros.
    const TINY: f64 = 1e-8;
    let fit = products.dot(C, U) / (products.dot(U, U) + TINY);
    Form::of(Vector::Conditional).combined(scale, &[((1.0 - scale) * fit, Form::of(Vector::Unconditional))])
}

/// unconditional + scale·(difference, cut to `norm`, with `parallel` of its part along the conditional answer).
fn apg(products: &Gram, scale: f64, norm: f64, parallel: f64) -> Form {
    let length = products.dot(M, M).sqrt();
    let cut = if norm > 0.0 && length > norm { norm / length } else { 1.0 };
    let along = match products.dot(C, C) {
        square if square > 0.0 => cut * products.dot(M, C) / square,
        _ => 0.0,
    };
    let less = (parallel - 1.0) * along;
    let (c, u, difference) =
        (Form::of(Vector::Conditional), Form::of(Vector::Unconditional), Form::of(Vector::Momentum));
    c.combined(scale * less, &[(1.0, u), (scale * cut, difference)])
}

/// Mixes in `share` of the answer with its standard deviation taken back to the conditional one's.
fn rescaled(products: &Gram, guided: Form, share: f64) -> Form {
    let own = products.standard_deviation(&guided.weights_of(ANSWERS));
    if own == 0.0 {
        return guided;
    }
    let spread = products.standard_deviation(C);
    guided.combined(share * spread / own + (1.0 - share), &[])
}

/// The order of the vectors whose products are taken; each by itself is a sum with these weights.
const ANSWERS: [Vector; 3] = [Vector::Conditional, Vector::Unconditional, Vector::Momentum];
const C: &[f64] = &[1.0];
const U: &[f64] = &[0.0, 1.0];
const M: &[f64] = &[0.0, 0.0, 1.0];

#[cfg(test)]
mod tests {
    use super::*;
    use pipeline::GuidanceInterval;
    use safetensors::SafeTensors;

    fn settings(scale: f32, kind: &str) -> GuidanceSettings {
        GuidanceSettings { kind: kind.parse().unwrap(), ..GuidanceSettings::cfg(scale) }
    }

    fn combined(guidance: &mut Guidance, step: usize, c: &[f32], u: Option<&[f32]>) -> Vec<f32> {
        let tensor = |values: &[f32]| Tensor::from_f32(values, &[values.len()]).unwrap();
        guidance.combine(step, tensor(c), u.map(tensor)).unwrap().tensor().unwrap().to_vec_f32()
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    fn standard_deviation(values: &[f32]) -> f64 {
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
        let square: f64 = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum();
        (square / (values.len() - 1) as f64).sqrt()
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
                let needed = guidance.needs_negative(step, conditional.len());
                let negative = needed.then_some(unconditional[step].as_slice());
                let answer = combined(&mut guidance, step, &conditional[step], negative);
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
        assert_eq!(combined(&mut guidance, 0, &[2.0, -1.0], Some(&[1.0, 1.0])), [4.0, -5.0]);
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
        assert_eq!(combined(&mut guidance, 1, &[2.0, -1.0], None), [0.0, 0.0]);
        assert!(!Guidance::new(&settings(1.0, "cfg-zero")).moves_nothing(0), "a scale of 1 switches it off");
    }

    #[test]
    fn apg_without_its_parallel_part_moves_at_right_angles() {
        let mut guidance = Guidance::new(&settings(4.0, "apg:norm=0,parallel=0"));
        let (conditional, unconditional) = ([3.0f32, 4.0, 0.0], [1.0f32, 1.0, 1.0]);
        let guided = combined(&mut guidance, 0, &conditional, Some(&unconditional));
        let push: Vec<f32> = guided.iter().zip(&unconditional).map(|(g, u)| g - u).collect();
        assert!(dot(&push, &conditional).abs() < 1e-4, "{push:?}");
    }

    #[test]
    fn full_rescale_restores_the_conditional_answer_s_spread() {
        let mut guidance = Guidance::new(&GuidanceSettings { rescale: 1.0, ..GuidanceSettings::cfg(7.0) });
        let c: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
        let u: Vec<f32> = (0..100).map(|i| (i as f32 * 0.3).cos()).collect();
        let before = standard_deviation(&c);
        let c = combined(&mut guidance, 0, &c, Some(&u));
        assert!((standard_deviation(&c) - before).abs() < 1e-5);
    }
}
