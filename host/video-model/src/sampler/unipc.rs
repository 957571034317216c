//! UniPC (arXiv 2302.04867), order 2, B(h) = eʰ − 1, on predictions of the clean latent.

/// What a multistep update remembers: the last two predictions and the latent that the last step started from.
#[derive(Debug, Default)]
pub(super) struct UniPc {
    /// Predicted clean latents, newest last.
    predictions: Vec<Vec<f32>>,
    start: Vec<f32>,
    order: usize,
}

/// x′ = x_factor·x + Σ weights·predictions; the update is linear in everything but the noise levels.
struct Exponential {
    x_factor: f64,
    /// α·(eʰ − 1), which is also α·B(h).
    scale: f64,
    /// h, negated: the exponent of the prediction form.
    exponent: f64,
}

impl Exponential {
    fn between(from: f32, to: f32) -> Self {
        let exponent = half_log_snr(from) - half_log_snr(to);
        Self { x_factor: f64::from(to) / f64::from(from), scale: (1.0 - f64::from(to)) * exponent.exp_m1(), exponent }
    }

    /// (λ_older − λ_from) / h: where the older prediction lies, in units of this step.
    fn ratio(&self, older: f32, from: f32) -> f64 {
        (half_log_snr(older) - half_log_snr(from)) / -self.exponent
    }
}

/// λ = ln α − ln σ with α = 1 − σ; infinite at σ = 0.
fn half_log_snr(sigma: f32) -> f64 {
    (1.0 - f64::from(sigma)).ln() - f64::from(sigma).ln()
}

impl UniPc {
    pub(super) fn step(&mut self, sigmas: &[f32], index: usize, latent: &mut [f32], velocity: &[f32]) {
        let sigma = sigmas[index];
        let prediction: Vec<f32> = latent.iter().zip(velocity).map(|(x, v)| x - sigma * v).collect();
        if index > 0 {
            // Before the history moves on: the corrector redoes the previous step, now that its end has been evaluated.
            self.correct(sigmas, index, latent, &prediction);
        }
        if self.predictions.len() == 2 {
            self.predictions.remove(0);
        }
        self.predictions.push(prediction);
        let left = sigmas.len() - 1 - index;
        self.order = 2.min(left).min(self.predictions.len());
        self.start = latent.to_vec();
        self.predict(sigmas, index, latent);
    }

    /// From `latent` at `sigmas[index]` to the next level.
    fn predict(&self, sigmas: &[f32], index: usize, latent: &mut [f32]) {
        let update = Exponential::between(sigmas[index], sigmas[index + 1]);
        let newest = self.predictions.len() - 1;
        let m0 = &self.predictions[newest];
        if self.order == 1 {
            combine(latent, update.x_factor, &[(-update.scale, m0)]);
            return;
        }
        let slope = 0.5 * update.scale / update.ratio(sigmas[index - 1], sigmas[index]);
        combine(latent, update.x_factor, &[(slope - update.scale, m0), (-slope, &self.predictions[newest - 1])]);
    }

    /// `latent` becomes the corrected latent at `sigmas[index]`; `prediction` is the model's at the uncorrected one.
    fn correct(&self, sigmas: &[f32], index: usize, latent: &mut [f32], prediction: &[f32]) {
        let update = Exponential::between(sigmas[index - 1], sigmas[index]);
        let newest = self.predictions.len() - 1;
        let m0 = &self.predictions[newest];
        latent.copy_from_slice(&self.start);
        if self.order == 1 {
            combine(latent, update.x_factor, &[(-0.5 * update.scale, m0), (-0.5 * update.scale, prediction)]);
            return;
        }
        let ratio = update.ratio(sigmas[index - 2], sigmas[index - 1]);
        let [older, here] = corrector_weights(&update, ratio);
        let (slope, end) = (update.scale * older / ratio, update.scale * here);
        let weights =
            [(slope + end - update.scale, &**m0), (-slope, &self.predictions[newest - 1]), (-end, prediction)];
        combine(latent, update.x_factor, &weights);
    }
}

/// ρ of the order-2 corrector: solves [[1, 1], [ratio, 1]]·ρ = b, b from the φ functions of the exponent.
fn corrector_weights(update: &Exponential, ratio: f64) -> [f64; 2] {
    let z = update.exponent;
    let growth = z.exp_m1();
    let phi_2 = growth / z - 1.0;
    let phi_3 = phi_2 / z - 0.5;
    let b = [phi_2 / growth, 2.0 * phi_3 / growth];
    let older = (b[0] - b[1]) / (1.0 - ratio);
    [older, b[0] - older]
}

fn combine(latent: &mut [f32], x_factor: f64, terms: &[(f64, &[f32])]) {
    for (i, x) in latent.iter_mut().enumerate() {
        let sum: f64 = terms.iter().map(|(weight, m)| weight * f64::from(m[i])).sum();
        *x = (x_factor * f64::from(*x) + sum) as f32;
    }
}
