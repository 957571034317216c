//! `diffuse`: noise becomes latents, latents become key frames.

use super::conditioning::PromptConditioning;
use super::internal;
use crate::config::Conditioning;
use crate::device_queue::Session;
use crate::error::{ModelError, Result};
use crate::model::VideoModel;
use crate::noise::{LatentShape, gaussian};
use crate::picture;
use crate::sampler::{Guidance, SamplerState};
use crate::transformer::Timestep;
use crate::vae::DecodeState;
use kernels::{Dtype, Tensor, channels_first, channels_last, concat_channels};
use pipeline::{Frame, FrameSize, GenerationPlan, KeyFrames, StageError, StageResult, StepCacheKind};
use std::hash::{DefaultHasher, Hash, Hasher};

/// What a diffusion leaves.
pub(super) struct Diffused {
    pub(super) key_frames: KeyFrames,
    /// The final latent in the order of `shape`.
    pub(super) latents: Vec<f32>,
    pub(super) shape: LatentShape,
}

/// Where a session is.
enum Phase {
    /// Given pictures go through the VAE's encoder; one step, left out when the model takes none.
    Known,
    /// A step is a sampler step: one pass of the transformer, two when guided.
    Denoise,
    /// A step is a latent frame.
    Decode(DecodeState),
}

/// One diffusion as a session of the device queue. Latents are channels last: [f, h, w, z].
pub(super) struct Denoise {
    conditioning: PromptConditioning,
    guidance: Guidance,
    size: FrameSize,
    given: Vec<(usize, Frame)>,
    shape: LatentShape,
    sampler: SamplerState,
    latent: Vec<f32>,
    /// Mask and known latents [f, h, w, 1 + z], for models that take them.
    known: Option<Tensor>,
    phase: Phase,
    key_frames: Vec<Frame>,
    key_frame_count: usize,
}

/// [z, f, h, w] of the plan's latent; an error when the model cannot make such a clip.
pub(super) fn latent_shape(model: &VideoModel, plan: &GenerationPlan) -> StageResult<LatentShape> {
    let FrameSize { width, height } = plan.key_frame_size;
    let (width, height, multiple) = (width as usize, height as usize, model.size_multiple_px());
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
        noise: Option<Vec<f32>>,
    ) -> StageResult<Self> {
        let model = &conditioning.model;
        let shape = latent_shape(model, plan)?;
        let takes_pictures = model.defaults.conditioning == Conditioning::Mask1;
        if !plan.given.is_empty() && !takes_pictures {
            return Err(StageError::invalid("image", "this model makes videos from text alone; leave the picture out"));
        }
        if plan.guidance.is_guided() && conditioning.negative.is_none() {
            return Err(StageError::Internal("a guided plan with conditioning that is not".to_owned()));
        }
        if plan.step_cache != StepCacheKind::None {
            return Err(StageError::invalid("step_cache", "this model has no step cache; leave it out"));
        }
        let noise = noise.unwrap_or_else(|| gaussian(plan.seed, shape.iter().product()));
        let latent = Tensor::from_vec(noise, &shape).and_then(|noise| channels_last(&noise));
        let latent = latent.map_err(|e| internal(e.into()))?.to_vec_f32();
        Ok(Self {
            conditioning: conditioning.clone(),
            guidance: Guidance::new(&plan.guidance),
            size: plan.key_frame_size,
            given: given_frames(plan)?,
            shape,
            sampler: SamplerState::new(&plan.sampling),
            latent,
            known: None,
            phase: if takes_pictures { Phase::Known } else { Phase::Denoise },
            key_frames: Vec::with_capacity(plan.key_frames as usize),
            key_frame_count: plan.key_frames as usize,
        })
    }

    fn channels_last_shape(&self) -> [usize; 4] {
        let [z, f, h, w] = self.shape;
        [f, h, w, z]
    }

    pub(super) fn encode_known(&self) -> Result<Tensor> {
        let vae = &self.conditioning.model.vae;
        if vae.config().temporal_factor() != 1 {
            return Err(ModelError::Unsupported("mask1 conditioning with a VAE that compresses time".to_owned()));
        }
        let (width, height) = (self.size.width as usize, self.size.height as usize);
        let grey = vae.encode(&Tensor::zeros(&[1, height, width, 3], Dtype::F32)?)?;
        let [f, h, w, _] = self.channels_last_shape();
        let unknown = concat_channels(&[&Tensor::zeros(&[1, h, w, 1], Dtype::F32)?, &grey])?;
        let mut frames = vec![unknown; f];
        let mask = Tensor::from_vec(vec![1.0; h * w], &[1, h, w, 1])?;
        for (index, frame) in &self.given {
            frames[*index] = concat_channels(&[&mask, &vae.encode(&to_tensor(frame)?)?])?;
        }
        Ok(Tensor::concat_outer(&frames.iter().collect::<Vec<_>>())?)
    }

    /// The model's answer at the sampler's current step, guided.
    fn velocity(&mut self) -> Result<Vec<f32>> {
        let step = self.sampler.done();
        if self.guidance.moves_nothing(step) {
            return Ok(vec![0.0; self.latent.len()]);
        }
        let latent = Tensor::from_f32(&self.latent, &self.channels_last_shape())?;
        let input = match &self.known {
            Some(known) => concat_channels(&[&latent, known])?,
            None => latent,
        };
        let timestep = Timestep::Clip(self.sampler.timestep(step));
        let negative = self.conditioning.negative.as_ref().filter(|_| self.looks_at_negative());
        let contexts: Vec<_> = std::iter::once(&self.conditioning.prompt).chain(negative).collect();
        let velocities = self.conditioning.model.transformer.forward(&input, timestep, &contexts, None, None)?;
        let mut velocity = velocities[0].to_vec_f32();
        let without = velocities.get(1).map(Tensor::to_vec_f32);
        self.guidance.combine(step, &mut velocity, without.as_deref());
        Ok(velocity)
    }

    fn looks_at_negative(&self) -> bool {
        self.guidance.needs_negative(self.sampler.done(), self.sampler.steps())
    }

    fn sampler_step(&mut self) -> Result<()> {
        let velocity = self.velocity()?;
        if !self.sampler.step(&mut self.latent, &velocity) {
            return Err(ModelError::Input("the transformer's answer has another size than the latent".to_owned()));
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
        let values = pictures.to_vec_f32();
        for picture in values.chunks_exact(self.size.rgb_bytes()) {
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
        let latents = Tensor::from_f32(&self.latent, &self.channels_last_shape())?;
        Ok(Diffused {
            key_frames: KeyFrames { frames: std::mem::take(&mut self.key_frames) },
            latents: channels_first(&latents)?.to_vec_f32(),
            shape: self.shape,
        })
    }
}

impl Session for Denoise {
    type Output = Diffused;

    fn steps(&self) -> u32 {
        let known = u32::from(self.conditioning.model.defaults.conditioning == Conditioning::Mask1);
        known + self.sampler.steps() as u32 + self.shape[1] as u32
    }

    fn cost_class(&self) -> u64 {
        let phase = match self.phase {
            Phase::Known => 0,
            Phase::Denoise => 1,
            Phase::Decode(_) => 2,
        };
        let mut hasher = DefaultHasher::new();
        let guided = self.looks_at_negative();
        ("diffuse", phase, &self.conditioning.model_name, self.shape, guided).hash(&mut hasher);
        hasher.finish()
    }

    fn step(&mut self) -> StageResult<Option<Diffused>> {
        match self.phase {
            Phase::Known => {
                self.known = Some(self.encode_known().map_err(internal)?);
                self.phase = Phase::Denoise;
            }
            Phase::Denoise => {
                self.sampler_step().map_err(internal)?;
                if self.sampler.done() == self.sampler.steps() {
                    self.phase = Phase::Decode(DecodeState::default());
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
fn given_frames(plan: &GenerationPlan) -> StageResult<Vec<(usize, Frame)>> {
    let scaled = |index: u32, frame: &Frame| {
        if index >= plan.key_frames {
            let message = format!("there is no key frame {index} among {}", plan.key_frames);
            return Err(StageError::invalid("image", message));
        }
        Ok((index as usize, picture::cover(frame, plan.key_frame_size)?))
    };
    plan.given.iter().map(|given| scaled(given.index, &given.frame)).collect()
}

/// RGB bytes to [1, h, w, 3] in −1..=1.
fn to_tensor(frame: &Frame) -> Result<Tensor> {
    let values = frame.rgb().iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
    Ok(Tensor::from_vec(values, &[1, frame.size().height as usize, frame.size().width as usize, 3])?)
}
