//! A folder's small files: which parts it has, how they fit together, and how it likes to be sampled.

use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use crate::scheduler_config::SchedulerConfig;
use crate::transformer::TransformerConfig;
use crate::vae::VaeConfig;
use pipeline::{FrameSize, PicturesTaken, SamplerSettings, Taken};
use serde::Deserialize;

/// Where known frames enter the transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conditioning {
    /// Nowhere: text to video only.
    None,
    /// Beside the noisy latents: one mask channel (1 on known frames), then the known latents. Unknown frames carry the
    /// latents of a mid-grey picture, as in Wan's image-to-video.
    Mask1,
    /// Wan's image-to-video: beside the noisy latents a mask channel for each picture of a latent frame (1 on known
    /// ones), then the latents of a clip that is mid-grey between its known ends.
    MaskedClip,
    /// Wan 2.2's TI2V: the known first frame takes the place of its noise, and its tokens are told that their noise level is 0.
    FirstFrame,
}

impl Conditioning {
    /// Channels beside the `z` noisy ones, for a VAE with `temporal_factor` pictures in a latent frame.
    pub fn channels(self, z: usize, temporal_factor: usize) -> usize {
        match self {
            Self::None | Self::FirstFrame => 0,
            Self::Mask1 => 1 + z,
            Self::MaskedClip => temporal_factor + z,
        }
    }

    /// What a folder without our own key means: published folders tell by their channels and by `expand_timesteps`.
    fn of(index: &ModelIndex, transformer: &TransformerConfig, vae: &VaeConfig) -> Self {
        let masked = vae.z_dim + Self::MaskedClip.channels(vae.z_dim, vae.temporal_factor());
        match () {
            () if index.expand_timesteps => Self::FirstFrame,
            () if transformer.in_channels == masked => Self::MaskedClip,
            () => Self::None,
        }
    }
}

/// What a model does when a request is silent.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingDefaults {
    /// Rows of text states that the transformer was trained with.
    pub text_length: usize,
    /// Where known frames enter.
    pub conditioning: Conditioning,
    /// Pictures per clip.
    pub key_frames: u32,
    /// Rate at which the model's pictures follow each other.
    pub key_frame_fps: u32,
    /// Picture size that the model was trained at.
    pub size: FrameSize,
    /// Whether it makes other sizes as well: a folder that names its size under `zoetrope` was trained at that one only.
    pub any_size: bool,
    /// How the noise is integrated away.
    pub sampling: SamplerSettings,
    /// Strength of classifier-free guidance.
    pub guidance: f32,
}

/// A folder as its small files describe it, each checked by itself; no weights.
#[derive(Debug, Clone)]
pub struct FolderConfig {
    /// What it does when a request is silent.
    pub defaults: SamplingDefaults,
    /// The transformer; the one for high noise where there are two.
    pub transformer: TransformerConfig,
    /// The autoencoder.
    pub vae: VaeConfig,
    /// Below this share of the noise schedule a second transformer takes over, in `transformer_2/`.
    pub boundary_ratio: Option<f32>,
}

impl FolderConfig {
    /// Reads a folder. What a plain Wan folder does not say is what Wan's authors recommend for its kind.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let index: ModelIndex = files.read_json(INDEX)?;
        if !index.class_name.starts_with("Wan") {
            return Err(ModelError::Unsupported(format!("pipeline {} ({})", index.class_name, files.name_of(INDEX))));
        }
        let transformer: TransformerConfig = files.read_json(TRANSFORMER)?;
        transformer.check(&files.name_of(TRANSFORMER))?;
        let vae: VaeConfig = files.read_json(VAE)?;
        vae.check(&files.name_of(VAE))?;
        let config = Self {
            defaults: sampling_defaults(files, &index, &transformer, &vae)?,
            boundary_ratio: index.boundary_ratio,
            transformer,
            vae,
        };
        config.check(files)?;
        Ok(config)
    }

    /// Pictures that the model takes in the place of key frames.
    pub fn pictures(&self) -> PicturesTaken {
        let between = Taken::Refused;
        match (self.defaults.conditioning, self.transformer.image_dim, self.transformer.pos_embed_seq_len) {
            (Conditioning::None, ..) => PicturesTaken::NONE,
            (Conditioning::Mask1, ..) => PicturesTaken::ANY,
            (Conditioning::FirstFrame, ..) => PicturesTaken { first: Taken::Optional, last: Taken::Refused, between },
            // Without CLIP both ends are latents alone; with it the transformer has places for the tokens of one picture,
            // or, when these have positions, of two.
            (Conditioning::MaskedClip, None, _) => {
                PicturesTaken { first: Taken::Required, last: Taken::Optional, between }
            }
            (Conditioning::MaskedClip, Some(_), None) => {
                PicturesTaken { first: Taken::Required, last: Taken::Refused, between }
            }
            (Conditioning::MaskedClip, Some(_), Some(_)) => {
                PicturesTaken { first: Taken::Required, last: Taken::Required, between }
            }
        }
    }

    /// Pixels that the sides of pictures must be multiples of: latent pixels form whole patches.
    pub fn size_multiple_px(&self) -> usize {
        let [_, height, width] = self.transformer.patch_size;
        self.vae.spatial_factor() * height.max(width)
    }

    fn check(&self, files: &ModelFiles) -> Result<()> {
        let (z, transformer) = (self.vae.z_dim, &self.transformer);
        let refused = |detail: String| Err(ModelError::config(files.name_of(TRANSFORMER), detail));
        if transformer.out_channels() != z {
            return refused(format!("out_channels is {}, the VAE's z_dim {z}", transformer.out_channels()));
        }
        let conditioning = self.defaults.conditioning;
        let expected = z + conditioning.channels(z, self.vae.temporal_factor());
        if transformer.in_channels != expected && conditioning == Conditioning::None {
            let found =
                format!("in_channels {} ({z} latent channels and unknown conditioning)", transformer.in_channels);
            return Err(ModelError::Unsupported(found));
        }
        if transformer.in_channels != expected {
            return refused(format!("in_channels is {}, the conditioning needs {expected}", transformer.in_channels));
        }
        if conditioning == Conditioning::Mask1 && self.vae.temporal_factor() != 1 {
            return Err(ModelError::Unsupported("mask1 conditioning with a VAE that compresses time".to_owned()));
        }
        if self.boundary_ratio.is_some_and(|ratio| !(0.0..=1.0).contains(&ratio)) {
            return Err(ModelError::config(files.name_of(INDEX), "boundary_ratio must be within 0..=1".to_owned()));
        }
        Ok(())
    }
}

fn sampling_defaults(
    files: &ModelFiles,
    index: &ModelIndex,
    transformer: &TransformerConfig,
    vae: &VaeConfig,
) -> Result<SamplingDefaults> {
    let refused = |detail: String| ModelError::config(files.name_of(INDEX), detail);
    let scheduler: SchedulerConfig = files.read_json(SCHEDULER)?;
    let ours = index.zoetrope.clone().unwrap_or_default();
    let advice = Advice::of(index);
    let mut sampling = scheduler.settings(&files.name_of(SCHEDULER), ours.steps.unwrap_or(advice.steps), SHIFT)?;
    sampling.shift = ours.shift.unwrap_or(sampling.shift);
    let [width, height] = ours.size.unwrap_or(advice.size);
    let defaults = SamplingDefaults {
        text_length: ours.text_length.unwrap_or(512),
        conditioning: ours.conditioning.unwrap_or_else(|| Conditioning::of(index, transformer, vae)),
        key_frames: ours.key_frames.unwrap_or(advice.key_frames),
        key_frame_fps: ours.key_frame_fps.unwrap_or(advice.key_frame_fps),
        size: FrameSize::checked(width, height).map_err(|e| refused(e.to_string()))?,
        any_size: ours.size.is_none(),
        sampling,
        guidance: ours.guidance.unwrap_or(advice.guidance),
    };
    let counts = [defaults.text_length as u64, defaults.key_frames.into(), defaults.key_frame_fps.into()];
    if counts.into_iter().chain([defaults.sampling.steps.into()]).any(|n| n == 0 || n > 1 << 20) {
        let message = "zoetrope: text_length, key_frames, key_frame_fps and steps must be positive";
        return Err(refused(message.to_owned()));
    }
    let positive = |x: f32| x.is_finite() && x > 0.0;
    if !positive(defaults.guidance) || !positive(defaults.sampling.shift) {
        return Err(refused("guidance and shift must be positive numbers".to_owned()));
    }
    Ok(defaults)
}

/// How Wan's authors run the models of a kind.
struct Advice {
    size: [u32; 2],
    key_frames: u32,
    key_frame_fps: u32,
    steps: u32,
    guidance: f32,
}

impl Advice {
    fn of(index: &ModelIndex) -> Self {
        let wan_2_1 = Self { size: [832, 480], key_frames: 81, key_frame_fps: 16, steps: STEPS, guidance: 5.0 };
        match () {
            () if index.expand_timesteps => Self { size: [1280, 704], key_frames: 121, key_frame_fps: 24, ..wan_2_1 },
            () if index.boundary_ratio.is_some() => Self { steps: 40, guidance: 3.5, ..wan_2_1 },
            () => wan_2_1,
        }
    }
}

/// What Wan 2.1 is sampled with when its folder does not say.
const STEPS: u32 = 50;
const SHIFT: f32 = 3.0;
const INDEX: &str = "model_index.json";
const SCHEDULER: &str = "scheduler/scheduler_config.json";
const TRANSFORMER: &str = "transformer/config.json";
const VAE: &str = "vae/config.json";

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name", default)]
    class_name: String,
    /// Two experts: `transformer` above this share of the noise schedule, `transformer_2` below.
    #[serde(default)]
    boundary_ratio: Option<f32>,
    /// Each token has a noise level of its own.
    #[serde(default)]
    expand_timesteps: bool,
    #[serde(default)]
    zoetrope: Option<OurKeys>,
}

/// The key `zoetrope`: what diffusers' layout has no place for.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OurKeys {
    text_length: Option<usize>,
    conditioning: Option<Conditioning>,
    key_frames: Option<u32>,
    key_frame_fps: Option<u32>,
    size: Option<[u32; 2]>,
    steps: Option<u32>,
    guidance: Option<f32>,
    shift: Option<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeline::Sampler;
    use std::fs;

    const TRANSFORMER_T2V: &str = r#"{"_class_name": "WanTransformer3DModel", "in_channels": 16, "out_channels": 16}"#;
    const TRANSFORMER_I2V: &str = r#"{"_class_name": "WanTransformer3DModel", "in_channels": 36, "out_channels": 16"#;
    const VAE_2_1: &str = r#"{"_class_name": "AutoencoderKLWan"}"#;
    const UNIPC: &str =
        r#"{"_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0, "prediction_type": "flow_prediction"}"#;

    fn load_all(index: &str, scheduler: &str, transformer: &str, vae: &str) -> Result<FolderConfig> {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in [(INDEX, index), (SCHEDULER, scheduler), (TRANSFORMER, transformer), (VAE, vae)] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        FolderConfig::load(&ModelFiles::Folder(folder.path().to_owned()))
    }

    fn load(index: &str, scheduler: &str) -> Result<SamplingDefaults> {
        load_all(index, scheduler, TRANSFORMER_T2V, VAE_2_1).map(|config| config.defaults)
    }

    #[test]
    fn a_plain_wan_folder_has_wans_defaults() {
        let index = r#"{"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"]}"#;
        let defaults = load(index, UNIPC).unwrap();
        assert_eq!((defaults.text_length, defaults.key_frames, defaults.key_frame_fps), (512, 81, 16));
        assert_eq!(
            (defaults.sampling.shift, defaults.sampling.sampler, defaults.size.width),
            (5.0, Sampler::Unipc, 832)
        );
        assert_eq!(defaults.conditioning, Conditioning::None);
    }

    #[test]
    fn our_key_overrides_and_its_misspellings_are_refused() {
        let index =
            r#"{"_class_name": "WanPipeline", "zoetrope": {"text_length": 32, "shift": 2.0, "size": [128, 64]}}"#;
        let defaults = load(index, UNIPC).unwrap();
        assert_eq!((defaults.text_length, defaults.sampling.shift), (32, 2.0));
        assert_eq!((defaults.size.width, defaults.size.height), (128, 64));
        assert!(load(r#"{"_class_name": "WanPipeline", "zoetrope": {"text_len": 32}}"#, UNIPC).is_err());
        assert!(load(r#"{"_class_name": "WanPipeline", "zoetrope": {"steps": 0}}"#, UNIPC).is_err());
        assert!(load(r#"{"_class_name": "WanPipeline", "zoetrope": {"shift": -1}}"#, UNIPC).is_err());
        let mask1 = r#"{"_class_name": "WanPipeline", "zoetrope": {"conditioning": "mask1"}}"#;
        let temporal = load(mask1, UNIPC).unwrap_err().to_string();
        assert!(temporal.contains("in_channels is 16, the conditioning needs 33"), "{temporal}");
    }

    #[test]
    fn each_kind_of_wan_folder_is_told_by_its_own_files() {
        let taken = |first, last| PicturesTaken { first, last, between: Taken::Refused };
        let i2v = r#"{"_class_name": "WanImageToVideoPipeline"}"#;
        let transformer = |more: &str| format!("{TRANSFORMER_I2V}{more}}}");
        let clip = transformer(r#", "image_dim": 1280, "added_kv_proj_dim": 5120"#);
        let both = transformer(r#", "image_dim": 1280, "added_kv_proj_dim": 5120, "pos_embed_seq_len": 514"#);
        let pictures = |transformer: &str| load_all(i2v, UNIPC, transformer, VAE_2_1).unwrap().pictures();
        assert_eq!(pictures(&clip), taken(Taken::Required, Taken::Refused));
        assert_eq!(pictures(&both), taken(Taken::Required, Taken::Required));
        assert_eq!(pictures(&transformer("")), taken(Taken::Required, Taken::Optional));

        let experts = r#"{"_class_name": "WanPipeline", "boundary_ratio": 0.875, "expand_timesteps": false}"#;
        let a14b = load_all(experts, UNIPC, TRANSFORMER_T2V, VAE_2_1).unwrap();
        assert_eq!(
            (a14b.boundary_ratio, a14b.defaults.sampling.steps, a14b.pictures()),
            (Some(0.875), 40, PicturesTaken::NONE)
        );
        assert!(load(r#"{"_class_name": "WanPipeline", "boundary_ratio": 7}"#, UNIPC).is_err());

        let per_token = r#"{"_class_name": "WanPipeline", "expand_timesteps": true}"#;
        let ti2v = load_all(per_token, UNIPC, TRANSFORMER_T2V, VAE_2_1).unwrap();
        assert_eq!(ti2v.pictures(), taken(Taken::Optional, Taken::Refused));
        assert_eq!((ti2v.defaults.key_frames, ti2v.defaults.key_frame_fps), (121, 24));
    }

    #[test]
    fn other_pipelines_and_schedulers_are_named() {
        let wan = r#"{"_class_name": "WanPipeline"}"#;
        assert!(load(r#"{"_class_name": "LTXPipeline"}"#, UNIPC).unwrap_err().to_string().contains("LTXPipeline"));
        assert!(load(wan, r#"{"_class_name": "HeunScheduler"}"#).unwrap_err().to_string().contains("HeunScheduler"));
    }
}
