//! `diffuse`: noise becomes latents, latents become key frames.

use super::conditioning::PromptConditioning;
use super::internal;
use super::known::{Known, KnownEncoder};
use crate::device_queue::Session;
use crate::error::{ModelError, Result};
use crate::lora::{Adapters, LoraSet};
use crate::model::VideoModel;
use crate::noise::{LatentShape, gaussian};
use crate::picture;
use crate::sampler::{Guidance, Guided, SamplerState};
use crate::transformer::{Context, RecordedPass, StepCache, Timestep, WanTransformer};
use crate::vae::DecodeState;
use kernels::{CudaDevice, Tensor, all_finite, channels_first, channels_last};
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
    /// On a device, the pass over the prompt alone and the one over both contexts.
    recorded: [Recorded; 2],
}

/// A pass that is the same at each step but for its inputs.
#[derive(Debug, Default)]
enum Recorded {
    /// It has not run: its first run makes what all share.
    #[default]
    Never,
    /// It has run and can be recorded.
    Once,
    /// The device has no memory left for a recorded pass beside one that runs.
    TooLarge,
    Replayed(Box<RecordedPass>),
}

/// The latent of a session: as it was given, until the first step puts it where the model is.
enum Latent {
    /// In the order of [`latent_shape`].
    Given(Vec<f32>),
    /// Channels last.
    At(Tensor),
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
    latent: Latent,
    known: Known,
    known_steps: u32,
    state: Option<ExpertState>,
    phase: Phase,
    key_frames: Vec<Frame>,
    key_frame_count: usize,
    has_room: bool,
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

impl ExpertState {
    /// The transformer's answers for the prompt and, when `guided`, the negative prompt.
    fn pass(
        &mut self,
        transformer: &WanTransformer,
        latent: &Tensor,
        timestep: Timestep<'_>,
        guided: bool,
        adapters: Option<&Adapters>,
    ) -> Result<Vec<Tensor>> {
        let negative = self.negative.as_ref().filter(|_| guided);
        let contexts: Vec<&Context> = [&self.prompt].into_iter().chain(negative).collect();
        let recorded = &mut self.recorded[contexts.len() - 1];
        // A pass whose path depends on its numbers (a step cache) cannot be replayed.
        let device = CudaDevice::current().filter(|_| self.cache.is_none() && transformer.is_recordable());
        if let Some(device) = &device
            && let Recorded::Once = recorded
        {
            *recorded = match transformer.record(device, latent, timestep, &contexts, adapters) {
                Ok(pass) => Recorded::Replayed(Box::new(pass)),
                Err(ModelError::Kernel(kernels::Error::DeviceMemory { .. })) => Recorded::TooLarge,
                Err(error) => return Err(error),
            };
        }
        if let Recorded::Replayed(pass) = recorded
            && let Some(answers) = transformer.replay(pass, latent, timestep)?
        {
            return Ok(answers);
        }
        if device.is_some() && !matches!(recorded, Recorded::TooLarge) {
            *recorded = Recorded::Once;
        }
        transformer.forward(latent, timestep, &contexts, adapters, self.cache.as_mut())
    }
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
        if noise.len() != shape.iter().product::<usize>() {
            return Err(StageError::Internal(format!("{} numbers of noise for a latent of {shape:?}", noise.len())));
        }
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
            latent: Latent::Given(noise),
            known: Known::Nothing,
            known_steps: encoder.as_ref().map_or(0, KnownEncoder::steps),
            state: None,
            phase: encoder.map_or(Phase::Denoise, Phase::Known),
            key_frames: Vec::with_capacity(plan.key_frames as usize),
            key_frame_count: plan.key_frames as usize,
            has_room: false,
        })
    }

    /// The latent [f, h, w, z], where the session runs.
    fn latent(&mut self) -> Result<&mut Tensor> {
        if let Latent::Given(noise) = &mut self.latent {
            let noise = Tensor::from_vec(std::mem::take(noise), &self.shape)?;
            self.latent = Latent::At(channels_last(&noise)?);
        }
        match &mut self.latent {
            Latent::At(latent) => Ok(latent),
            Latent::Given(_) => Err(ModelError::Input("the latent is nowhere".to_owned())),
        }
    }

    /// Before the first step, on a device: all that the plan says the job needs, side by side, so that it is refused now or
    /// not at all.
    fn take_room(&mut self) -> Result<()> {
        match CudaDevice::current().filter(|_| !std::mem::replace(&mut self.has_room, true)) {
            Some(device) => Ok(device.reserve(self.conditioning.job_bytes as usize)?),
            None => Ok(()),
        }
    }

    fn looks_at_negative(&self) -> bool {
        self.guidance.needs_negative(self.sampler.done(), self.sampler.steps())
    }

    /// The model's answer at the sampler's current step, guided.
    fn answer(&mut self) -> Result<Guided> {
        let step = self.sampler.done();
        let latent = self.latent()?.clone();
        if self.guidance.moves_nothing(step) {
            return Ok(Guided::nothing(&latent));
        }
        let input = self.known.input(latent)?;
        let timestep = self.sampler.timestep(step);
        let of_frames = self.known.timesteps(timestep, self.shape[1]);
        let timesteps = of_frames.as_deref().map_or(Timestep::Clip(timestep), Timestep::Frames);
        let guided = self.looks_at_negative();
        let expert = self.conditioning.model.expert_at(timestep);
        let mut state = match self.state.take().filter(|state| state.expert == expert) {
            Some(state) => state,
            None => self.state_for(expert)?,
        };
        let transformer = &self.conditioning.model.experts[expert].transformer;
        let adapters = self.loras.as_ref().and_then(|set| set.expert(expert));
        let mut answers = state.pass(transformer, &input, timesteps, guided, adapters)?.into_iter();
        self.state = Some(state);
        let conditional =
            answers.next().ok_or_else(|| ModelError::Input("the transformer gave no answer".to_owned()))?;
        self.guidance.combine(step, conditional, answers.next())
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
            recorded: Default::default(),
        })
    }

    fn sampler_step(&mut self) -> Result<()> {
        let answer = self.answer()?;
        self.latent()?;
        let Latent::At(latent) = &mut self.latent else { return Ok(()) };
        self.sampler.step(latent, &answer)?;
        if self.sampler.done() == self.sampler.steps() {
            *latent = self.known.finish(latent.clone())?;
            // Decoding needs none of it, and a long prompt's keys and values are large.
            (self.state, self.known) = (None, Known::Nothing);
        }
        match all_finite(latent)? {
            true => Ok(()),
            false => Err(ModelError::Input(format!("step {} gave numbers that are not finite", self.sampler.done()))),
        }
    }

    /// Decodes one latent frame; true after the last.
    fn decode_step(&mut self) -> Result<bool> {
        let Phase::Decode(state) = &mut self.phase else { return Ok(false) };
        let (index, frames) = (state.frames(), self.shape[1]);
        let Latent::At(latent) = &self.latent else { return Ok(false) };
        let frame = latent.slice_outer(index..index + 1)?;
        let pictures = self.conditioning.model.vae.decode_next(state, &frame)?.to_host()?;
        let values = pictures.as_f32().ok_or_else(|| ModelError::Input("pictures that are not f32".to_owned()))?;
        for picture in values.chunks_exact(self.size.rgb_bytes()) {
            // −1..=1 to 0..=255, as diffusers does: halve, shift, scale, round.
            let rgb = picture.iter().map(|v| ((v * 0.5 + 0.5) * 255.0).round().clamp(0.0, 255.0) as u8).collect();
            self.key_frames.extend(Frame::new(self.size, rgb));
        }
        Ok(index + 1 == frames)
    }

    fn finish(&mut self) -> Result<Diffused> {
        if self.key_frames.len() != self.key_frame_count {
            let (made, asked) = (self.key_frames.len(), self.key_frame_count);
            return Err(ModelError::Input(format!("the VAE made {made} pictures in place of {asked}")));
        }
        Ok(Diffused {
            key_frames: KeyFrames { frames: std::mem::take(&mut self.key_frames) },
            latents: channels_first(self.latent()?)?.to_vec_f32(),
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
        self.take_room().map_err(internal)?;
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

/// The plan's pictures at the size of key frames, cut to its proportions.
fn given_frames(plan: &GenerationPlan) -> Vec<(usize, Frame)> {
    let scaled = |given: &GivenKeyFrame| (given.index as usize, picture::cover(&given.frame, plan.key_frame_size));
    plan.given.iter().map(scaled).collect()
}
