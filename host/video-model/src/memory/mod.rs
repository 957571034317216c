//! What a job needs at its peak, from a folder's configs, its weights' headers and the plan: known before anything is loaded.
//!
//! The phases of a job follow each other and their tensors share one arena, so the peak is the weights plus the largest
//! phase. A phase is walked through as the networks do it: what an operation makes is added, what is dropped is taken off.
//! The walks follow the code of the networks by hand; `memory/tests.rs` holds them to 15 % of what the arena counts. What a
//! process needs beyond that (`FREE_PERCENT`, `LOADING_PERCENT`) was measured once, at one size.

mod budget;
#[cfg(test)]
mod tests;
mod transformer;
mod vae;
mod walk;
mod weights;

pub use budget::{available_bytes, parse_bytes};

use crate::config::FolderConfig;
use crate::error::Result;
use crate::files::ModelFiles;
use crate::precision::Precision;
use crate::transformer::{Residency, TransformerConfig};
use crate::vae::{Tiling, VaeConfig};
use pipeline::{FrameSize, GenerationPlan, ModelDefaults, StageError, StageResult, StepCacheKind};
use serde::Serialize;
use std::fmt;
use transformer::Step;
use weights::WeightBytes;

/// Rows of CLIP states of a picture in Wan's models.
const IMAGE_ROWS: usize = 257;

/// What an arena holds beside its live tensors, in percent of these: ranges that are free and too short for what comes next.
/// Wan 1.3B at 832x480x33 was counted at 21 % while pictures were decoded.
const FREE_PERCENT: u64 = 25;
/// What the process keeps of the memory that loading took for a while, in percent of the weights: there it was 16 %.
const LOADING_PERCENT: u64 = 16;

fn with_share(bytes: u64, percent: u64) -> u64 {
    bytes + bytes / 100 * percent
}

/// What a job asks of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Size of the key frames.
    pub size: FrameSize,
    /// Number of key frames.
    pub key_frames: usize,
    /// Whether prompt and negative prompt pass the transformer together.
    pub guided: bool,
    /// Whether residuals are kept from step to step.
    pub step_cache: bool,
    /// Pictures given.
    pub pictures: usize,
}

impl From<&GenerationPlan> for Workload {
    fn from(plan: &GenerationPlan) -> Self {
        Self {
            size: plan.key_frame_size,
            key_frames: plan.key_frames as usize,
            guided: plan.guidance.is_guided(),
            step_cache: plan.step_cache != StepCacheKind::None,
            pictures: plan.given.len(),
        }
    }
}

impl Workload {
    /// A job of which the request is silent.
    pub fn of_defaults(defaults: &ModelDefaults) -> Self {
        Self {
            size: defaults.native_size,
            key_frames: defaults.key_frames as usize,
            guided: defaults.guidance > 1.0,
            step_cache: false,
            pictures: 0,
        }
    }
}

/// How a job makes do with the memory that there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Placement {
    /// Where the transformer's blocks are.
    pub residency: Residency,
    /// Whether pictures are decoded in tiles.
    pub tiling: Option<Tiling>,
}

impl Placement {
    /// From the fastest to the smallest.
    const ALL: [fn() -> Self; 3] = [
        Self::default,
        || Self { residency: Residency::Streamed, tiling: None },
        || Self { residency: Residency::Streamed, tiling: Some(Tiling::default()) },
    ];
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.residency {
            Residency::Resident => "all weights in memory",
            Residency::Streamed => "transformer blocks streamed from their files",
        })?;
        if self.tiling.is_some() {
            f.write_str(", pictures decoded in tiles")?;
        }
        Ok(())
    }
}

/// Bytes that a job needs. Phases share memory, so `peak_bytes` is the weights and the frames plus the largest phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// Packed weights of all parts, or of two blocks and what is not in blocks when blocks are streamed.
    pub weights_bytes: u64,
    /// A denoise step: contexts, latents, step cache, and the activations at their peak.
    pub activations_bytes: u64,
    /// Decoding (or encoding) a latent frame: what the convolutions remember, and the features at their peak.
    pub vae_bytes: u64,
    /// Finished key frames, and the latents.
    pub frames_bytes: u64,
    /// The most at one time.
    pub peak_bytes: u64,
}

impl MemoryEstimate {
    /// What a job needs besides the weights, which it shares with others of the same model.
    pub fn job_bytes(&self) -> u64 {
        self.peak_bytes - self.weights_bytes
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let (peak, weights, step, vae) = (self.peak_bytes, self.weights_bytes, self.activations_bytes, self.vae_bytes);
        write!(f, "{:.2} GB at the peak (weights {:.2}, ", gb(peak), gb(weights))?;
        write!(f, "denoising {:.2}, pictures {:.2} GB)", gb(step), gb(vae))
    }
}

/// A model folder as far as memory is concerned.
#[derive(Debug, Clone)]
pub struct ModelMemory {
    transformer: TransformerConfig,
    vae: VaeConfig,
    text_rows: usize,
    precision: Precision,
    weights: WeightBytes,
}

impl ModelMemory {
    /// Reads the configs and the weights' headers of a folder.
    pub fn read(files: &ModelFiles, precision: Precision) -> Result<Self> {
        let config = FolderConfig::load(files)?;
        let transformers: &[&str] = match config.boundary_ratio {
            Some(_) => &["transformer", "transformer_2"],
            None => &["transformer"],
        };
        Ok(Self {
            text_rows: config.defaults.text_length,
            transformer: config.transformer,
            vae: config.vae,
            weights: WeightBytes::read(files, transformers, precision)?,
            precision,
        })
    }

    /// The packed weights of all parts; of streamed blocks two are in memory at a time.
    pub fn weights_bytes(&self, residency: Residency) -> u64 {
        let WeightBytes { encoders, around_blocks, blocks, block_max, vae } = self.weights;
        let blocks = match residency {
            Residency::Resident => blocks,
            Residency::Streamed => blocks.min(2 * block_max),
        };
        encoders + around_blocks + blocks + vae
    }

    /// What a job needs when it is placed so.
    pub fn estimate(&self, work: &Workload, placement: Placement) -> MemoryEstimate {
        let (width, height) = (work.size.width as usize, work.size.height as usize);
        let (side, factor) = (self.vae.spatial_factor(), self.vae.temporal_factor());
        let latent = [1 + (work.key_frames.saturating_sub(1)) / factor, height / side, width / side];
        let image_rows = match (self.transformer.image_dim, self.transformer.pos_embed_seq_len) {
            (None, _) => 0,
            (Some(_), both) => both.unwrap_or(IMAGE_ROWS),
        };
        let (config, precision, text_rows) = (&self.transformer, self.precision, self.text_rows);
        let step = Step { config, precision, work, latent, text_rows, image_rows };
        let dtype = self.precision.activations();
        let decode = vae::decode_bytes(&self.vae, dtype, [height, width], placement.tiling);
        let encode = match work.pictures {
            0 => 0,
            // Given pictures are never encoded in tiles.
            _ => vae::encode_bytes(&self.vae, dtype, [height, width]),
        };
        let weights_bytes = with_share(self.weights_bytes(placement.residency), LOADING_PERCENT);
        let activations_bytes = with_share(step.kept_bytes() + step.peak_bytes(), FREE_PERCENT);
        let latents = 4 * (latent.iter().product::<usize>() * self.vae.z_dim) as u64;
        let frames = (work.key_frames * width * height * 3) as u64;
        let vae_bytes = with_share(decode.max(encode), FREE_PERCENT);
        // Frames are there while pictures are decoded, not while the latents are made.
        let phases = activations_bytes.max(vae_bytes + frames + latents);
        MemoryEstimate {
            weights_bytes,
            activations_bytes,
            vae_bytes,
            frames_bytes: frames + latents,
            peak_bytes: weights_bytes + phases,
        }
    }

    /// The fastest placement whose peak fits into `budget_bytes`, or the refusal of the job.
    pub fn place(&self, work: &Workload, budget_bytes: u64) -> StageResult<(Placement, MemoryEstimate)> {
        let all = Placement::ALL.map(|placement| (placement(), self.estimate(work, placement())));
        if let Some(fitting) = all.iter().find(|(_, estimate)| estimate.peak_bytes <= budget_bytes) {
            return Ok(*fitting);
        }
        let least = all.iter().map(|(_, estimate)| estimate.peak_bytes).min().unwrap_or(0);
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let (need, have, frames, size) = (gb(least), gb(budget_bytes), work.key_frames, work.size);
        let int8 = if self.precision == Precision::Int8 { "" } else { ", or --dtype int8" };
        Err(StageError::invalid(
            "memory",
            format!(
                "{frames} key frames of {size} need {need:.2} GB even with streamed weights and tiles, there are \
                 {have:.2} GB; ask for fewer frames, a smaller size{int8}"
            ),
        ))
    }
}
