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
        if self.image_dim.is_some() || self.added_kv_proj_dim.is_some() {
            return Err(ModelError::Unsupported(format!("image_dim (a CLIP image encoder beside the text; {file})")));
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

    #[test]
    fn published_configs_are_taken_and_absent_keys_default_as_in_diffusers() {
        let wan = parsed(
            r#"{"_class_name": "WanTransformer3DModel", "_diffusers_version": "0.33.0.dev0", "added_kv_proj_dim": null,
            "attention_head_dim": 128, "cross_attn_norm": true, "eps": 1e-06, "ffn_dim": 8960, "freq_dim": 256, "image_dim": null,
            "in_channels": 16, "num_attention_heads": 12, "num_layers": 30, "out_channels": 16, "patch_size": [1, 2, 2],
            "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 4096}"#,
        );
        wan.check("config.json").unwrap();
        assert_eq!((wan.width(), wan.num_layers, wan.out_channels()), (1536, 30, 16));
    }

    #[test]
    fn models_that_we_cannot_run_say_which_key_is_to_blame() {
        let refusal = |json: &str| parsed(json).check("config.json").unwrap_err().to_string();
        let clip = refusal(r#"{"_class_name": "WanTransformer3DModel", "image_dim": 1280}"#);
        assert!(clip.contains("image_dim") && clip.contains("not supported yet"), "{clip}");
        assert!(refusal(r#"{"_class_name": "LTXVideoTransformer3DModel"}"#).contains("LTXVideoTransformer3DModel"));
        assert!(refusal(r#"{"_class_name": "WanTransformer3DModel", "num_layers": 0}"#).contains("num_layers"));
        assert!(refusal(r#"{"_class_name": "WanTransformer3DModel", "attention_head_dim": 7}"#).contains("even"));
    }
}
