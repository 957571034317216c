//! `generate`.

use crate::args::{Engine, Generate};
use crate::failure::{CommandResult, Failure};
use crate::output::Output;
use crate::progress::StageBars;
use pipeline::{GenerationRequest, Lane, LoraChoice, StageContext, StageError};
use serde_json::json;
use server::OpenError;
use server::local::{EngineOptions, Generated, LocalEngine, LocalGeneration};
use server::models::ChosenModel;
use std::str::FromStr;

impl Engine {
    /// The options of the local engine, for a model.
    pub fn options(&self, model: Option<ChosenModel>) -> EngineOptions {
        EngineOptions {
            model,
            loras: Vec::new(),
            dtype: self.dtype.clone(),
            device: self.device.clone(),
            threads: self.threads,
            memory: self.memory.clone(),
        }
    }
}

/// Starts the local engine.
pub fn start(options: &EngineOptions) -> Result<LocalEngine, Failure> {
    LocalEngine::start(options).map_err(|error| match error {
        OpenError::Engine(error) => error.into(),
        other => Failure::failed(other.to_string()),
    })
}

/// Generates one video.
pub async fn run(args: Generate, output: Output) -> CommandResult {
    let request = request(&args)?;
    let loras = request.loras.iter().map(|lora| lora.name.clone().into()).collect();
    let config = args.place.config()?;
    let model = args.model.as_deref().map(|model| config.choose_model(model)).transpose()?;
    let engine = start(&EngineOptions { loras, ..args.engine.options(model) })?;
    let (placement, estimate) = engine.memory(&request)?;
    output.note(&format!("device: {}; memory: {estimate}, {placement}", engine.devices()));
    let bars = StageBars::new(output);
    let cx = StageContext { progress: bars.clone(), ..StageContext::unmetered(Lane(0)) };
    let job = LocalGeneration {
        request,
        first: args.image,
        last: args.last_image,
        noise: args.noise,
        dump_latents: args.dump_latents,
        out: args.out.clone(),
    };
    let Generated { plan, warnings } = engine.generate(&cx, job).await?;
    for warning in &warnings {
        output.note(&format!("warning: {warning}"));
    }
    let out = args.out.display().to_string();
    let text = format!("{out}: {} frames of {} at {} fps, seed {}", plan.frame_count, plan.size, plan.fps, plan.seed);
    let value = json!({
        "event": "done", "out": out, "frames": plan.frame_count, "size": plan.size.to_string(), "fps": plan.fps,
        "seed": plan.seed, "usage": cx.meter.snapshot(), "wall_ms": bars.wall_ms(), "warnings": warnings,
    });
    output.result(&value, &text);
    Ok(())
}

fn request(args: &Generate) -> Result<GenerationRequest, Failure> {
    let duration_ms = match args.seconds {
        None => None,
        Some(seconds) if seconds > 0.0 && seconds < 1e6 => Some((seconds * 1000.0).round() as u32),
        Some(_) => return Err(Failure::refused("--seconds must be more than 0")),
    };
    let sampling = &args.sampling;
    Ok(GenerationRequest {
        prompt: args.prompt.clone(),
        negative_prompt: args.negative.clone(),
        model: None,
        size: parsed(&args.size)?,
        duration_ms,
        fps: args.fps,
        key_frames: args.frames,
        steps: sampling.steps,
        sampler: parsed(&sampling.sampler)?,
        solver_order: sampling.solver_order,
        solver_type: parsed(&sampling.solver_type)?,
        schedule: parsed(&sampling.schedule)?,
        shift: sampling.shift,
        eta: sampling.eta,
        guidance: sampling.guidance,
        guidance_kind: parsed(&sampling.guidance_kind)?,
        guidance_rescale: sampling.guidance_rescale,
        guidance_interval: parsed(&sampling.guidance_interval)?,
        step_cache: parsed(&sampling.step_cache)?,
        loras: args.lora.iter().map(|lora| lora.parse::<LoraChoice>()).collect::<Result<Vec<_>, _>>()?,
        seed: args.seed,
    })
}

fn parsed<T: FromStr<Err = StageError>>(text: &Option<String>) -> Result<Option<T>, StageError> {
    text.as_deref().map(str::parse).transpose()
}
