//! Wan's video transformer (diffusers' `WanTransformer3DModel`): noisy latents, a timestep and a context in, velocity out.

mod attention;
mod block;
mod blocks;
mod cache;
mod config;
mod context;
mod layer;
mod recorded;
mod time;

pub use blocks::Residency;
pub use cache::{StepCache, StepCacheStats};
pub use config::TransformerConfig;
pub use context::Context;
pub use recorded::RecordedPass;
pub use time::Timestep;

use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use crate::lora::{Adapters, LayerAdapters};
use crate::precision::Precision;
use crate::weights::Scope;
use attention::rows_of_clip;
use blocks::BlockStore;
use context::ContextEmbedding;
use kernels::{Activation, Dtype, PackedLinear, RopeTable, Tensor, layer_norm_modulate, patchify, unpatchify};
use layer::Layer;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use time::{Modulation, TimeEmbedding, shifted};

/// The transformer with its weights packed for one precision.
pub struct WanTransformer {
    config: TransformerConfig,
    dtype: Dtype,
    patch_embedding: Layer,
    time: TimeEmbedding,
    embedding: ContextEmbedding,
    blocks: BlockStore,
    /// Shift and scale of the head, [1, width] each.
    head_rows: [Tensor; 2],
    proj_out: Layer,
    /// The rotation table of the last grid: all steps of a job share one.
    rope: Mutex<Option<([usize; 3], Arc<RopeTable>)>>,
}

/// What the blocks of one pass have in common.
struct Pass<'a> {
    contexts: &'a [&'a Context],
    modulation: Modulation,
    rope: &'a RopeTable,
    adapters: Option<&'a Adapters>,
}

impl WanTransformer {
    /// Loads `config.json` and the weights in `subfolder` for products in `precision`.
    pub fn load(files: &ModelFiles, subfolder: &str, precision: Precision) -> Result<Self> {
        Self::load_with(files, subfolder, precision, Residency::Resident)
    }

    /// Like [`WanTransformer::load`], with the blocks where `residency` says.
    pub fn load_with(files: &ModelFiles, subfolder: &str, precision: Precision, residency: Residency) -> Result<Self> {
        let path = format!("{subfolder}/config.json");
        let config: TransformerConfig = files.read_json(&path)?;
        config.check(&files.name_of(&path))?;
        let weights = Arc::new(files.weights(subfolder)?);
        let scope = weights.scope("");
        let blocks = match residency {
            Residency::Resident => BlockStore::resident(&scope, &config, precision)?,
            Residency::Streamed => BlockStore::streamed(Arc::clone(&weights), &config, precision)?,
        };
        let model = Self::around(blocks, &scope, config, precision)?;
        weights.warn_of_unused();
        Ok(model)
    }

    /// Builds the model from a checked config and the tensors in `scope`.
    pub fn from_weights(scope: &Scope<'_>, config: TransformerConfig, precision: Precision) -> Result<Self> {
        Self::around(BlockStore::resident(scope, &config, precision)?, scope, config, precision)
    }

    /// The first and last layers and the time embedding stay f32 whatever `precision` is: they are under a percent of the
    /// work, and their rounding would go straight into the latent.
    fn around(blocks: BlockStore, scope: &Scope<'_>, config: TransformerConfig, precision: Precision) -> Result<Self> {
        let (d, [pf, ph, pw]) = (config.width(), config.patch_size);
        let (cin, patch) = (config.in_channels, pf * ph * pw);
        let first = scope.at("patch_embedding");
        let kernel = first.tensor("weight", &[d, cin, pf, ph, pw], Dtype::F32)?.reshape(&[d, cin * patch])?;
        let first = PackedLinear::new(&kernel, Some(&first.vector("bias", d)?), Dtype::F32)?;
        let table = scope.tensor("scale_shift_table", &[1, 2, d], Dtype::F32)?.reshape(&[2, d])?;
        Ok(Self {
            dtype: precision.activations(),
            patch_embedding: Layer::from_packed("patch_embedding", first),
            time: TimeEmbedding::load(scope, config.freq_dim, d)?,
            embedding: ContextEmbedding::load(scope, &config, precision)?,
            blocks,
            head_rows: [table.slice_outer(0..1)?, table.slice_outer(1..2)?],
            proj_out: Layer::load(scope, "proj_out", d, config.out_channels() * patch, Precision::F32)?,
            rope: Mutex::new(None),
            config,
        })
    }

    /// The type of activations between layers.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Sizes of the model.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// Prepares text states [text_length, text_dim] for all steps of a job, and CLIP states [tokens, image_dim] (of the first
    /// and the last frame in turn, where the model takes both) for models with an image encoder, which must get them.
    ///
    /// The passes that use the context must have the same `adapters`.
    pub fn context(&self, text: &Tensor, image: Option<&Tensor>, adapters: Option<&Adapters>) -> Result<Context> {
        let adapters = adapters.map(Adapters::outside);
        let image = self.embedding.image(image, adapters)?;
        Ok(Context::new(self.embedding.text(text, adapters)?, image, self.blocks.len()))
    }

    /// The predicted velocities of one clip under each of `contexts`: latent [f, h, w, in_channels] → [f, h, w, out_channels]
    /// in f32 each. All contexts pass a layer together; each gives the bits that it would give alone.
    pub fn forward(
        &self,
        latent: &Tensor,
        timestep: Timestep<'_>,
        contexts: &[&Context],
        adapters: Option<&Adapters>,
        cache: Option<&mut StepCache>,
    ) -> Result<Vec<Tensor>> {
        self.forward_traced(latent, timestep, contexts, adapters, cache, |_, _| ())
    }

    /// Like [`WanTransformer::forward`]; `trace` sees the tokens [contexts · tokens, width] as they enter block 0 and leave
    /// each block, with the number of blocks behind them. For parity tests.
    pub fn forward_traced(
        &self,
        latent: &Tensor,
        timestep: Timestep<'_>,
        contexts: &[&Context],
        adapters: Option<&Adapters>,
        cache: Option<&mut StepCache>,
        mut trace: impl FnMut(usize, &Tensor),
    ) -> Result<Vec<Tensor>> {
        let grid = self.grid(latent)?;
        let waves = self.time.waves(timestep, grid[0])?.tensor()?;
        let rope = self.rope_table(grid)?;
        self.pass(latent, &waves, &rope, contexts, adapters, cache, &mut trace)
    }

    /// A pass over inputs that are tensors already.
    fn pass(
        &self,
        latent: &Tensor,
        waves: &Tensor,
        rope: &RopeTable,
        contexts: &[&Context],
        adapters: Option<&Adapters>,
        cache: Option<&mut StepCache>,
        trace: &mut impl FnMut(usize, &Tensor),
    ) -> Result<Vec<Tensor>> {
        let grid = self.grid(latent)?;
        if contexts.iter().any(|c| c.blocks() != self.blocks.len() || c.text().shape()[1] != self.config.width()) {
            return Err(ModelError::Input("the context was made by another transformer".to_owned()));
        }
        let outside = adapters.map(Adapters::outside);
        let modulation = self.time.forward(waves, outside)?;
        let pass = Pass { contexts, modulation, rope, adapters };
        let tokens = patchify(&latent.to_dtype(Dtype::F32), self.config.patch_size)?;
        let first = self.patch_embedding.forward(&tokens, Activation::None, Dtype::F32, outside)?;
        let last = match cache {
            None => self.all_blocks(&pass, first, trace)?,
            Some(cache) => self.cached_blocks(&pass, &first, cache, trace)?,
        };
        last.iter().map(|x| self.head(x, &pass.modulation.time, grid, outside)).collect()
    }

    /// The tokens of each context after the last block.
    fn all_blocks(
        &self,
        pass: &Pass<'_>,
        first: Tensor,
        trace: &mut impl FnMut(usize, &Tensor),
    ) -> Result<Vec<Tensor>> {
        let all: Vec<usize> = (0..pass.contexts.len()).collect();
        let mut x = joined(&vec![first; all.len()])?;
        trace(0, &x);
        self.run(pass, &all, 0..self.blocks.len(), &mut x, trace)?;
        split(&x, all.len())
    }

    /// Like [`WanTransformer::all_blocks`], where `cache` may spare contexts their last blocks.
    fn cached_blocks(
        &self,
        pass: &Pass<'_>,
        first: &Tensor,
        cache: &mut StepCache,
        trace: &mut impl FnMut(usize, &Tensor),
    ) -> Result<Vec<Tensor>> {
        let all: Vec<usize> = (0..pass.contexts.len()).collect();
        let head = cache.head_blocks();
        let mut x = joined(&vec![first.clone(); all.len()])?;
        trace(0, &x);
        self.run(pass, &all, 0..head, &mut x, trace)?;
        let after_head = split(&x, all.len())?;
        drop(x);
        let mut last = Vec::with_capacity(all.len());
        for &clip in &all {
            last.push(cache.shortcut(clip, first, &after_head[clip])?);
        }
        let rest: Vec<usize> = all.into_iter().filter(|&clip| last[clip].is_none()).collect();
        if !rest.is_empty() {
            let mut x = joined(&rest.iter().map(|&clip| after_head[clip].clone()).collect::<Vec<_>>())?;
            self.run(pass, &rest, head..self.blocks.len(), &mut x, trace)?;
            for (clip, after_all) in rest.iter().zip(split(&x, rest.len())?) {
                cache.remember(*clip, &after_head[*clip], &after_all, self.dtype)?;
                last[*clip] = Some(after_all);
            }
        }
        Ok(last.into_iter().flatten().collect())
    }

    /// Runs some blocks on x [clips · tokens, width], which holds the tokens of the contexts `clips`.
    fn run(
        &self,
        pass: &Pass<'_>,
        clips: &[usize],
        blocks: Range<usize>,
        x: &mut Tensor,
        trace: &mut impl FnMut(usize, &Tensor),
    ) -> Result<()> {
        let modulation = pass.modulation.repeated(clips.len())?;
        self.blocks.each(blocks, |index, block| {
            let adapters = pass.adapters.and_then(|a| a.block(index));
            let contexts = clips.iter().map(|&clip| pass.contexts[clip].keys_values(index, block, adapters));
            let contexts = contexts.collect::<Result<Vec<_>>>()?;
            block.forward(x, &modulation, &contexts, pass.rope, adapters)?;
            trace(index + 1, x);
            Ok(())
        })
    }

    /// Normalises, modulates by the time embedding itself (not by its projection) and projects to patches.
    fn head(&self, x: &Tensor, time: &Tensor, grid: [usize; 3], adapters: Option<&LayerAdapters>) -> Result<Tensor> {
        let [shift, scale] = &self.head_rows;
        let (shift, scale) = (shifted(time, shift)?, shifted(time, scale)?);
        let x = layer_norm_modulate(x, &scale, &shift, self.config.eps, Dtype::F32)?;
        let patches = self.proj_out.forward(&x, Activation::None, Dtype::F32, adapters)?;
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

/// The tokens of several contexts behind each other; a single one is not copied.
fn joined(clips: &[Tensor]) -> Result<Tensor> {
    match clips {
        [only] => Ok(only.clone()),
        clips => Ok(Tensor::concat_outer(&clips.iter().collect::<Vec<_>>())?),
    }
}

/// The reverse of [`joined`].
fn split(x: &Tensor, clips: usize) -> Result<Vec<Tensor>> {
    let tokens = x.shape()[0] / clips;
    (0..clips).map(|clip| rows_of_clip(x, clip, tokens)).collect()
}
