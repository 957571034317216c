//! The dialects in which adapter files name their tensors.
//!
//! | dialect | a name |
//! |---|---|
//! | diffusers, PEFT | `transformer.blocks.0.attn1.to_q.lora_A.weight`, `…lora_A.default.weight` |
//! | original names | `diffusion_model.blocks.0.self_attn.q.lora_down.weight`, `…alpha`, `…diff_b` |
//! | flattened names | `lora_unet_blocks_0_self_attn_q.lora_down.weight`, `…alpha` |

use super::layers::layer_shape;
use crate::transformer::TransformerConfig;
use crate::weights::dialect;
use std::collections::BTreeMap;

/// What a tensor of an adapter is to its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// [rank, inputs]
    Down,
    /// [outputs, rank]
    Up,
    /// `[outputs]`: added to the layer's bias.
    Bias,
    /// One number; the correction is scaled by it over the rank.
    Alpha,
}

const ENDINGS: [(&str, Part); 12] = [
    (".lora_A.weight", Part::Down),
    (".lora_A.default.weight", Part::Down),
    (".lora_down.weight", Part::Down),
    (".lora.down.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_B.default.weight", Part::Up),
    (".lora_up.weight", Part::Up),
    (".lora.up.weight", Part::Up),
    (".lora_B.bias", Part::Bias),
    (".lora_B.default.bias", Part::Bias),
    (".diff_b", Part::Bias),
    (".alpha", Part::Alpha),
];

/// What programs write before the names of diffusers; [`dialect`] knows what they write before original ones.
const PREFIXES: [&str; 4] = ["base_model.model.", "transformer.", "transformer_2.", "model."];

const FLAT_PREFIXES: [&str; 2] = ["lora_unet_", "lora_transformer_"];

/// Translates the names of one model's adapters.
pub(super) struct Keys<'c> {
    config: &'c TransformerConfig,
    /// Layers by their paths with underscores in place of dots, in original and in diffusers' words.
    flat: BTreeMap<String, String>,
}

impl<'c> Keys<'c> {
    pub(super) fn new(config: &'c TransformerConfig) -> Self {
        let names = dialect::modules(config.num_layers).filter(|(_, layer)| layer_shape(config, layer).is_some());
        let both = names.flat_map(|(original, layer)| [(flat(&original), layer.clone()), (flat(&layer), layer)]);
        Self { config, flat: both.collect() }
    }

    /// The layer, in diffusers' words, and what the tensor is to it; none for what belongs to no linear layer of the model.
    pub(super) fn parse(&self, key: &str) -> Option<(String, Part)> {
        let (path, part) = ENDINGS.iter().find_map(|(end, part)| Some((key.strip_suffix(end)?, *part)))?;
        Some((self.layer(path)?, part))
    }

    fn layer(&self, path: &str) -> Option<String> {
        if let Some(flattened) = FLAT_PREFIXES.iter().find_map(|prefix| path.strip_prefix(prefix)) {
            return self.flat.get(flattened).cloned();
        }
        let mut path = dialect::without_prefix(path);
        while let Some(rest) = PREFIXES.iter().find_map(|prefix| path.strip_prefix(prefix)) {
            path = dialect::without_prefix(rest);
        }
        let layer = dialect::to_diffusers(path).unwrap_or_else(|| path.to_owned());
        layer_shape(self.config, &layer).map(|_| layer)
    }
}

fn flat(path: &str) -> String {
    path.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialect_names_the_same_layer() {
        let config = TransformerConfig::default();
        let keys = Keys::new(&config);
        for key in [
            "transformer.blocks.11.attn1.to_out.0.lora_A.weight",
            "base_model.model.blocks.11.attn1.to_out.0.lora_A.default.weight",
            "blocks.11.attn1.to_out.0.lora.down.weight",
            "diffusion_model.blocks.11.self_attn.o.lora_down.weight",
            "model.diffusion_model.blocks.11.self_attn.o.lora_A.weight",
            "blocks.11.self_attn.o.lora_down.weight",
            "lora_unet_blocks_11_self_attn_o.lora_down.weight",
            "lora_unet_blocks_11_attn1_to_out_0.lora_down.weight",
        ] {
            assert_eq!(keys.parse(key), Some(("blocks.11.attn1.to_out.0".to_owned(), Part::Down)), "{key}");
        }
        let outside = keys.parse("diffusion_model.time_projection.1.diff_b");
        assert_eq!(outside, Some(("condition_embedder.time_proj".to_owned(), Part::Bias)));
        let alpha = keys.parse("lora_unet_blocks_1_ffn_2.alpha");
        assert_eq!(alpha, Some(("blocks.1.ffn.net.2".to_owned(), Part::Alpha)));
    }

    #[test]
    fn what_the_model_does_not_have_is_not_taken() {
        let config = TransformerConfig::default();
        let keys = Keys::new(&config);
        for key in [
            "transformer.blocks.40.attn1.to_q.lora_A.weight",
            "transformer.blocks.0.attn2.add_k_proj.lora_A.weight",
            "diffusion_model.blocks.0.self_attn.norm_q.diff",
            "diffusion_model.blocks.0.norm3.diff_b",
            "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
            "transformer.blocks.0.attn1.to_q.dora_scale",
            "lora_A.weight",
        ] {
            assert_eq!(keys.parse(key), None, "{key}");
        }
    }
}
