//! Wan 2.1's video autoencoder (diffusers' `AutoencoderKLWan`): frames to latents and back, a chunk of frames at a time.
//!
//! Convolutions look only back in time. Each keeps the last frames of its input, so a clip goes through in chunks whose
//! memory does not grow with its length: one latent frame at a time, which is one picture first and `temporal_factor`
//! pictures after that.

mod config;
mod decoder;
mod encoder;
mod layers;

pub use config::VaeConfig;

use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use crate::weights::Scope;
use decoder::Decoder;
use encoder::Encoder;
use kernels::{Activation, Dtype, PackedLinear, Tensor, linear};
use layers::History;

/// The autoencoder with its weights packed for one dtype. Latents are normalised: mean 0 and deviation 1 per channel.
pub struct WanVae {
    config: VaeConfig,
    encoder: Encoder,
    decoder: Decoder,
    /// `quant_conv` for the means alone, with the normalisation of latents folded in.
    to_latent: PackedLinear,
    /// `post_quant_conv` with the inverse of the normalisation folded in.
    from_latent: PackedLinear,
    /// Of the features between the layers; sums within a layer are f32.
    dtype: Dtype,
}

impl WanVae {
    /// Loads `config.json` and the weights in `subfolder` for products in `dtype`.
    pub fn load(files: &ModelFiles, subfolder: &str, dtype: Dtype) -> Result<Self> {
        let path = format!("{subfolder}/config.json");
        let config: VaeConfig = files.read_json(&path)?;
        config.check(&files.name_of(&path))?;
        let weights = files.weights(subfolder)?;
        let model = Self::from_weights(&weights.scope(""), config, dtype)?;
        weights.warn_of_unused();
        Ok(model)
    }

    /// Builds the model from a checked config and the tensors in `scope`.
    pub fn from_weights(scope: &Scope<'_>, config: VaeConfig, dtype: Dtype) -> Result<Self> {
        Ok(Self {
            encoder: Encoder::load(&scope.at("encoder"), &config, dtype)?,
            decoder: Decoder::load(&scope.at("decoder"), &config, dtype)?,
            to_latent: to_latent(&scope.at("quant_conv"), &config)?,
            from_latent: from_latent(&scope.at("post_quant_conv"), &config)?,
            config,
            dtype,
        })
    }

    /// Sizes of the model.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// The most likely latents of a clip: frames [f, h, w, 3] in −1..=1 → [f', h/s, w/s, z] in f32.
    ///
    /// `f` is 1 + a multiple of the temporal factor; h and w are multiples of the spatial factor s.
    pub fn encode(&self, frames: &Tensor) -> Result<Tensor> {
        let (factor, s) = (self.config.temporal_factor(), self.config.spatial_factor());
        let fits = matches!(*frames.shape(), [f, h, w, 3]
            if f > 0 && (f - 1).is_multiple_of(factor) && h > 0 && w > 0 && h.is_multiple_of(s) && w.is_multiple_of(s));
        if !fits {
            let needed = format!("[{factor}·k + 1, {s}·h, {s}·w, 3]");
            return Err(ModelError::Input(format!("frames are {:?}, needs {needed}", frames.shape())));
        }
        let mut history = History::default();
        let mut latents = Vec::new();
        let mut start = 0;
        while start < frames.shape()[0] {
            let end = if start == 0 { 1 } else { start + factor };
            let chunk = frames.slice_outer(start..end)?.to_dtype(self.dtype);
            let encoded = self.encoder.forward(&chunk, &mut history)?;
            latents.push(per_pixel(&encoded, &self.to_latent, Dtype::F32)?);
            start = end;
        }
        Ok(Tensor::concat_outer(&latents.iter().collect::<Vec<_>>())?)
    }

    /// All pictures of a clip: latent [f, h, w, z] → [f', s·h, s·w, 3] in −1..=1, f' = 1 + (f − 1)·temporal factor.
    pub fn decode(&self, latent: &Tensor) -> Result<Tensor> {
        let &[f, ..] = latent.shape() else {
            return Err(ModelError::Input(format!("latent is {:?}, needs [f, h, w, z]", latent.shape())));
        };
        let mut state = DecodeState::default();
        let mut next = |i| self.decode_next(&mut state, &latent.slice_outer(i..i + 1)?);
        let chunks = (0..f).map(&mut next).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::concat_outer(&chunks.iter().collect::<Vec<_>>())?)
    }

    /// The pictures of a clip's next latent frame [1, h, w, z]: one [1, s·h, s·w, 3] for the first, `temporal factor`
    /// for each later one; f32 in −1..=1. `state` starts as the default and belongs to one clip.
    pub fn decode_next(&self, state: &mut DecodeState, latent: &Tensor) -> Result<Tensor> {
        let z = self.config.z_dim;
        if !matches!(*latent.shape(), [1, h, w, c] if c == z && h > 0 && w > 0) {
            return Err(ModelError::Input(format!("latent frame is {:?}, needs [1, h, w, {z}]", latent.shape())));
        }
        let x = per_pixel(latent, &self.from_latent, self.dtype)?;
        let pictures = self.decoder.forward(&x, &mut state.history)?;
        state.frames += 1;
        let values = pictures.to_vec_f32().into_iter().map(|v| v.clamp(-1.0, 1.0)).collect();
        Ok(Tensor::from_vec(values, pictures.shape())?)
    }
}

/// Where a clip is on its way through the decoder.
#[derive(Default)]
pub struct DecodeState {
    history: History,
    frames: usize,
}

impl DecodeState {
    /// Latent frames decoded so far.
    pub fn frames(&self) -> usize {
        self.frames
    }
}

/// A convolution of one tap: the same matrix for each pixel of x [f, h, w, c].
fn per_pixel(x: &Tensor, weight: &PackedLinear, out: Dtype) -> Result<Tensor> {
    let &[ref outer @ .., c] = x.shape() else {
        return Err(ModelError::Input("a tensor without dimensions".to_owned()));
    };
    let pixels: usize = outer.iter().product();
    let shape: Vec<usize> = outer.iter().copied().chain([weight.n()]).collect();
    Ok(linear(&x.reshape(&[pixels, c])?, weight, Activation::None, out)?.reshape(&shape)?)
}

/// `((W·x + b) − mean) / std` for the z rows that hold the means; the other z hold log-variances.
fn to_latent(scope: &Scope<'_>, config: &VaeConfig) -> Result<PackedLinear> {
    let z = config.z_dim;
    let mut weight = one_tap(scope, 2 * z, 2 * z)?;
    let mut bias = scope.vector("bias", 2 * z)?.to_vec_f32();
    weight.truncate(z * 2 * z);
    bias.truncate(z);
    for (o, (mean, std)) in config.statistics().enumerate() {
        weight[o * 2 * z..(o + 1) * 2 * z].iter_mut().for_each(|w| *w /= std);
        bias[o] = (bias[o] - mean) / std;
    }
    pack(weight, bias, 2 * z)
}

/// `W·(std·x + mean) + b`.
fn from_latent(scope: &Scope<'_>, config: &VaeConfig) -> Result<PackedLinear> {
    let z = config.z_dim;
    let mut weight = one_tap(scope, z, z)?;
    let mut bias = scope.vector("bias", z)?.to_vec_f32();
    for (row, bias) in weight.chunks_exact_mut(z).zip(&mut bias) {
        for (w, (mean, std)) in row.iter_mut().zip(config.statistics()) {
            *bias += *w * mean;
            *w *= std;
        }
    }
    pack(weight, bias, z)
}

fn one_tap(scope: &Scope<'_>, cout: usize, cin: usize) -> Result<Vec<f32>> {
    Ok(scope.tensor("weight", &[cout, cin, 1, 1, 1], Dtype::F32)?.to_vec_f32())
}

fn pack(weight: Vec<f32>, bias: Vec<f32>, inputs: usize) -> Result<PackedLinear> {
    let outputs = bias.len();
    let bias = Tensor::from_vec(bias, &[outputs])?;
    Ok(PackedLinear::new(&Tensor::from_vec(weight, &[outputs, inputs])?, Some(&bias), Dtype::F32)?)
}
