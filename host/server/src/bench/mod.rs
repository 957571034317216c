//! What `zoetrope bench` measures on the user's own machine. Medians over runs; ratios against peers are made by
//! running both on one machine, never by comparing figures from two.

mod device;
mod kernels;
mod peers;
mod sandbox;
mod savings;

pub use device::{DeviceCeilings, DeviceTiming, DeviceTimings, ForwardFigure, KernelCheck, Network, Place};
pub use kernels::{KernelFigure, kernels};
pub use peers::{Comparison, Contender, compare_with_peers};
pub use sandbox::sandbox;
pub use savings::{Saving, savings};

use crate::local::LocalEngine;
use pipeline::{Condition, Diffuse, GenerationPlan, GenerationRequest, Interpolate, Lane, StageContext, StageResult};
use serde::Serialize;
use std::time::Instant;

/// One measured thing.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// What was measured.
    pub name: String,
    /// Median wall time of one run, in microseconds.
    pub median_us: u64,
    /// Shortest run, in microseconds.
    pub min_us: u64,
    /// How many runs.
    pub runs: u32,
}

/// Times the stages of the default plan of the engine's model.
pub async fn model(engine: &LocalEngine, runs: u32) -> StageResult<Vec<Measured>> {
    let request = GenerationRequest { prompt: "a red star moves up".to_owned(), seed: Some(0), ..Default::default() };
    let plan = request.resolve(&engine.defaults()?, 0)?;
    let (mut condition, mut diffuse, mut interpolate) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs.max(1) {
        let cx = StageContext::unmetered(Lane(0));
        // Another prompt each time: a cached one would cost nothing.
        let plan = GenerationPlan { prompt: format!("{} {run}", plan.prompt), ..plan.clone() };
        let conditioning = timed(&mut condition, engine.engine().condition(&cx, &plan)).await?;
        let keys = timed(&mut diffuse, engine.engine().diffuse(&cx, &plan, &conditioning)).await?;
        timed(&mut interpolate, engine.engine().interpolate(&cx, keys, plan.frame_count, plan.fps, plan.size)).await?;
    }
    Ok(vec![
        measured("condition: two prompts".to_owned(), condition),
        measured(
            format!(
                "diffuse: {} steps, {} key frames of {}",
                plan.sampling.steps, plan.key_frames, plan.key_frame_size
            ),
            diffuse,
        ),
        measured(format!("interpolate: {} frames of {}", plan.frame_count, plan.size), interpolate),
    ])
}

async fn timed<T>(times: &mut Vec<u64>, run: impl Future<Output = StageResult<T>>) -> StageResult<T> {
    let start = Instant::now();
    let outcome = run.await;
    times.push(start.elapsed().as_micros() as u64);
    outcome
}

fn measured(name: String, mut times: Vec<u64>) -> Measured {
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or(0);
    Measured { name, median_us: middle, min_us: times.first().copied().unwrap_or(0), runs: times.len() as u32 }
}
