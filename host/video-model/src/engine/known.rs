//! What a clip is known to show before anything is denoised: given pictures as latents, in the form that a model takes.

use crate::config::Conditioning;
use crate::error::Result;
use crate::noise::LatentShape;
use crate::vae::{EncodeState, WanVae};
use kernels::{Dtype, Tensor, concat_channels};
use pipeline::{Frame, FrameSize};

/// Known frames in a model's own form. Latents are [f, h, w, c].
pub(super) enum Known {
    /// Nothing is known: text to video.
    Nothing,
    /// Masks and latents of all frames, channels beside the noisy ones.
    Beside(Tensor),
    /// The first frame's latent [1, h, w, z], in the place of its noise.
    FirstFrame(Tensor),
}

impl Known {
    /// What the transformer sees of the noisy `latent` [f, h, w, z].
    pub(super) fn input(&self, latent: Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Nothing => latent,
            Self::Beside(known) => concat_channels(&[&latent, known])?,
            Self::FirstFrame(first) => hold_first(first, &latent)?,
        })
    }

    /// The noise level of each of `frames` latent frames, when it is not the clip's.
    pub(super) fn timesteps(&self, timestep: f32, frames: usize) -> Option<Vec<f32>> {
        let level = |frame| if frame == 0 { 0.0 } else { timestep };
        matches!(self, Self::FirstFrame(_)).then(|| (0..frames).map(level).collect())
    }

    /// The finished latent: what was known is what it was.
    pub(super) fn finish(&self, latent: Tensor) -> Result<Tensor> {
        match self {
            Self::FirstFrame(first) => hold_first(first, &latent),
            _ => Ok(latent),
        }
    }
}

fn hold_first(first: &Tensor, latent: &Tensor) -> Result<Tensor> {
    let frames = latent.shape()[0];
    Ok(Tensor::concat_outer(&[first, &latent.slice_outer(1..frames)?])?)
}

/// Brings given pictures through the VAE's encoder, one latent frame a step.
pub(super) struct KnownEncoder {
    conditioning: Conditioning,
    /// Key frame's index and its picture, at the size of key frames.
    given: Vec<(usize, Frame)>,
    size: FrameSize,
    shape: LatentShape,
    state: EncodeState,
    encoded: Vec<Tensor>,
}

impl KnownEncoder {
    /// `None` when the model has nothing to encode.
    pub(super) fn new(
        conditioning: Conditioning,
        given: Vec<(usize, Frame)>,
        size: FrameSize,
        shape: LatentShape,
    ) -> Option<Self> {
        let needed = match conditioning {
            Conditioning::None => false,
            Conditioning::Mask1 | Conditioning::MaskedClip => true,
            Conditioning::FirstFrame => !given.is_empty(),
        };
        let (state, encoded) = (EncodeState::default(), Vec::new());
        needed.then_some(Self { conditioning, given, size, shape, state, encoded })
    }

    /// How many calls of [`KnownEncoder::step`] it takes.
    pub(super) fn steps(&self) -> u32 {
        match self.conditioning {
            Conditioning::MaskedClip => self.shape[1] as u32,
            _ => 1,
        }
    }

    /// One step; what is known after the last.
    pub(super) fn step(&mut self, vae: &WanVae) -> Result<Option<Known>> {
        match self.conditioning {
            Conditioning::None => Ok(Some(Known::Nothing)),
            Conditioning::Mask1 => Ok(Some(Known::Beside(self.each_frame_alone(vae)?))),
            Conditioning::FirstFrame => Ok(Some(Known::FirstFrame(vae.encode(&self.picture(0)?)?))),
            Conditioning::MaskedClip => {
                let frame = self.next_of_clip(vae)?;
                self.encoded.push(frame);
                if self.encoded.len() < self.shape[1] {
                    return Ok(None);
                }
                let frames = std::mem::take(&mut self.encoded);
                Ok(Some(Known::Beside(Tensor::concat_outer(&frames.iter().collect::<Vec<_>>())?)))
            }
        }
    }

    /// [f, h, w, 1 + z]: the mask, then each frame's own latent, mid-grey where nothing is given.
    fn each_frame_alone(&self, vae: &WanVae) -> Result<Tensor> {
        let [_, f, h, w] = self.shape;
        let unknown = concat_channels(&[&Tensor::zeros(&[1, h, w, 1], Dtype::F32)?, &vae.encode(&self.grey()?)?])?;
        let mut frames = vec![unknown; f];
        let mask = Tensor::from_vec(vec![1.0; h * w], &[1, h, w, 1])?;
        for (index, picture) in &self.given {
            frames[*index] = concat_channels(&[&mask, &vae.encode(&to_tensor(picture)?)?])?;
        }
        Ok(Tensor::concat_outer(&frames.iter().collect::<Vec<_>>())?)
    }

    /// [1, h, w, p + z] of the next latent frame: a mask for each of its p pictures, then the latent. The first latent
    /// frame has one picture, whose mask is repeated.
    fn next_of_clip(&mut self, vae: &WanVae) -> Result<Tensor> {
        let ([_, _, h, w], factor) = (self.shape, vae.config().temporal_factor());
        let pictures = match self.encoded.len() {
            0 => 0..1,
            n => 1 + (n - 1) * factor..1 + n * factor,
        };
        let is_given = |picture: usize| self.given.iter().any(|(index, _)| *index == picture);
        let masks: Vec<f32> = match pictures.len() {
            1 => vec![f32::from(is_given(0)); factor],
            _ => pictures.clone().map(|picture| f32::from(is_given(picture))).collect(),
        };
        let mask = Tensor::from_vec(masks.repeat(h * w), &[1, h, w, factor])?;
        let pixels = pictures.map(|picture| self.picture(picture)).collect::<Result<Vec<_>>>()?;
        let pixels = Tensor::concat_outer(&pixels.iter().collect::<Vec<_>>())?;
        Ok(concat_channels(&[&mask, &vae.encode_next(&mut self.state, &pixels)?])?)
    }

    /// The picture of a key frame [1, h, w, 3], mid-grey when it is not given.
    fn picture(&self, index: usize) -> Result<Tensor> {
        match self.given.iter().find(|(given, _)| *given == index) {
            Some((_, frame)) => to_tensor(frame),
            None => self.grey(),
        }
    }

    fn grey(&self) -> Result<Tensor> {
        Ok(Tensor::zeros(&[1, self.size.height as usize, self.size.width as usize, 3], Dtype::F32)?)
    }
}

/// RGB bytes to [1, h, w, 3] in −1..=1.
fn to_tensor(frame: &Frame) -> Result<Tensor> {
    let values = frame.rgb().iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
    Ok(Tensor::from_vec(values, &[1, frame.size().height as usize, frame.size().width as usize, 3])?)
}
