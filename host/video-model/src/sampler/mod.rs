//! Flow-matching samplers: they integrate a velocity field from noise (σ = 1) to a picture (σ = 0).
//!
//! The convention is x_σ = (1 − σ)·picture + σ·noise and velocity = noise − picture. Schedules and updates are those of
//! diffusers' `FlowMatchEulerDiscreteScheduler` and `UniPCMultistepScheduler(use_flow_sigmas, order 2, bh2)`, quirks
//! included, because published models were tuned with them.

mod guidance;
mod schedule;
mod unipc;

pub use guidance::Guidance;
use pipeline::{Sampler, SamplerSettings};
use schedule::Schedule;
use unipc::UniPc;

/// One integration in progress. Latents and velocities are flat f32 slices of one length, in any layout.
#[derive(Debug)]
pub struct SamplerState {
    schedule: Schedule,
    index: usize,
    update: Update,
}

#[derive(Debug)]
enum Update {
    Euler,
    UniPc(UniPc),
}

impl SamplerState {
    /// An integration over the schedule that `settings` describe.
    pub fn new(settings: &SamplerSettings) -> Self {
        let steps = settings.steps.max(1) as usize;
        match settings.sampler {
            Sampler::Euler => {
                Self { schedule: Schedule::euler(steps, settings.shift), index: 0, update: Update::Euler }
            }
            Sampler::Unipc => Self {
                schedule: Schedule::unipc(steps, settings.shift),
                index: 0,
                update: Update::UniPc(UniPc::default()),
            },
        }
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.schedule.timesteps.len()
    }

    /// Noise levels from the first step to the end: `steps() + 1` values, the last one 0.
    pub fn sigmas(&self) -> &[f32] {
        &self.schedule.sigmas
    }

    /// What the model is told at step `index` (0 to 1000); whole numbers with UniPC.
    pub fn timestep(&self, index: usize) -> f32 {
        self.schedule.timesteps[index]
    }

    /// Steps already made.
    pub fn done(&self) -> usize {
        self.index
    }

    /// Moves `latent` one step along with the model's `velocity` at the current timestep. Past the last step, or when
    /// the lengths differ, nothing moves and the answer is `false`.
    #[must_use]
    pub fn step(&mut self, latent: &mut [f32], velocity: &[f32]) -> bool {
        if self.index >= self.steps() || latent.len() != velocity.len() {
            return false;
        }
        match &mut self.update {
            Update::Euler => {
                let dt = self.schedule.sigmas[self.index + 1] - self.schedule.sigmas[self.index];
                for (x, v) in latent.iter_mut().zip(velocity) {
                    *x += dt * v;
                }
            }
            Update::UniPc(unipc) => unipc.step(&self.schedule.sigmas, self.index, latent, velocity),
        }
        self.index += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &[u8] =
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/parity/goldens/samplers.safetensors"));
    const CASES: [(f32, u32); 7] = [(1.0, 10), (3.0, 10), (5.0, 10), (8.0, 10), (3.0, 1), (3.0, 2), (8.0, 50)];

    /// The same function as in tests/parity/samplers.py.
    fn velocity(x: &[f32], t: f32) -> Vec<f32> {
        x.iter().map(|x| 0.8 * x.tanh() + 0.3 * (t / 160.0).cos() - 0.1 * x * t / 1000.0).collect()
    }

    fn golden(name: &str) -> Vec<f32> {
        let file = safetensors::SafeTensors::deserialize(GOLDEN).unwrap();
        let bytes = file.tensor(name).unwrap().data().to_vec();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
        assert_eq!(got.len(), expected.len(), "{what}");
        for (i, (a, b)) in got.iter().zip(expected).enumerate() {
            assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{what}[{i}]: {a} is not {b}");
        }
    }

    fn follow(sampler: Sampler, name: &str) {
        for (shift, steps) in CASES {
            let case = format!("{name}.s{shift}.n{steps}");
            let mut state = SamplerState::new(&SamplerSettings::new(sampler, steps, shift));
            let timesteps: Vec<f32> = (0..state.steps()).map(|i| state.timestep(i)).collect();
            // Two units in the last place of 1: diffusers' schedule passes through float64 in another order.
            assert_close(state.sigmas(), &golden(&format!("{case}.sigmas")), 2.4e-7, &case);
            assert_close(&timesteps, &golden(&format!("{case}.timesteps")), 2.4e-7, &case);
            let trajectory = golden(&format!("{case}.trajectory"));
            let mut x = trajectory[..4].to_vec();
            for (i, expected) in trajectory[4..].chunks(4).enumerate() {
                let v = velocity(&x, state.timestep(i));
                assert!(state.step(&mut x, &v));
                // Some float32 roundings per step; missing a quirk moves the end by 0.005 or more.
                assert_close(&x, expected, 2e-5, &format!("{case} step {i}"));
            }
        }
    }

    #[test]
    fn euler_follows_diffusers_step_by_step() {
        follow(Sampler::Euler, "euler");
    }

    #[test]
    fn unipc_follows_diffusers_step_by_step() {
        follow(Sampler::Unipc, "unipc");
    }

    #[test]
    fn both_samplers_land_on_the_picture_of_a_straight_path() {
        for sampler in [Sampler::Euler, Sampler::Unipc] {
            for steps in [1, 2, 3, 20] {
                let (noise, picture) = ([0.7f32, -1.1], [0.2f32, 0.9]);
                let v: Vec<f32> = noise.iter().zip(&picture).map(|(n, p)| n - p).collect();
                let mut x = noise.to_vec();
                let mut state = SamplerState::new(&SamplerSettings::new(sampler, steps, 5.0));
                while state.step(&mut x, &v) {}
                assert_eq!(state.done(), steps as usize);
                assert_close(&x, &picture, 1e-5, "straight path");
            }
        }
    }

    #[test]
    fn a_wrong_length_moves_nothing() {
        let mut state = SamplerState::new(&SamplerSettings::new(Sampler::Euler, 2, 1.0));
        let mut x = [1.0, 2.0];
        assert!(!state.step(&mut x, &[1.0]));
        assert_eq!((x, state.done()), ([1.0, 2.0], 0));
    }
}
