//! A denoise step.

use super::Workload;
use super::walk::Walk;
use super::weights::linear;
use crate::precision::Precision;
use crate::transformer::TransformerConfig;

/// Scores and weights that a task of attention holds: 64 queries by 512 keys.
const TASK_BYTES: u64 = 64 * 512 * 8;

/// What the transformer sees of a job.
pub(super) struct Step<'a> {
    pub(super) config: &'a TransformerConfig,
    pub(super) precision: Precision,
    pub(super) work: &'a Workload,
    /// Frames, rows and columns of the latent.
    pub(super) latent: [usize; 3],
    pub(super) text_rows: usize,
    /// Tokens of the pictures that the transformer attends to.
    pub(super) image_rows: usize,
}

impl Step<'_> {
    fn tokens(&self) -> u64 {
        self.latent.iter().zip(self.config.patch_size).map(|(side, patch)| (side / patch) as u64).product()
    }

    /// Contexts that pass the layers together: the prompt's and the negative prompt's.
    fn clips(&self) -> u64 {
        if self.work.guided { 2 } else { 1 }
    }

    /// What stays from step to step: the contexts' keys and values in every block, the table of positions, the latent with
    /// the sampler's history, what a step cache keeps.
    pub(super) fn kept_bytes(&self) -> u64 {
        let config = self.config;
        let (d, a) = (config.width() as u64, self.precision.activations().size_bytes() as u64);
        let rows = (self.text_rows + self.image_rows) as u64;
        let states = self.text_rows as u64 * config.text_dim as u64 * 4;
        let contexts = self.clips() * (states + rows * d * a * (1 + 2 * config.num_layers as u64));
        let positions = 2 * self.tokens() * config.attention_head_dim as u64 * 4;
        let elements = self.latent.iter().product::<usize>() as u64;
        // The latent, two earlier answers, the present answers, the input with its known channels.
        let latents = elements * 4 * (5 * config.out_channels() as u64 + config.in_channels as u64);
        // Two residuals of all tokens for each context.
        let cache = if self.work.step_cache { 2 * self.clips() * self.tokens() * d * a } else { 0 };
        contexts + positions + latents + cache
    }

    /// Keys and values of one clip, packed head by head.
    fn packed_heads_bytes(&self) -> u64 {
        let (t, width, precision) =
            (self.tokens() as usize, self.config.attention_head_dim, self.precision.without_integers());
        // Matrix tiles take whole steps of 32 dimensions; the other instruction sets no more than that.
        let width = if precision == Precision::Bf16 { width.next_multiple_of(32) } else { width };
        self.config.num_attention_heads as u64 * (linear(t, width, precision) + linear(width, t, precision))
    }

    /// The most that is live within a step, besides [`Step::kept_bytes`].
    pub(super) fn peak_bytes(&self) -> u64 {
        let (t, d, clips) = (self.tokens(), self.config.width() as u64, self.clips());
        let a = self.precision.activations().size_bytes() as u64;
        let (row, wide) = (t * d * a, t * d * 4);
        let inner = t * self.config.ffn_dim as u64;
        let quantised = |elements: u64| if self.precision == Precision::Int8 { elements + 4 * t * clips } else { 0 };
        let mut walk = Walk::default();
        walk.make(TASK_BYTES);
        // The patches stay until the pass is over.
        walk.make(t * self.config.in_channels as u64 * self.config.patch_size.iter().product::<usize>() as u64 * 4);
        if self.work.step_cache {
            // The tokens before the blocks and after the first one: the rest may turn out to be needed or not.
            walk.make(wide + clips * wide);
        }
        let x = walk.make(clips * wide);

        // Self-attention: queries, keys and values of all clips; then clip by clip their parts, and the packed keys and values.
        let y = walk.make(clips * row);
        walk.pass(quantised(clips * t * d));
        let queries_keys = walk.make(2 * clips * row);
        walk.pass(clips * row);
        let values = walk.make(clips * row);
        walk.drop(y);
        let cut = if clips > 1 { 3 * row } else { 0 };
        let mixed = walk.make((clips - 1) * row);
        walk.pass(cut + self.packed_heads_bytes() + row);
        let mixed = mixed + walk.make(row);
        let joined = if clips > 1 { walk.make(clips * row) } else { 0 };
        walk.drop(queries_keys + values + mixed + joined);

        // Feed-forward.
        let y = walk.make(clips * row);
        walk.pass(quantised(clips * t * d));
        let inner_bytes = walk.make(clips * inner * a);
        walk.pass(quantised(clips * inner));
        walk.drop(y + inner_bytes);

        // The clips' tokens, each normalised for the head.
        walk.make(clips * wide);
        walk.drop(x);
        walk.pass(wide);
        walk.peak()
    }
}
