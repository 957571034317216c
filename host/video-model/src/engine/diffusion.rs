//! `diffuse`: noise becomes latents, latents become key frames.

use super::conditioning::PromptConditioning;
use super::internal;
use super::known::{Known, KnownEncoder};
use crate::device_queue::Session;
use crate::error::{ModelError, Result};
use crate::lora::LoraSet;
use crate::model::VideoModel;
use crate::noise::{LatentShape, gaussian};
use crate::picture;
use crate::sampler::{Guidance, SamplerState};
use crate::transformer::{Context, StepCache, Timestep};
use crate::vae::DecodeState;
use kernels::{Tensor, channels_first, channels_last};
use pipeline::{Frame, FrameSize, GenerationPlan, GivenKeyFrame, KeyFrames, StageError, StageResult, StepCacheKind};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// What a diffusion leaves.
pub(super) struct Diffused {
    pub(super) key_frames: KeyFrames,
    /// The final latent in the order of `shape`.
    pub(super) latents: Vec<f32>,
    pub(super) shape: LatentShape,
}

/// Where a session is.
enum Phase {
    /// Given pictures go through the VAE's encoder; left out when there is nothing to encode.
    Known(KnownEncoder),
    /// A step is a sampler step.
    Denoise,
    /// A step is a latent frame.
    Decode(DecodeState),
}

/// What depends on the transformer that is at work, and is made anew when another takes over.
struct ExpertState {
    expert: usize,
    prompt: Context,
    negative: Option<Context>,
    cache: Option<StepCache>,
}

/// One diffusion as a session of the device queue. Latents are channels last: [f, h, w, z].
pub(super) struct Denoise {
    conditioning: PromptConditioning,
    loras: Option<Arc<LoraSet>>,
    guidance: Guidance,
    step_cache: StepCacheKind,
    size: FrameSize,
    shape: LatentShape,
    sampler: SamplerState,
    latent: Vec<f32>,
    /// The memory of the last answer, for the next.
    velocity: Vec<f32>,
    known: Known,
    known_steps: u32,
    state: Option<ExpertState>,
    phase: Phase,
    key_frames: Vec<Frame>,
    key_frame_count: usize,
}

/// [z, f, h, w] of the plan's latent; an error when the model cannot make such a clip.
pub(super) fn latent_shape(model: &VideoModel, plan: &GenerationPlan) -> StageResult<LatentShape> {
    let FrameSize { width, height } = plan.key_frame_size;
    let (width, height, multiple) = (width as usize, height as usize, model.config.size_multiple_px());
    if width == 0 || height == 0 || !width.is_multiple_of(multiple) || !height.is_multiple_of(multiple) {
        let message = format!("{} is not possible: sides must be multiples of {multiple}", plan.key_frame_size);
        return Err(StageError::invalid("size", message));
    }
    let frames = model.latent_frames(plan.key_frames as usize).ok_or_else(|| {
        StageError::invalid("key_frames", format!("the model cannot make {} key frames", plan.key_frames))
    })?;
    let side = model.vae.config().spatial_factor();
    Ok([model.vae.config().z_dim, frames, height / side, width / side])
}

impl Denoise {
    /// `noise` is in the order of [`latent_shape`]; without it the plan's seed makes it.
    pub(super) fn new(
        plan: &GenerationPlan,
        conditioning: &PromptConditioning,
        loras: Option<Arc<LoraSet>>,
        noise: Option<Vec<f32>>,
    ) -> StageResult<Self> {
        let model = &conditioning.model;
        let shape = latent_shape(model, plan)?;
        model.pictures().check(plan.given.iter().map(|given| given.index), plan.key_frames)?;
        if plan.guidance.is_guided() && conditioning.negative.is_none() {
            return Err(StageError::Internal("a guided plan with conditioning that is not".to_owned()));
        }
        let noise = noise.unwrap_or_else(|| gaussian(plan.seed, shape.iter().product()));
        let latent = Tensor::from_vec(noise, &shape).and_then(|noise| channels_last(&noise));
        let latent = latent.map_err(|e| internal(e.into()))?.to_vec_f32();
        let kind = model.config.defaults.conditioning;
        let encoder = KnownEncoder::new(kind, given_frames(plan), plan.key_frame_size, shape);
        Ok(Self {
            conditioning: conditioning.clone(),
            loras,
            guidance: Guidance::new(&plan.guidance),
            step_cache: plan.step_cache,
            size: plan.key_frame_size,
            shape,
            sampler: SamplerState::new(&plan.sampling, plan.seed),
            latent,
            velocity: Vec::new(),
            known: Known::Nothing,
            known_steps: encoder.as_ref().map_or(0, KnownEncoder::steps),
            state: None,
            phase: encoder.map_or(Phase::Denoise, Phase::Known),
            key_frames: Vec::with_capacity(plan.key_frames as usize),
            key_frame_count: plan.key_frames as usize,
        })
    }

    fn channels_last_shape(&self) -> [usize; 4] {
        let [z, f, h, w] = self.shape;
        [f, h, w, z]
    }

    fn latent(&self) -> Result<Tensor> {
        Ok(Tensor::from_f32(&self.latent, &self.channels_last_shape())?)
    }

    fn looks_at_negative(&self) -> bool {
        self.guidance.needs_negative(self.sampler.done(), self.sampler.steps())
    }

    /// The model's answer at the sampler's current step, guided.
    fn velocity(&mut self) -> Result<Vec<f32>> {
        let step = self.sampler.done();
        let mut velocity = std::mem::take(&mut self.velocity);
        if self.guidance.moves_nothing(step) {
            velocity.clear();
            velocity.resize(self.latent.len(), 0.0);
            return Ok(velocity);
        }
        let input = self.known.input(self.latent()?)?;
        let timestep = self.sampler.timestep(step);
        let of_frames = self.known.timesteps(timestep, self.shape[1]);
        let timesteps = of_frames.as_deref().map_or(Timestep::Clip(timestep), Timestep::Frames);
        let guided = self.looks_at_negative();
        let expert = self.conditioning.model.expert_at(timestep);
        let mut state = match self.state.take().filter(|state| state.expert == expert) {
            Some(state) => state,
            None => self.state_for(expert)?,
        };
        let negative = state.negative.as_ref().filter(|_| guided);
        let contexts: Vec<&Context> = [&state.prompt].into_iter().chain(negative).collect();
        let transformer = &self.conditioning.model.experts[expert].transformer;
        let adapters = self.loras.as_ref().and_then(|set| set.expert(expert));
        let answers = transformer.forward(&input, timesteps, &contexts, adapters, state.cache.as_mut())?;
        self.state = Some(state);
        let mut answers = answers.iter().map(values_of);
        velocity.clear();
        velocity.extend_from_slice(answers.next().transpose()?.unwrap_or_default());
        self.guidance.combine(step, &mut velocity, answers.next().transpose()?);
        Ok(velocity)
    }

    /// What a transformer that takes over needs.
    fn state_for(&self, expert: usize) -> Result<ExpertState> {
        let PromptConditioning { model, prompt, negative, image, .. } = &self.conditioning;
        let transformer = &model.experts[expert].transformer;
        let adapters = self.loras.as_ref().and_then(|set| set.expert(expert));
        let context = |text: &Tensor| transformer.context(text, image.as_ref(), adapters);
        let cache = StepCache::new(self.step_cache, self.sampler.steps());
        Ok(ExpertState {
            expert,
            prompt: context(prompt)?,
            negative: negative.as_ref().map(context).transpose()?,
            cache,
        })
    }

    fn sampler_step(&mut self) -> Result<()> {
        let velocity = self.velocity()?;
        if !self.sampler.step(&mut self.latent, &velocity) {
            return Err(ModelError::Input("the transformer's answer has another size than the latent".to_owned()));
        }
        self.velocity = velocity;
        if self.sampler.done() == self.sampler.steps() {
            self.latent = self.known.finish(self.latent()?)?.to_vec_f32();
            // Decoding needs none of it, and a long prompt's keys and values are large.
            (self.state, self.known) = (None, Known::Nothing);
        }
        match self.latent.iter().all(|x| x.is_finite()) {
            true => Ok(()),
            false => Err(ModelError::Input(format!("step {} gave numbers that are not finite", self.sampler.done()))),
        }
    }

    /// Decodes one latent frame; true after the last.
    fn decode_step(&mut self) -> Result<bool> {
        let Phase::Decode(state) = &mut self.phase else { return Ok(false) };
        let [z, f, h, w] = self.shape;
        let index = state.frames();
        let frame = Tensor::from_f32(&self.latent[index * h * w * z..][..h * w * z], &[1, h, w, z])?;
        let pictures = self.conditioning.model.vae.decode_next(state, &frame)?;
        for picture in values_of(&pictures)?.chunks_exact(self.size.rgb_bytes()) {
            // −1..=1 to 0..=255, as diffusers does: halve, shift, scale, round.
            let rgb = picture.iter().map(|v| ((v * 0.5 + 0.5) * 255.0).round().clamp(0.0, 255.0) as u8).collect();
            self.key_frames.extend(Frame::new(self.size, rgb));
        }
        Ok(index + 1 == f)
    }

    fn finish(&mut self) -> Result<Diffused> {
        if self.key_frames.len() != self.key_frame_count {
            let (made, asked) = (self.key_frames.len(), self.key_frame_count);
            return Err(ModelError::Input(format!("the VAE made {made} pictures in place of {asked}")));
        }
        Ok(Diffused {
            key_frames: KeyFrames { frames: std::mem::take(&mut self.key_frames) },
            latents: channels_first(&self.latent()?)?.to_vec_f32(),
            shape: self.shape,
        })
    }
}

impl Session for Denoise {
    type Output = Diffused;

    fn steps(&self) -> u32 {
        self.known_steps + self.sampler.steps() as u32 + self.shape[1] as u32
    }

    fn cost_class(&self) -> u64 {
        let phase = match self.phase {
            Phase::Known(_) => 0,
            Phase::Denoise => 1,
            Phase::Decode(_) => 2,
        };
        let mut hasher = DefaultHasher::new();
        let guided = self.looks_at_negative();
        ("diffuse", phase, &self.conditioning.model_name, self.shape, guided).hash(&mut hasher);
        hasher.finish()
    }

    fn step(&mut self) -> StageResult<Option<Diffused>> {
        match &mut self.phase {
            Phase::Known(encoder) => {
                if let Some(known) = encoder.step(&self.conditioning.model.vae).map_err(internal)? {
                    self.known = known;
                    self.phase = Phase::Denoise;
                }
            }
            Phase::Denoise => {
                self.sampler_step().map_err(internal)?;
                if self.sampler.done() == self.sampler.steps() {
                    let tiling = self.conditioning.placement.tiling;
                    self.phase = Phase::Decode(tiling.map_or_else(DecodeState::default, DecodeState::tiled));
                }
            }
            Phase::Decode(_) => {
                if self.decode_step().map_err(internal)? {
                    return self.finish().map(Some).map_err(internal);
                }
            }
        }
        Ok(None)
    }
}

/// The elements of a network's answer.
fn values_of(answer: &Tensor) -> Result<&[f32]> {
    answer.as_f32().ok_or_else(|| ModelError::Input(format!("an answer in {:?}, f32 is needed", answer.dtype())))
}

/// The plan's pictures at the size of key frames, cut to its proportions.
fn given_frames(plan: &GenerationPlan) -> Vec<(usize, Frame)> {
    let scaled = |given: &GivenKeyFrame| (given.index as usize, picture::cover(&given.frame, plan.key_frame_size));
    plan.given.iter().map(scaled).collect()
}
