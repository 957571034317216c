//! The life of a job: the one place where the order of the stages stands.
//!
//! `admit` is before it (the job store), `record` after it (the worker, whatever this returned).

use crate::control::StageContext;
use crate::error::StageResult;
use crate::frames::Frames;
use crate::job::{Flow, FunctionRef, JobSpec};
use crate::request::{GenerationPlan, GenerationRequest, GivenKeyFrame, ModelDefaults};
use crate::stage::Stage;
use crate::stage::{
    ApplyEffects, Condition, Diffuse, Direct, DirectorInput, EncodeVideo, EncodedVideo, Interpolate, Plan, Store,
    StoredVideo,
};
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

/// The implementations that a process was wired with.
#[derive(Clone)]
pub struct Stages {
    /// Prompt hooks.
    pub plan: Arc<dyn Plan>,
    /// Directors.
    pub direct: Arc<dyn Direct>,
    /// Encoders of prompts and pictures.
    pub condition: Arc<dyn Condition>,
    /// The diffusion models.
    pub diffuse: Arc<dyn Diffuse>,
    /// The interpolator.
    pub interpolate: Arc<dyn Interpolate>,
    /// Effects.
    pub apply_effects: Arc<dyn ApplyEffects>,
    /// The video encoder.
    pub encode_video: Arc<dyn EncodeVideo>,
}

/// Runs a job from its stored description to its stored result. What it used stands in `cx.meter` either way.
pub async fn run(stages: &Stages, store: &dyn Store, cx: &StageContext, job: &JobSpec) -> StageResult<StoredVideo> {
    let defaults = stages.diffuse.defaults(job.request.model.as_deref())?;
    let given = given_key_frames(store, job, &defaults).await?;
    let encoded = make(stages, cx, &job.flow, &job.request, given, &job.effects).await?;
    cx.check_cancelled()?;
    timed(cx, Stage::Store, store.store(cx, encoded)).await
}

/// The same without a store: for tools that write the file themselves.
pub async fn make(
    stages: &Stages,
    cx: &StageContext,
    flow: &Flow,
    request: &GenerationRequest,
    given: Vec<GivenKeyFrame>,
    effects: &[FunctionRef],
) -> StageResult<EncodedVideo> {
    let mut frames = match flow {
        Flow::Staged { prompt_hook } => {
            let planned = match prompt_hook {
                Some(hook) => timed(cx, Stage::Plan, stages.plan.plan(cx, hook, request.clone())).await?,
                None => request.clone(),
            };
            let last_before = key_frames(stages, request)?.saturating_sub(1);
            let plan = resolve(stages, &planned, given, last_before)?;
            generate(stages, cx, &plan).await?
        }
        Flow::Directed { director, input } => {
            let input = DirectorInput { request: request.clone(), input: input.clone(), given };
            timed(cx, Stage::Plan, stages.direct.direct(cx, director, input)).await?
        }
    };
    for effect in effects {
        cx.check_cancelled()?;
        frames = timed(cx, Stage::ApplyEffects, stages.apply_effects.apply_effect(cx, effect, frames)).await?;
    }
    cx.check_cancelled()?;
    timed(cx, Stage::EncodeVideo, stages.encode_video.encode_video(cx, frames)).await
}

/// `condition → diffuse → interpolate`.
pub async fn generate(stages: &Stages, cx: &StageContext, plan: &GenerationPlan) -> StageResult<Frames> {
    cx.check_may_continue()?;
    let conditioning = timed(cx, Stage::Condition, stages.condition.condition(cx, plan)).await?;
    cx.check_may_continue()?;
    let key_frames = timed(cx, Stage::Diffuse, stages.diffuse.diffuse(cx, plan, &conditioning)).await?;
    cx.check_may_continue()?;
    let frames = stages.interpolate.interpolate(cx, key_frames, plan.frame_count, plan.fps, plan.size);
    timed(cx, Stage::Interpolate, frames).await
}

/// Key frames of a request before anyone changed it.
fn key_frames(stages: &Stages, request: &GenerationRequest) -> StageResult<u32> {
    let defaults = stages.diffuse.defaults(request.model.as_deref())?;
    Ok(request.key_frames.unwrap_or(defaults.key_frames))
}

/// Checks a request against its model's defaults and puts the given pictures into their places: `last_before` was the
/// last key frame when they got their indices.
fn resolve(
    stages: &Stages,
    request: &GenerationRequest,
    given: Vec<GivenKeyFrame>,
    last_before: u32,
) -> StageResult<GenerationPlan> {
    let defaults = stages.diffuse.defaults(request.model.as_deref())?;
    // Admission fixes the seed, so that a job that runs again after a crash makes the same video.
    let mut plan = request.resolve(&defaults, 0)?;
    plan.given = given;
    // A hook may have changed the number of key frames: the last one stays the last one.
    let last = plan.key_frames - 1;
    for picture in plan.given.iter_mut().filter(|picture| picture.index > 0) {
        picture.index = if picture.index == last_before { last } else { picture.index.min(last) };
    }
    defaults.pictures.check(plan.given.iter().map(|given| given.index), plan.key_frames)?;
    Ok(plan)
}

async fn given_key_frames(
    store: &dyn Store,
    job: &JobSpec,
    defaults: &ModelDefaults,
) -> StageResult<Vec<GivenKeyFrame>> {
    let count = job.request.key_frames.unwrap_or(defaults.key_frames);
    let mut given = Vec::with_capacity(job.images.len());
    for image in &job.images {
        let index = image.position.index(count);
        given.push(GivenKeyFrame { index, frame: store.given_image(&image.object).await? });
    }
    Ok(given)
}

/// Runs one stage and tells the job's progress how long it took, also when it failed.
pub async fn timed<T>(cx: &StageContext, stage: Stage, run: impl Future<Output = StageResult<T>>) -> StageResult<T> {
    let start = Instant::now();
    let outcome = run.await;
    cx.progress.finished(stage, start.elapsed().as_millis() as u64);
    outcome
}
