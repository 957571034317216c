//! What leaving out work saves, and what it costs in quality: step caches and 8-bit products against the plain run of the
//! same plan.

use crate::local::LocalEngine;
use pipeline::{Condition, Frame, GenerationPlan, GenerationRequest, Lane, StageContext, StageError, StageResult};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;
use video_model::engine::DiffuseOptions;
use video_model::{quality, speed};

/// One way to save beside the plain run.
#[derive(Debug, Clone, Serialize)]
pub struct Saving {
    /// What was left out.
    pub name: String,
    /// Median time of diffusion in milliseconds.
    pub median_ms: f64,
    /// How many times as fast as the plain run.
    pub speedup: f64,
    /// Relative root mean square difference of the latents from the plain run's.
    pub latents_relative_rmse: f64,
    /// Peak signal-to-noise ratio of the key frames against the plain run's; 100 when they are equal.
    pub psnr_db: f64,
}

/// The caches that are tried, as requests spell them.
const CACHES: [&str; 4] = ["first-block:0.05", "first-block:0.1", "mag:0.06", "mag:0.12"];

/// Runs the default plan plainly and with each saving: the step caches on `plain`, everything in 8 bits on `int8`.
pub async fn savings(plain: &LocalEngine, int8: &LocalEngine, runs: u32) -> StageResult<Vec<Saving>> {
    let folder = tempfile::tempdir().map_err(|error| StageError::Internal(format!("no temporary folder: {error}")))?;
    let dump = folder.path().join("latents.safetensors");
    let request = GenerationRequest { prompt: "a red star moves up".to_owned(), seed: Some(0), ..Default::default() };
    let reference = diffuse(plain, &request, runs, &dump).await?;
    let mut savings = vec![reference.against(&reference, "nothing left out".to_owned())?];
    for cache in CACHES {
        let request = GenerationRequest { step_cache: Some(cache.parse()?), ..request.clone() };
        savings.push(diffuse(plain, &request, runs, &dump).await?.against(&reference, format!("step cache {cache}"))?);
    }
    savings.push(diffuse(int8, &request, runs, &dump).await?.against(&reference, "int8".to_owned())?);
    Ok(savings)
}

/// What came out of one plan.
struct Outcome {
    median_ms: f64,
    latents: Vec<f32>,
    frames: Vec<Frame>,
}

impl Outcome {
    fn against(&self, reference: &Self, name: String) -> StageResult<Saving> {
        let internal = |message: String| StageError::Internal(message);
        let error = speed::relative_rmse(&self.latents, &reference.latents);
        let quality = quality::compare(&reference.frames, &self.frames).map_err(|e| internal(e.to_string()))?;
        Ok(Saving {
            name,
            median_ms: self.median_ms,
            speedup: reference.median_ms / self.median_ms,
            latents_relative_rmse: error.ok_or_else(|| internal("the latents differ in size".to_owned()))?,
            psnr_db: quality.psnr_db,
        })
    }
}

async fn diffuse(engine: &LocalEngine, request: &GenerationRequest, runs: u32, dump: &Path) -> StageResult<Outcome> {
    let plan: GenerationPlan = request.resolve(&engine.defaults()?, 0)?;
    let cx = StageContext::unmetered(Lane(0));
    let conditioning = engine.engine().condition(&cx, &plan).await?;
    let (mut times, mut frames) = (Vec::new(), Vec::new());
    for _ in 0..runs.max(1) {
        let options = DiffuseOptions { initial_noise: None, dump_latents: Some(dump.to_owned()) };
        let started = Instant::now();
        frames = engine.engine().diffuse_with(&cx, &plan, &conditioning, options).await?.frames;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    let latents = speed::read_tensor(dump, "latents").map_err(|error| StageError::Internal(error.to_string()))?;
    Ok(Outcome { median_ms: times[times.len() / 2], latents, frames })
}
