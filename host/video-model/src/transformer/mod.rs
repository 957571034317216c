//! Wan's video transformer (diffusers' `WanTransformer3DModel`): noisy latents, a timestep and text states in, velocity out.

mod block;
mod condition;
mod config;

pub use config::TransformerConfig;

use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use crate::weights::Scope;
use block::Block;
use condition::TimeEmbedding;
use kernels::{
    Activation, Dtype, PackedLinear, RopeTable, Tensor, add, layer_norm_modulate, linear, patchify, unpatchify,
};
use std::sync::{Arc, Mutex, PoisonError};

/// A prompt's keys and values for every block's cross-attention. They depend on nothing else, so one serves all steps.
#[derive(Debug, Clone)]
pub struct TextContext {
    blocks: Vec<block::KeysValues>,
}

/// The transformer with its weights packed for one dtype.
pub struct WanTransformer {
    config: TransformerConfig,
    dtype: Dtype,
    patch_embedding: PackedLinear,
    time: TimeEmbedding,
    text_in: PackedLinear,
    text_out: PackedLinear,
    blocks: Vec<Block>,
    head_table: Tensor,
    proj_out: PackedLinear,
    /// The rotation table of the last grid: all steps of a job share one.
    rope: Mutex<Option<([usize; 3], Arc<RopeTable>)>>,
}

impl WanTransformer {
    /// Loads `config.json` and the weights in `subfolder` for products in `dtype`.
    pub fn load(files: &ModelFiles, subfolder: &str, dtype: Dtype) -> Result<Self> {
        let path = format!("{subfolder}/config.json");
        let config: TransformerConfig = files.read_json(&path)?;
        config.check(&files.name_of(&path))?;
        let weights = files.weights(subfolder)?;
        let model = Self::from_weights(&weights.scope(""), config, dtype)?;
        weights.warn_of_unused();
        Ok(model)
    }

    /// Builds the model from a checked config and the tensors in `scope`.
    ///
    /// The first and last layers and the time embedding stay f32 whatever `dtype` is: they are under a percent of the
    /// work, and their rounding would go straight into the latent.
    pub fn from_weights(scope: &Scope<'_>, config: TransformerConfig, dtype: Dtype) -> Result<Self> {
        let (d, [pf, ph, pw]) = (config.width(), config.patch_size);
        let (cin, patch) = (config.in_channels, pf * ph * pw);
        let embedding = scope.at("patch_embedding");
        let kernel = embedding.tensor("weight", &[d, cin, pf, ph, pw], Dtype::F32)?.reshape(&[d, cin * patch])?;
        let condition = scope.at("condition_embedder");
        let blocks = scope.at("blocks");
        Ok(Self {
            dtype,
            patch_embedding: PackedLinear::new(&kernel, Some(&embedding.vector("bias", d)?), Dtype::F32)?,
            time: TimeEmbedding::load(&condition, config.freq_dim, d)?,
            text_in: condition.linear("text_embedder.linear_1", config.text_dim, d, dtype)?,
            text_out: condition.linear("text_embedder.linear_2", d, d, dtype)?,
            blocks: (0..config.num_layers)
                .map(|i| Block::load(&blocks.at(i), &config, dtype))
                .collect::<Result<_>>()?,
            head_table: scope.tensor("scale_shift_table", &[1, 2, d], Dtype::F32)?.reshape(&[2, d])?,
            proj_out: scope.linear("proj_out", d, config.out_channels() * patch, Dtype::F32)?,
            rope: Mutex::new(None),
            config,
        })
    }

    /// Sizes of the model.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// Prepares text states [text_length, text_dim] for all steps of a job.
    pub fn text_context(&self, states: &Tensor) -> Result<TextContext> {
        let x = linear(states, &self.text_in, Activation::GeluTanh, self.dtype)?;
        let x = linear(&x, &self.text_out, Activation::None, self.dtype)?;
        Ok(TextContext { blocks: self.blocks.iter().map(|b| b.text_keys_values(&x)).collect::<Result<_>>()? })
    }

    /// The predicted velocity of one clip: latent [f, h, w, in_channels] and a timestep in 0..=1000 →
    /// [f, h, w, out_channels] in f32.
    pub fn forward(&self, latent: &Tensor, timestep: f32, text: &TextContext) -> Result<Tensor> {
        self.forward_traced(latent, timestep, text, |_, _| ())
    }

    /// Like [`WanTransformer::forward`]; `trace` sees the tokens [tokens, width] as they enter block 0 and leave each
    /// block, with the number of blocks behind them. For parity tests and for caches of block outputs.
    pub fn forward_traced(
        &self,
        latent: &Tensor,
        timestep: f32,
        text: &TextContext,
        mut trace: impl FnMut(usize, &Tensor),
    ) -> Result<Tensor> {
        let grid = self.grid(latent)?;
        if text.blocks.len() != self.blocks.len() {
            return Err(ModelError::Input("the text context was made by another transformer".to_owned()));
        }
        let rope = self.rope_table(grid)?;
        let (time, modulation) = self.time.forward(timestep)?;
        let tokens = patchify(&latent.to_dtype(Dtype::F32), self.config.patch_size)?;
        let mut x = linear(&tokens, &self.patch_embedding, Activation::None, Dtype::F32)?;
        trace(0, &x);
        for (index, (block, text)) in self.blocks.iter().zip(&text.blocks).enumerate() {
            block.forward(&mut x, &modulation, text, &rope)?;
            trace(index + 1, &x);
        }
        self.head(&x, &time, grid)
    }

    /// Normalises, modulates by the time embedding itself (not by its projection) and projects to patches.
    fn head(&self, x: &Tensor, time: &Tensor, grid: [usize; 3]) -> Result<Tensor> {
        let row = |i: usize| -> Result<Tensor> { Ok(add(&self.head_table.slice_outer(i..i + 1)?, time)?) };
        let (shift, scale) = (row(0)?, row(1)?);
        let x = layer_norm_modulate(x, &scale, &shift, self.config.eps, Dtype::F32)?;
        let patches = linear(&x, &self.proj_out, Activation::None, Dtype::F32)?;
        Ok(unpatchify(&patches, grid, self.config.patch_size)?)
    }

    /// The numbers of patches in time, height and width.
    fn grid(&self, latent: &Tensor) -> Result<[usize; 3]> {
        let (cin, patch) = (self.config.in_channels, self.config.patch_size);
        let &[f, h, w, c] = latent.shape() else {
            return Err(ModelError::Input(format!("latent is {:?}, needs [f, h, w, {cin}]", latent.shape())));
        };
        let size = [f, h, w];
        let fits = size.iter().zip(patch).all(|(side, p)| *side > 0 && side.is_multiple_of(p));
        if c != cin || !fits {
            let needed = format!("[f, h, w, {cin}] in multiples of {patch:?}");
            return Err(ModelError::Input(format!("latent is {:?}, needs {needed}", latent.shape())));
        }
        let grid = [f / patch[0], h / patch[1], w / patch[2]];
        let max = self.config.rope_max_seq_len;
        if grid.iter().any(|&n| n > max) {
            return Err(ModelError::Input(format!(
                "{grid:?} patches; the model's positions end at {max} on each axis"
            )));
        }
        Ok(grid)
    }

    fn rope_table(&self, grid: [usize; 3]) -> Result<Arc<RopeTable>> {
        let mut cached = self.rope.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some((of, table)) if *of == grid => Ok(Arc::clone(table)),
            _ => {
                let table = Arc::new(RopeTable::wan(self.config.attention_head_dim, grid)?);
                *cached = Some((grid, Arc::clone(&table)));
                Ok(table)
            }
        }
    }
}
