//! `transformer/config.json`.

use crate::error::{ModelError, Result};
use serde::Deserialize;

/// Sizes of a `WanTransformer3DModel`, with diffusers' names and defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct TransformerConfig {
    /// Always `WanTransformer3DModel`.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Latent frames, rows and columns of a token.
    pub patch_size: [usize; 3],
    /// Heads of every attention.
    pub num_attention_heads: usize,
    /// Width of a head.
    pub attention_head_dim: usize,
    /// Latent channels with the conditioning channels.
    pub in_channels: usize,
    /// Channels of the prediction; as many as `in_channels` when absent.
    pub out_channels: Option<usize>,
    /// Width of the text states.
    pub text_dim: usize,
    /// Width of the sinusoidal time embedding; even.
    pub freq_dim: usize,
    /// Inner width of the feed-forward layers.
    pub ffn_dim: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Whether the input of the cross-attention is normalised.
    pub cross_attn_norm: bool,
    /// Always `rms_norm_across_heads`.
    pub qk_norm: Option<String>,
    /// Of every norm.
    pub eps: f32,
    /// Width of CLIP states; present in Wan 2.1's image-to-video models.
    pub image_dim: Option<usize>,
    /// Width of the image's keys and values; present with `image_dim`.
    pub added_kv_proj_dim: Option<usize>,
    /// Patches along an axis that have a position.
    pub rope_max_seq_len: usize,
    /// Rows of the learned positions of CLIP states; present in models that take the first and the last frame.
    pub pos_embed_seq_len: Option<usize>,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        Self {
            class_name: String::new(),
            patch_size: [1, 2, 2],
            num_attention_heads: 40,
            attention_head_dim: 128,
            in_channels: 16,
            out_channels: Some(16),
            text_dim: 4096,
            freq_dim: 256,
            ffn_dim: 13824,
            num_layers: 40,
            cross_attn_norm: true,
            qk_norm: Some("rms_norm_across_heads".to_owned()),
            eps: 1e-6,
            image_dim: None,
            added_kv_proj_dim: None,
            rope_max_seq_len: 1024,
            pos_embed_seq_len: None,
        }
    }
}

/// No public model comes near; a larger number in a config is damage, and products of sizes stay far from overflow.
const SIZE_MAX: usize = 1 << 17;

impl TransformerConfig {
    /// Width of a token.
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Channels of the prediction.
    pub fn out_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Refuses what we cannot run and sizes that make no sense; `file` is named in the message.
    pub fn check(&self, file: &str) -> Result<()> {
        if self.class_name != "WanTransformer3DModel" {
            let found = if self.class_name.is_empty() { "without _class_name" } else { &self.class_name };
            return Err(ModelError::Unsupported(format!("transformer {found} ({file})")));
        }
        if self.image_dim.is_some() != self.added_kv_proj_dim.is_some() {
            return Err(ModelError::config(file, "image_dim and added_kv_proj_dim come together or not at all"));
        }
        if let Some(width) = self.added_kv_proj_dim.filter(|width| *width != self.width()) {
            let detail = format!("added_kv_proj_dim is {width}, it must be the width of a token, {}", self.width());
            return Err(ModelError::config(file, detail));
        }
        if self.pos_embed_seq_len.is_some() && self.image_dim.is_none() {
            return Err(ModelError::config(file, "pos_embed_seq_len needs image_dim"));
        }
        if let Some(other) = self.qk_norm.as_deref().filter(|norm| *norm != "rms_norm_across_heads") {
            return Err(ModelError::Unsupported(format!("qk_norm {other} ({file})")));
        }
        let sizes = [
            ("num_attention_heads", self.num_attention_heads),
            ("attention_head_dim", self.attention_head_dim),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels()),
            ("text_dim", self.text_dim),
            ("freq_dim", self.freq_dim),
            ("ffn_dim", self.ffn_dim),
            ("num_layers", self.num_layers),
            ("image_dim", self.image_dim.unwrap_or(1)),
            ("pos_embed_seq_len", self.pos_embed_seq_len.unwrap_or(1)),
            ("patch_size", *self.patch_size.iter().max().unwrap_or(&0)),
            ("patch_size", *self.patch_size.iter().min().unwrap_or(&0)),
        ];
        for (key, size) in sizes {
            if size == 0 || size > SIZE_MAX {
                return Err(ModelError::config(file, format!("{key} is {size}, not in 1..={SIZE_MAX}")));
            }
        }
        for (key, size) in [("attention_head_dim", self.attention_head_dim), ("freq_dim", self.freq_dim)] {
            if size % 2 == 1 {
                return Err(ModelError::config(file, format!("{key} is {size}, it must be even")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str) -> TransformerConfig {
        serde_json::from_str(json).unwrap()
    }

    /// A published file with these keys; the rest is the same in all of them.
    fn published(keys: &str) -> TransformerConfig {
        let config = parsed(&format!(
            r#"{{"_class_name": "WanTransformer3DModel", "_diffusers_version": "0.35.0.dev0", "attention_head_dim": 128,
            "cross_attn_norm": true, "eps": 1e-06, "freq_dim": 256, "patch_size": [1, 2, 2],
            "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 4096, {keys}}}"#
        ));
        config.check("config.json").unwrap();
        config
    }

    #[test]
    fn published_configs_are_taken() {
        let sizes = |c: &TransformerConfig| (c.width(), c.num_layers, c.ffn_dim, c.in_channels, c.out_channels());
        let small = published(
            r#""added_kv_proj_dim": null, "ffn_dim": 8960, "image_dim": null, "in_channels": 16,
            "num_attention_heads": 12, "num_layers": 30, "out_channels": 16"#,
        );
        assert_eq!(sizes(&small), (1536, 30, 8960, 16, 16), "Wan 2.1 T2V 1.3B");
        let large = published(
            r#""added_kv_proj_dim": null, "ffn_dim": 13824, "image_dim": null, "in_channels": 16,
            "num_attention_heads": 40, "num_layers": 40, "out_channels": 16"#,
        );
        assert_eq!(sizes(&large), (5120, 40, 13824, 16, 16), "Wan 2.1 T2V 14B, Wan 2.2 T2V A14B");
        let picture = published(
            r#""added_kv_proj_dim": 5120, "ffn_dim": 13824, "image_dim": 1280, "in_channels": 36,
            "num_attention_heads": 40, "num_layers": 40, "out_channels": 16, "pos_embed_seq_len": null"#,
        );
        assert_eq!((sizes(&picture), picture.image_dim), ((5120, 40, 13824, 36, 16), Some(1280)), "Wan 2.1 I2V 14B");
        let both = published(
            r#""added_kv_proj_dim": 5120, "ffn_dim": 13824, "image_dim": 1280, "in_channels": 36,
            "num_attention_heads": 40, "num_layers": 40, "out_channels": 16, "pos_embed_seq_len": 514"#,
        );
        assert_eq!((both.image_dim, both.pos_embed_seq_len), (Some(1280), Some(514)), "Wan 2.1 FLF2V 14B");
        let experts = published(
            r#""added_kv_proj_dim": null, "ffn_dim": 13824, "image_dim": null, "in_channels": 36,
            "num_attention_heads": 40, "num_layers": 40, "out_channels": 16, "pos_embed_seq_len": null"#,
        );
        assert_eq!((sizes(&experts), experts.image_dim), ((5120, 40, 13824, 36, 16), None), "Wan 2.2 I2V A14B");
        let dense = published(
            r#""added_kv_proj_dim": null, "ffn_dim": 14336, "image_dim": null, "in_channels": 48,
            "num_attention_heads": 24, "num_layers": 30, "out_channels": 48, "pos_embed_seq_len": null"#,
        );
        assert_eq!(sizes(&dense), (3072, 30, 14336, 48, 48), "Wan 2.2 TI2V 5B");
    }

    #[test]
    fn absent_keys_default_as_in_diffusers() {
        let bare = parsed(r#"{"_class_name": "WanTransformer3DModel"}"#);
        bare.check("config.json").unwrap();
        assert_eq!((bare.width(), bare.num_layers, bare.ffn_dim, bare.rope_max_seq_len), (5120, 40, 13824, 1024));
    }

    #[test]
    fn models_that_we_cannot_run_say_which_key_is_to_blame() {
        let refusal = |json: &str| parsed(json).check("config.json").unwrap_err().to_string();
        let half = refusal(r#"{"_class_name": "WanTransformer3DModel", "image_dim": 1280}"#);
        assert!(half.contains("image_dim and added_kv_proj_dim"), "{half}");
        let narrow = r#"{"_class_name": "WanTransformer3DModel", "image_dim": 1280, "added_kv_proj_dim": 1280}"#;
        assert!(refusal(narrow).contains("width of a token, 5120"));
        let alone = r#"{"_class_name": "WanTransformer3DModel", "pos_embed_seq_len": 514}"#;
        assert!(refusal(alone).contains("pos_embed_seq_len needs image_dim"));
        assert!(refusal(r#"{"_class_name": "LTXVideoTransformer3DModel"}"#).contains("LTXVideoTransformer3DModel"));
        assert!(refusal(r#"{"_class_name": "WanTransformer3DModel", "num_layers": 0}"#).contains("num_layers"));
        assert!(refusal(r#"{"_class_name": "WanTransformer3DModel", "attention_head_dim": 7}"#).contains("even"));
    }
}
