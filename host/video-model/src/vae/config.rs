//! `vae/config.json`.

use crate::error::{ModelError, Result};
use serde::Deserialize;

/// Sizes of an `AutoencoderKLWan`, with diffusers' names (its spelling too) and defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Always `AutoencoderKLWan`.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Channels of the encoder's first level.
    pub base_dim: usize,
    /// Channels of the decoder's last level; `base_dim` when absent.
    pub decoder_base_dim: Option<usize>,
    /// Channels of a latent.
    pub z_dim: usize,
    /// Channels of each level in multiples of the base.
    pub dim_mult: Vec<usize>,
    /// Residual blocks of an encoder level; the decoder's have one more.
    pub num_res_blocks: usize,
    /// Levels with attention besides the middle: none in any public model.
    pub attn_scales: Vec<f32>,
    /// Whether the encoder halves the frame rate after each level but the last.
    pub temperal_downsample: Vec<bool>,
    /// Mean of each latent channel before normalisation.
    pub latents_mean: Vec<f32>,
    /// Standard deviation of each latent channel before normalisation.
    pub latents_std: Vec<f32>,
    /// Wan 2.2's topology: a shortcut around each level, and up-samplers that keep the channels.
    pub is_residual: bool,
    /// Colour channels in.
    pub in_channels: usize,
    /// Colour channels out.
    pub out_channels: usize,
    /// Side of the patches of pixels that encoder and decoder see as one pixel: 2 in Wan 2.2, 1 when absent.
    pub patch_size: Option<usize>,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            class_name: String::new(),
            base_dim: 96,
            decoder_base_dim: None,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            attn_scales: Vec::new(),
            temperal_downsample: vec![false, true, true],
            latents_mean: WAN_LATENTS_MEAN.to_vec(),
            latents_std: WAN_LATENTS_STD.to_vec(),
            is_residual: false,
            in_channels: 3,
            out_channels: 3,
            patch_size: None,
        }
    }
}

/// Statistics of Wan 2.1's latents: what a config without them means.
const WAN_LATENTS_MEAN: [f32; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
    -0.9497, 0.2503, -0.2921,
];
const WAN_LATENTS_STD: [f32; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
    2.8251, 1.9160,
];

/// Channels of a level and sizes of lists beyond any sense.
const CHANNELS_MAX: usize = 1 << 14;
const LEVELS_MAX: usize = 8;

impl VaeConfig {
    /// Pixels per latent pixel, each way.
    pub fn spatial_factor(&self) -> usize {
        self.patch_side() << (self.dim_mult.len() - 1)
    }

    /// Side of a patch in pixels.
    pub(crate) fn patch_side(&self) -> usize {
        self.patch_size.unwrap_or(1)
    }

    /// Pictures per latent frame after the first.
    pub fn temporal_factor(&self) -> usize {
        1 << self.temperal_downsample.iter().filter(|down| **down).count()
    }

    /// Channels before the encoder's first level and after each one, from the pictures inwards.
    pub(crate) fn encoder_widths(&self) -> Vec<usize> {
        std::iter::once(&1).chain(&self.dim_mult).map(|m| m * self.base_dim).collect()
    }

    /// Channels before the decoder's first level and after each one, from the latents outwards.
    pub(crate) fn decoder_widths(&self) -> Vec<usize> {
        let base = self.decoder_base_dim.unwrap_or(self.base_dim);
        self.dim_mult.last().into_iter().chain(self.dim_mult.iter().rev()).map(|m| m * base).collect()
    }

    /// Mean and standard deviation of each latent channel.
    pub(super) fn statistics(&self) -> impl Iterator<Item = (f32, f32)> {
        self.latents_mean.iter().copied().zip(self.latents_std.iter().copied())
    }

    /// Whether averaging and repeating link the channels of neighbouring levels.
    fn shortcuts_fit(&self) -> bool {
        let volume = |temporal: Option<&bool>| temporal.map_or(1, |t| if *t { 8 } else { 4 });
        let encoder = self.encoder_widths();
        let averaged = encoder
            .windows(2)
            .zip(0..)
            .all(|(pair, level)| (pair[0] * volume(self.temperal_downsample.get(level))).is_multiple_of(pair[1]));
        let decoder = self.decoder_widths();
        let temporal = self.temperal_downsample.iter().rev();
        averaged
            && decoder.windows(2).zip(temporal).all(|(pair, t)| (pair[1] * volume(Some(t))).is_multiple_of(pair[0]))
    }

    /// Refuses what we cannot run and sizes that make no sense; `file` is named in the message.
    pub fn check(&self, file: &str) -> Result<()> {
        let unsupported = |what: &str| Err(ModelError::Unsupported(format!("{what} ({file})")));
        if self.class_name != "AutoencoderKLWan" {
            return unsupported(&format!("VAE {}", self.class_name));
        }
        let side = self.patch_side();
        if !(1..=2).contains(&side) {
            return unsupported(&format!("patch_size {side} (1 and 2 are)"));
        }
        if !self.attn_scales.is_empty() {
            return unsupported("attn_scales (attention outside of the middle)");
        }
        let colours = 3 * side * side;
        if (self.in_channels, self.out_channels) != (colours, colours) {
            return unsupported(&format!(
                "in_channels or out_channels other than {colours} with patches of {side}x{side}"
            ));
        }
        let refused = |detail: String| Err(ModelError::config(file, detail));
        let levels = self.dim_mult.len();
        if !(1..=LEVELS_MAX).contains(&levels) || self.temperal_downsample.len() + 1 != levels {
            let found = self.temperal_downsample.len();
            return refused(format!("dim_mult has {levels} levels, temperal_downsample {found}; one less is needed"));
        }
        let base = self.decoder_base_dim.unwrap_or(self.base_dim);
        let widths_fit = self.dim_mult.iter().all(|m| {
            [self.base_dim, base].iter().all(|b| b.checked_mul(*m).is_some_and(|c| (1..=CHANNELS_MAX).contains(&c)))
        });
        if !widths_fit || !(1..=CHANNELS_MAX).contains(&self.z_dim) || self.num_res_blocks > CHANNELS_MAX {
            return refused(format!("channels must be in 1..={CHANNELS_MAX}"));
        }
        if self.is_residual && !self.shortcuts_fit() {
            return refused("dim_mult: each level's channels must divide into the next's for the shortcuts".to_owned());
        }
        let z = self.z_dim;
        if self.latents_mean.len() != z || self.latents_std.len() != z {
            return refused(format!("latents_mean and latents_std must have {z} values each"));
        }
        if self.statistics().any(|(mean, std)| !mean.is_finite() || !std.is_finite() || std <= 0.0) {
            return refused("latents_mean must be finite and latents_std positive".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str) -> VaeConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn wan_2_1_is_taken_with_its_published_factors() {
        let config =
            parsed(r#"{"_class_name": "AutoencoderKLWan", "attn_scales": [], "base_dim": 96, "dropout": 0.0}"#);
        config.check("config.json").unwrap();
        assert_eq!((config.spatial_factor(), config.temporal_factor()), (8, 4));
        assert_eq!(config.decoder_widths(), [384, 384, 384, 192, 96]);
    }

    fn wan_2_2(change: impl Fn(&mut serde_json::Value)) -> VaeConfig {
        let mut json = serde_json::json!({
            "_class_name": "AutoencoderKLWan", "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48,
            "is_residual": true, "patch_size": 2, "in_channels": 12, "out_channels": 12,
            "scale_factor_spatial": 16, "clip_output": false, "latents_mean": vec![0.0; 48], "latents_std": vec![1.0; 48],
        });
        change(&mut json);
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn wan_2_2_is_taken_with_its_published_factors() {
        let config = wan_2_2(|_| ());
        config.check("config.json").unwrap();
        assert_eq!((config.spatial_factor(), config.temporal_factor()), (16, 4));
        assert_eq!(config.encoder_widths(), [160, 160, 320, 640, 640]);
        assert_eq!(config.decoder_widths(), [1024, 1024, 1024, 512, 256]);
    }

    #[test]
    fn patches_and_shortcuts_that_do_not_fit_are_refused() {
        let patches = wan_2_2(|json| json["patch_size"] = 4.into()).check("config.json").unwrap_err().to_string();
        assert!(patches.contains("patch_size 4"), "{patches}");
        let colours = wan_2_2(|json| json["in_channels"] = 3.into()).check("config.json").unwrap_err().to_string();
        assert!(colours.contains("other than 12"), "{colours}");
        let shortcut = wan_2_2(|json| json["dim_mult"] = vec![1, 2, 4, 5].into()).check("config.json").unwrap_err();
        assert!(shortcut.to_string().contains("shortcuts"), "{shortcut}");
    }

    #[test]
    fn lists_that_do_not_fit_are_refused() {
        for json in [
            r#"{"_class_name": "AutoencoderKLWan", "dim_mult": [1, 2]}"#,
            r#"{"_class_name": "AutoencoderKLWan", "dim_mult": [], "temperal_downsample": []}"#,
            r#"{"_class_name": "AutoencoderKLWan", "z_dim": 8}"#,
            r#"{"_class_name": "AutoencoderKLWan", "base_dim": 18446744073709551615}"#,
            r#"{"_class_name": "AutoencoderKLWan", "latents_std": [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]}"#,
        ] {
            assert!(matches!(parsed(json).check("config.json"), Err(ModelError::Config { .. })), "{json}");
        }
    }
}
