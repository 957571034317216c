//! Wan's video autoencoders (diffusers' `AutoencoderKLWan`, of Wan 2.1 and 2.2): frames to latents and back, a chunk of
//! frames at a time.
//!
//! Convolutions look only back in time. Each keeps the last frames of its input, so a clip goes through in chunks whose
//! memory does not grow with its length: one latent frame at a time, which is one picture first and `temporal_factor`
//! pictures after that.

mod clip;
mod config;
mod layers;
mod network;
mod resize;
mod tiling;

pub use clip::{DecodeState, EncodeState};
pub use config::VaeConfig;
pub use tiling::Tiling;

use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use crate::weights::Scope;
use kernels::{Activation, Dtype, PackedLinear, Tensor, clamp, linear, patchify, pixel_shuffle2x};
use network::Network;
use tiling::Scale;

/// The autoencoder with its weights packed for one dtype. Latents are normalised: mean 0 and deviation 1 per channel.
pub struct WanVae {
    config: VaeConfig,
    encoder: Network,
    decoder: Network,
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
            encoder: Network::encoder(&scope.at("encoder"), &config, dtype)?,
            decoder: Network::decoder(&scope.at("decoder"), &config, dtype)?,
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
        let factor = self.config.temporal_factor();
        let count = match *frames.shape() {
            [f, ..] if f > 0 && (f - 1).is_multiple_of(factor) => f,
            _ => return Err(ModelError::Input(format!("frames are {:?}, needs [{factor}·k + 1, …]", frames.shape()))),
        };
        let mut state = EncodeState::default();
        let starts = std::iter::once(0).chain((1..count).step_by(factor));
        let mut next = |start: usize| {
            let end = if start == 0 { 1 } else { start + factor };
            self.encode_next(&mut state, &frames.slice_outer(start..end)?)
        };
        let latents = starts.map(&mut next).collect::<Result<Vec<_>>>()?;
        layers::joined(latents)
    }

    /// The latent frame [1, h/s, w/s, z] of a clip's next pictures [f, h, w, 3] in −1..=1: one picture for the first,
    /// `temporal_factor` for each later one. `state` starts as the default and belongs to one clip.
    pub fn encode_next(&self, state: &mut EncodeState, frames: &Tensor) -> Result<Tensor> {
        let s = self.config.spatial_factor();
        let count = if state.frames() == 0 { 1 } else { self.config.temporal_factor() };
        let [h, w] = match *frames.shape() {
            [f, h, w, 3] if f == count && h > 0 && w > 0 && h.is_multiple_of(s) && w.is_multiple_of(s) => [h, w],
            _ => {
                let needed = format!("[{count}, {s}·h, {s}·w, 3]");
                return Err(ModelError::Input(format!("frames are {:?}, needs {needed}", frames.shape())));
            }
        };
        let side = self.config.patch_side();
        let patches = match side {
            1 => frames.clone(),
            _ => patchify(frames, [1, side, side])?.reshape(&[count, h / side, w / side, 3 * side * side])?,
        };
        // diffusers measures the encoder's tiles in patches, the decoder's in pixels.
        let scale = Scale { up: 1, down: s / side };
        state.0.next(&patches, [h, w], 1, s, scale, |tile, history| {
            let encoded = self.encoder.forward(&tile.to_dtype(self.dtype), history)?;
            per_pixel(&encoded, &self.to_latent, Dtype::F32)
        })
    }

    /// All pictures of a clip: latent [f, h, w, z] → [f', s·h, s·w, 3] in −1..=1, f' = 1 + (f − 1)·temporal factor.
    pub fn decode(&self, latent: &Tensor) -> Result<Tensor> {
        let &[f, ..] = latent.shape() else {
            return Err(ModelError::Input(format!("latent is {:?}, needs [f, h, w, z]", latent.shape())));
        };
        let mut state = DecodeState::default();
        let mut next = |i| self.decode_next(&mut state, &latent.slice_outer(i..i + 1)?);
        layers::joined((0..f).map(&mut next).collect::<Result<Vec<_>>>()?)
    }

    /// The pictures of a clip's next latent frame [1, h, w, z]: one [1, s·h, s·w, 3] for the first, `temporal factor`
    /// for each later one; f32 in −1..=1. `state` starts as the default and belongs to one clip.
    pub fn decode_next(&self, state: &mut DecodeState, latent: &Tensor) -> Result<Tensor> {
        let (z, s) = (self.config.z_dim, self.config.spatial_factor());
        let [h, w] = match *latent.shape() {
            [1, h, w, c] if c == z && h > 0 && w > 0 => [h, w],
            _ => return Err(ModelError::Input(format!("latent frame is {:?}, needs [1, h, w, {z}]", latent.shape()))),
        };
        let scale = Scale { up: s / self.config.patch_side(), down: 1 };
        let patches = state.0.next(latent, [h * s, w * s], s, s, scale, |tile, history| {
            self.decoder.forward(&per_pixel(tile, &self.from_latent, self.dtype)?, history)
        })?;
        let pictures = match self.config.patch_side() {
            1 => patches,
            _ => pixel_shuffle2x(&patches)?,
        };
        Ok(clamp(pictures, -1.0, 1.0)?)
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
