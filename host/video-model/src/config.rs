//! `model_index.json` and `scheduler/scheduler_config.json`: which parts a folder has and how it likes to be sampled.

use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use pipeline::{FrameSize, Sampler, SamplerSettings};
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
}

impl Conditioning {
    /// Channels beside the `z` noisy ones.
    pub fn channels(self, z: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Mask1 => 1 + z,
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

impl SamplingDefaults {
    /// Reads a folder. What a plain Wan folder does not say is what Wan 2.1's authors recommend.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let index: ModelIndex = files.read_json(INDEX)?;
        let refused = |detail: String| ModelError::config(files.name_of(INDEX), detail);
        if !index.class_name.starts_with("Wan") {
            return Err(ModelError::Unsupported(format!("pipeline {} ({})", index.class_name, files.name_of(INDEX))));
        }
        let scheduler: SchedulerConfig = files.read_json(SCHEDULER)?;
        let ours = index.zoetrope.unwrap_or_default();
        let mut sampling = scheduler.settings(&files.name_of(SCHEDULER))?;
        sampling.steps = ours.steps.unwrap_or(sampling.steps);
        sampling.shift = ours.shift.unwrap_or(sampling.shift);
        let [width, height] = ours.size.unwrap_or([832, 480]);
        let defaults = Self {
            text_length: ours.text_length.unwrap_or(512),
            conditioning: ours.conditioning.unwrap_or(Conditioning::None),
            key_frames: ours.key_frames.unwrap_or(81),
            key_frame_fps: ours.key_frame_fps.unwrap_or(16),
            size: FrameSize::checked(width, height).map_err(|e| refused(e.to_string()))?,
            any_size: ours.size.is_none(),
            sampling,
            guidance: ours.guidance.unwrap_or(5.0),
        };
        let counts = [defaults.text_length as u64, defaults.key_frames.into(), defaults.key_frame_fps.into()];
        if counts.into_iter().chain([defaults.sampling.steps.into()]).any(|n| n == 0 || n > 1 << 20) {
            return Err(refused(
                "zoetrope: text_length, key_frames, key_frame_fps and steps must be positive".to_owned(),
            ));
        }
        let positive = |x: f32| x.is_finite() && x > 0.0;
        if !positive(defaults.guidance) || !positive(defaults.sampling.shift) {
            return Err(refused("guidance and shift must be positive numbers".to_owned()));
        }
        Ok(defaults)
    }
}

/// What Wan 2.1 is sampled with when its folder does not say.
const STEPS: u32 = 50;
const SHIFT: f32 = 3.0;
const INDEX: &str = "model_index.json";
const SCHEDULER: &str = "scheduler/scheduler_config.json";

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name", default)]
    class_name: String,
    #[serde(default)]
    zoetrope: Option<OurKeys>,
}

/// The key `zoetrope`: what diffusers' layout has no place for.
#[derive(Default, Deserialize)]
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

#[derive(Deserialize)]
struct SchedulerConfig {
    #[serde(rename = "_class_name", default)]
    class_name: String,
    num_train_timesteps: Option<u32>,
    flow_shift: Option<f32>,
    shift: Option<f32>,
    prediction_type: Option<String>,
    solver_order: Option<u32>,
}

impl SchedulerConfig {
    /// The sampling that the file describes, at Wan's number of steps.
    fn settings(&self, file: &str) -> Result<SamplerSettings> {
        let settings = |sampler, shift: Option<f32>| SamplerSettings::new(sampler, STEPS, shift.unwrap_or(SHIFT));
        if self.num_train_timesteps.is_some_and(|n| n != 1000) {
            return Err(ModelError::Unsupported(format!("num_train_timesteps other than 1000 ({file})")));
        }
        match self.class_name.as_str() {
            "FlowMatchEulerDiscreteScheduler" => Ok(settings(Sampler::Euler, self.shift)),
            "UniPCMultistepScheduler" => {
                if self.prediction_type.as_deref().is_some_and(|kind| kind != "flow_prediction") {
                    return Err(ModelError::Unsupported(format!(
                        "prediction_type other than flow_prediction ({file})"
                    )));
                }
                if self.solver_order.is_some_and(|order| order != 2) {
                    return Err(ModelError::Unsupported(format!("solver_order other than 2 ({file})")));
                }
                Ok(settings(Sampler::Unipc, self.flow_shift))
            }
            other => Err(ModelError::Unsupported(format!("scheduler {other} ({file})"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn load(index: &str, scheduler: &str) -> Result<SamplingDefaults> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("scheduler")).unwrap();
        fs::write(folder.path().join(INDEX), index).unwrap();
        fs::write(folder.path().join(SCHEDULER), scheduler).unwrap();
        SamplingDefaults::load(&ModelFiles::Folder(folder.path().to_owned()))
    }

    const UNIPC: &str =
        r#"{"_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0, "prediction_type": "flow_prediction"}"#;

    #[test]
    fn a_plain_wan_folder_has_wans_defaults() {
        let defaults =
            load(r#"{"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"]}"#, UNIPC).unwrap();
        assert_eq!((defaults.text_length, defaults.key_frames, defaults.key_frame_fps), (512, 81, 16));
        assert_eq!(
            (defaults.sampling.shift, defaults.sampling.sampler, defaults.size.width),
            (5.0, Sampler::Unipc, 832)
        );
    }

    #[test]
    fn our_key_overrides_and_its_misspellings_are_refused() {
        let index = r#"{"_class_name": "WanPipeline", "zoetrope": {"text_length": 32, "conditioning": "mask1", "shift": 2.0, "size": [128, 64]}}"#;
        let defaults = load(index, UNIPC).unwrap();
        assert_eq!(
            (defaults.text_length, defaults.conditioning, defaults.sampling.shift),
            (32, Conditioning::Mask1, 2.0)
        );
        assert_eq!((defaults.size.width, defaults.size.height), (128, 64));
        assert!(load(r#"{"_class_name": "WanPipeline", "zoetrope": {"text_len": 32}}"#, UNIPC).is_err());
        assert!(load(r#"{"_class_name": "WanPipeline", "zoetrope": {"steps": 0}}"#, UNIPC).is_err());
        assert!(load(r#"{"_class_name": "WanPipeline", "zoetrope": {"shift": -1}}"#, UNIPC).is_err());
    }

    #[test]
    fn other_pipelines_and_schedulers_are_named() {
        let wan = r#"{"_class_name": "WanPipeline"}"#;
        assert!(load(r#"{"_class_name": "LTXPipeline"}"#, UNIPC).unwrap_err().to_string().contains("LTXPipeline"));
        assert!(load(wan, r#"{"_class_name": "DDIMScheduler"}"#).unwrap_err().to_string().contains("DDIMScheduler"));
    }
}
