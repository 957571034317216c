//! Noise levels and the timesteps that the model is told.

/// Timesteps of training: the model is told σ · 1000.
const TRAIN_TIMESTEPS: f32 = 1000.0;

/// `sigmas` has one value more than `timesteps`: the final 0.
#[derive(Debug)]
pub(super) struct Schedule {
    pub(super) sigmas: Vec<f32>,
    pub(super) timesteps: Vec<f32>,
}

impl Schedule {
    /// The shift bends the grid's lower end and then the whole grid again: diffusers builds the grid between limits that
    /// it has already shifted.
    pub(super) fn euler(steps: usize, shift: f32) -> Self {
        let lowest = 1.0 / TRAIN_TIMESTEPS;
        let shifted_lowest = shift * lowest / (1.0 + (shift - 1.0) * lowest);
        let grid = linspace(1.0, f64::from(shifted_lowest), steps);
        let mut sigmas: Vec<f32> = grid.into_iter().map(|t| shifted(t, shift) as f32).collect();
        let timesteps = sigmas.iter().map(|s| s * TRAIN_TIMESTEPS).collect();
        sigmas.push(0.0);
        Self { sigmas, timesteps }
    }

    /// The grid ends one step before 1/1000. Timesteps are cut to whole numbers (the first is 999), σ is not.
    pub(super) fn unipc(steps: usize, shift: f32) -> Self {
        // σ = 1 would have a logarithmic signal-to-noise ratio of −∞.
        const BELOW_ONE: f64 = 1e-6;
        let grid = linspace(1.0, f64::from(1.0 / TRAIN_TIMESTEPS), steps + 1);
        let mut sigmas: Vec<f64> = grid[..steps].iter().map(|&t| shifted(t, shift)).collect();
        if (sigmas[0] - 1.0).abs() < BELOW_ONE {
            sigmas[0] -= BELOW_ONE;
        }
        let timesteps = sigmas.iter().map(|s| (s * f64::from(TRAIN_TIMESTEPS)).trunc() as f32).collect();
        sigmas.push(0.0);
        Self { sigmas: sigmas.into_iter().map(|s| s as f32).collect(), timesteps }
    }
}

fn shifted(t: f64, shift: f32) -> f64 {
    let shift = f64::from(shift);
    shift * t / (1.0 + (shift - 1.0) * t)
}

/// `count` values from `first` to `last`, both included.
fn linspace(first: f64, last: f64, count: usize) -> Vec<f64> {
    let stride = (last - first) / (count.max(2) - 1) as f64;
    (0..count).map(|i| first + stride * i as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn noise_only_ever_falls(steps in 1usize..=200, shift in 0.01f32..100.0) {
            for schedule in [Schedule::euler(steps, shift), Schedule::unipc(steps, shift)] {
                prop_assert_eq!(schedule.sigmas.len(), steps + 1);
                prop_assert_eq!(schedule.timesteps.len(), steps);
                prop_assert!(schedule.sigmas.windows(2).all(|w| w[0] > w[1]), "{:?}", schedule.sigmas);
                prop_assert_eq!(schedule.sigmas[steps], 0.0);
            }
        }
    }
}
