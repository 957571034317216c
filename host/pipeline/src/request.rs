//! From what a tenant asks for to what the model will do.

use crate::error::{StageError, StageResult};
use crate::frames::{Frame, FrameSize};
use crate::guidance::{GuidanceInterval, GuidanceKind, GuidanceSettings};
use crate::limits;
use crate::lora::LoraChoice;
use crate::pictures::PicturesTaken;
use crate::sampling::{Sampler, SamplerSettings, SigmaSchedule, SolverType};
use crate::step_cache::StepCacheKind;
use serde::{Deserialize, Serialize};

/// What a tenant asks for. Everything but the prompt may be left to the model. A prompt hook sees and returns this.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationRequest {
    /// What to show.
    pub prompt: String,
    /// What to avoid; empty means the empty prompt.
    #[serde(default)]
    pub negative_prompt: String,
    /// Registered model; none means the default.
    #[serde(default)]
    pub model: Option<String>,
    /// Size of the finished video.
    #[serde(default)]
    pub size: Option<FrameSize>,
    /// Length of the finished video.
    #[serde(default)]
    pub duration_ms: Option<u32>,
    /// Frame rate of the finished video.
    #[serde(default)]
    pub fps: Option<u32>,
    /// Key frames to diffuse.
    #[serde(default)]
    pub key_frames: Option<u32>,
    /// Sampler steps.
    #[serde(default)]
    pub steps: Option<u32>,
    /// Strength of classifier-free guidance; 1 switches it off.
    #[serde(default)]
    pub guidance: Option<f32>,
    /// Shift of the noise schedule.
    #[serde(default)]
    pub shift: Option<f32>,
    /// Update rule.
    #[serde(default)]
    pub sampler: Option<Sampler>,
    /// Order of a multistep sampler.
    #[serde(default)]
    pub solver_order: Option<u32>,
    /// UniPC's B(h).
    #[serde(default)]
    pub solver_type: Option<SolverType>,
    /// Spread of the noise levels.
    #[serde(default)]
    pub schedule: Option<SigmaSchedule>,
    /// Share of the noise that is drawn anew at each step.
    #[serde(default)]
    pub eta: Option<f32>,
    /// How guidance combines the two answers.
    #[serde(default)]
    pub guidance_kind: Option<GuidanceKind>,
    /// How far guidance is taken back to the standard deviation of the prompt's own answer.
    #[serde(default)]
    pub guidance_rescale: Option<f32>,
    /// The guided part of the schedule.
    #[serde(default)]
    pub guidance_interval: Option<GuidanceInterval>,
    /// What a step may reuse of the one before.
    #[serde(default)]
    pub step_cache: Option<StepCacheKind>,
    /// Adapters by their registered names.
    #[serde(default)]
    pub loras: Vec<LoraChoice>,
    /// Seed of the initial noise; none draws one.
    #[serde(default)]
    pub seed: Option<u64>,
}

/// What a model does when the request is silent, and what it can do at all.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelDefaults {
    /// The model's name.
    pub model: String,
    /// Size that the model was trained at: what it diffuses.
    pub native_size: FrameSize,
    /// Whether key frames may have another size than `native_size`. If not, finished frames are scaled.
    pub any_size: bool,
    /// Sides of key frames must be multiples of this.
    pub size_multiple_px: u32,
    /// Key frames must be `key_frame_multiple · k + 1` unless this is 1.
    pub key_frame_multiple: u32,
    /// Key frames.
    pub key_frames: u32,
    /// Most key frames that the model can make at once.
    pub key_frames_max: u32,
    /// Pictures that it takes in the place of key frames.
    pub pictures: PicturesTaken,
    /// How it is sampled.
    #[serde(flatten)]
    pub sampling: SamplerSettings,
    /// Strength of guidance.
    pub guidance: f32,
    /// Finished size.
    pub size: FrameSize,
    /// Length.
    pub duration_ms: u32,
    /// Frame rate.
    pub fps: u32,
    /// Adapters that requests may name.
    pub loras: Vec<String>,
}

/// A picture in the place of a key frame.
#[derive(Debug, Clone)]
pub struct GivenKeyFrame {
    /// Which key frame, from 0.
    pub index: u32,
    /// The picture, any size: the model scales it.
    pub frame: Frame,
}

/// A request with every choice made and checked: the input of `condition` and `diffuse`.
#[derive(Debug, Clone)]
pub struct GenerationPlan {
    /// What to show.
    pub prompt: String,
    /// What to avoid.
    pub negative_prompt: String,
    /// Model that runs.
    pub model: String,
    /// Size of the key frames.
    pub key_frame_size: FrameSize,
    /// Number of key frames.
    pub key_frames: u32,
    /// How the noise is integrated away.
    pub sampling: SamplerSettings,
    /// How the negative prompt pushes.
    pub guidance: GuidanceSettings,
    /// What a step may reuse of the one before.
    pub step_cache: StepCacheKind,
    /// Adapters by their registered names.
    pub loras: Vec<LoraChoice>,
    /// Seed of the initial noise, and of the noise that a stochastic sampler adds.
    pub seed: u64,
    /// Pictures in the place of key frames.
    pub given: Vec<GivenKeyFrame>,
    /// Size of the finished video.
    pub size: FrameSize,
    /// Number of finished frames.
    pub frame_count: u32,
    /// Frame rate of the finished video.
    pub fps: u32,
}

impl GenerationRequest {
    /// Checks every field and fills the gaps from `defaults`. `fallback_seed` is used when the request names none.
    pub fn resolve(&self, defaults: &ModelDefaults, fallback_seed: u64) -> StageResult<GenerationPlan> {
        check_text("prompt", &self.prompt)?;
        check_text("negative_prompt", &self.negative_prompt)?;
        if self.prompt.trim().is_empty() {
            return Err(StageError::invalid("prompt", "say what the video should show; the prompt is empty"));
        }
        let size = self.size.unwrap_or(defaults.size);
        let size = FrameSize::checked(size.width, size.height)?;
        let key_frames = self.checked_key_frames(defaults)?;
        // More key frames show more time, unless the length is given.
        let natural_ms =
            u64::from(defaults.duration_ms) * u64::from(key_frames) / u64::from(defaults.key_frames.max(1));
        let natural_ms = u32::try_from(natural_ms).unwrap_or(u32::MAX);
        let duration_ms =
            in_range("seconds", self.duration_ms.unwrap_or(natural_ms), 1, limits::DURATION_MS_MAX, "ms")?;
        let fps = in_range("fps", self.fps.unwrap_or(defaults.fps), 1, limits::FPS_MAX, "frames a second")?;
        let frame_count = ((u64::from(duration_ms) * u64::from(fps) + 500) / 1000).max(1) as u32;
        if u64::from(frame_count) * size.rgb_bytes() as u64 > limits::JOB_FRAMES_BYTES_MAX {
            return Err(StageError::invalid(
                "seconds",
                format!("{frame_count} frames of {size} do not fit into one job; ask for less"),
            ));
        }
        Ok(GenerationPlan {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            model: defaults.model.clone(),
            key_frame_size: key_frame_size(size, defaults)?,
            key_frames,
            sampling: defaults.sampling.with(self)?,
            guidance: GuidanceSettings::of(self, defaults.guidance)?,
            step_cache: self.step_cache.unwrap_or_default().checked()?,
            loras: LoraChoice::known(&self.loras, &defaults.loras)?,
            seed: self.seed.unwrap_or(fallback_seed),
            given: Vec::new(),
            size,
            frame_count,
            fps,
        })
    }

    fn checked_key_frames(&self, defaults: &ModelDefaults) -> StageResult<u32> {
        let max = defaults.key_frames_max.min(limits::KEY_FRAMES_MAX);
        let count = in_range("key_frames", self.key_frames.unwrap_or(defaults.key_frames), 1, max, "key frames")?;
        let multiple = defaults.key_frame_multiple.max(1);
        if multiple > 1 && count % multiple != 1 {
            let message =
                format!("this model makes {multiple}k+1 key frames, like {}; {count} is not one", multiple * 4 + 1);
            return Err(StageError::invalid("key_frames", message));
        }
        Ok(count)
    }
}

fn key_frame_size(size: FrameSize, defaults: &ModelDefaults) -> StageResult<FrameSize> {
    if !defaults.any_size {
        return Ok(defaults.native_size);
    }
    let multiple = defaults.size_multiple_px.max(1);
    if !size.width.is_multiple_of(multiple) || !size.height.is_multiple_of(multiple) {
        let near = |side: u32| (side + multiple / 2) / multiple * multiple;
        let hint = FrameSize { width: near(size.width).max(multiple), height: near(size.height).max(multiple) };
        let message =
            format!("{size} is not possible: this model needs sides that are multiples of {multiple}, like {hint}");
        return Err(StageError::invalid("size", message));
    }
    Ok(size)
}

fn check_text(field: &'static str, text: &str) -> StageResult<()> {
    if text.len() > limits::PROMPT_BYTES_MAX {
        let message =
            format!("{} bytes long; at most {} are taken: shorten the text", text.len(), limits::PROMPT_BYTES_MAX);
        return Err(StageError::invalid(field, message));
    }
    Ok(())
}

pub(crate) fn in_range(field: &'static str, value: u32, min: u32, max: u32, unit: &str) -> StageResult<u32> {
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(StageError::invalid(field, format!("{value} is out of range: between {min} and {max} {unit}")))
}

pub(crate) fn in_range_f32(field: &'static str, value: f32, min: f32, max: f32) -> StageResult<f32> {
    // Written so that NaN fails too.
    if value >= min && value <= max {
        return Ok(value);
    }
    Err(StageError::invalid(field, format!("{value} is out of range: between {min} and {max}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn defaults() -> ModelDefaults {
        let size = FrameSize { width: 128, height: 128 };
        ModelDefaults {
            model: "default".into(),
            native_size: size,
            any_size: true,
            size_multiple_px: 16,
            key_frame_multiple: 4,
            key_frames: 9,
            key_frames_max: 33,
            pictures: PicturesTaken::ANY,
            sampling: SamplerSettings::new(Sampler::Euler, 20, 3.0),
            guidance: 4.0,
            size,
            duration_ms: 2000,
            fps: 24,
            loras: vec!["anime".to_owned()],
        }
    }

    fn asking(change: impl FnOnce(&mut GenerationRequest)) -> StageResult<GenerationPlan> {
        let mut request = GenerationRequest { prompt: "a red star".into(), ..Default::default() };
        change(&mut request);
        request.resolve(&defaults(), 7)
    }

    fn refused_field(change: impl FnOnce(&mut GenerationRequest)) -> &'static str {
        match asking(change) {
            Err(StageError::InvalidArgument { field, .. }) => field,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn a_bare_prompt_takes_every_default() {
        let plan = asking(|_| ()).unwrap();
        assert_eq!((plan.key_frames, plan.sampling.steps, plan.frame_count, plan.seed), (9, 20, 48, 7));
    }

    #[test]
    fn each_bad_field_is_named() {
        assert_eq!(refused_field(|r| r.prompt = "  ".into()), "prompt");
        assert_eq!(refused_field(|r| r.prompt = "x".repeat(100_000)), "prompt");
        assert_eq!(refused_field(|r| r.loras = vec!["oil".parse().unwrap()]), "loras");
        assert_eq!(refused_field(|r| r.loras = vec!["anime".parse().unwrap(), "anime:2".parse().unwrap()]), "loras");
        assert_eq!(refused_field(|r| r.negative_prompt = "x".repeat(100_000)), "negative_prompt");
        assert_eq!(refused_field(|r| r.size = Some(FrameSize { width: 13, height: 7 })), "size");
        assert_eq!(refused_field(|r| r.size = Some(FrameSize { width: 130, height: 128 })), "size");
        assert_eq!(refused_field(|r| r.steps = Some(0)), "steps");
        assert_eq!(refused_field(|r| r.steps = Some(100_000)), "steps");
        assert_eq!(refused_field(|r| r.key_frames = Some(8)), "key_frames");
        assert_eq!(refused_field(|r| r.guidance = Some(f32::NAN)), "guidance");
        assert_eq!(refused_field(|r| r.shift = Some(0.0)), "shift");
        assert_eq!(refused_field(|r| r.eta = Some(-0.1)), "eta");
        assert_eq!(refused_field(|r| (r.sampler, r.eta) = (Some(Sampler::Ddim), Some(f32::NAN))), "eta");
        assert_eq!(refused_field(|r| r.solver_order = Some(2)), "solver_order");
        assert_eq!(refused_field(|r| r.solver_type = Some(SolverType::Bh1)), "solver_type");
        assert_eq!(refused_field(|r| r.guidance_rescale = Some(1.5)), "guidance_rescale");
        let apg = GuidanceKind::Apg { momentum: 2.0, norm: 15.0, parallel: 1.0 };
        assert_eq!(refused_field(|r| r.guidance_kind = Some(apg)), "guidance_kind");
        let backwards = GuidanceInterval { start: 0.5, end: 0.5 };
        assert_eq!(refused_field(|r| r.guidance_interval = Some(backwards)), "guidance_interval");
        let eager = StepCacheKind::FirstBlock { threshold: 1.5 };
        assert_eq!(refused_field(|r| r.step_cache = Some(eager)), "step_cache");
        assert_eq!(refused_field(|r| r.fps = Some(0)), "fps");
        assert_eq!(refused_field(|r| r.duration_ms = Some(u32::MAX)), "seconds");
    }

    #[test]
    fn what_the_chosen_sampler_does_not_look_at_is_refused() {
        let with = |sampler, change: fn(&mut GenerationRequest)| {
            move |r: &mut GenerationRequest| {
                r.sampler = Some(sampler);
                change(r);
            }
        };
        assert_eq!(refused_field(with(Sampler::Unipc, |r| r.eta = Some(0.5))), "eta");
        assert_eq!(refused_field(with(Sampler::Unipc, |r| r.solver_order = Some(4))), "solver_order");
        assert_eq!(refused_field(with(Sampler::DpmSolver, |r| r.solver_order = Some(3))), "solver_order");
        let karras = |r: &mut GenerationRequest| (r.schedule, r.shift) = (Some(SigmaSchedule::Karras), Some(5.0));
        assert_eq!(refused_field(with(Sampler::Unipc, karras)), "shift");
        let plan = asking(with(Sampler::Lcm, karras)).unwrap();
        assert_eq!((plan.sampling.sampler, plan.sampling.shift), (Sampler::Lcm, 5.0));
    }

    #[test]
    fn another_sampler_takes_the_model_s_shift_and_not_its_order_or_eta() {
        let mut defaults = defaults();
        defaults.sampling = SamplerSettings { solver_order: 3, ..SamplerSettings::new(Sampler::Unipc, 9, 5.0) };
        let mut request = GenerationRequest { prompt: "a".into(), ..Default::default() };
        assert_eq!(request.resolve(&defaults, 0).unwrap().sampling.solver_order, 3);
        request.sampler = Some(Sampler::DpmSolver);
        let sampling = request.resolve(&defaults, 0).unwrap().sampling;
        assert_eq!((sampling.solver_order, sampling.steps, sampling.shift), (2, 9, 5.0));
    }

    #[test]
    fn a_stored_request_comes_back_as_it_was_and_an_impossible_one_does_not() {
        let request = GenerationRequest {
            prompt: "a".into(),
            sampler: Some(Sampler::DpmSolverSde),
            schedule: Some(SigmaSchedule::Beta),
            solver_type: Some(SolverType::Bh1),
            guidance_kind: Some("apg:norm=2.5".parse().unwrap()),
            guidance_interval: Some("0.1..0.9".parse().unwrap()),
            step_cache: Some("mag:0.1,skips=2".parse().unwrap()),
            ..Default::default()
        };
        let text = serde_json::to_string(&request).unwrap();
        assert!(text.contains("\"dpmpp-2m-sde\"") && text.contains("\"0.1..0.9\""), "{text}");
        assert_eq!(serde_json::from_str::<GenerationRequest>(&text).unwrap(), request);
        for bad in
            [r#""step_cache": "mag:9""#, r#""guidance_interval": "1..0""#, r#""sampler": "magic""#, r#""eta2": 0"#]
        {
            let text = format!("{{ \"prompt\": \"a\", {bad} }}");
            assert!(serde_json::from_str::<GenerationRequest>(&text).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn settings_as_text_never_panic(text in "[a-z-]{0,10}:?[a-z=0-9.,-]{0,20}") {
            let _ = (text.parse::<GuidanceKind>(), text.parse::<GuidanceInterval>(), text.parse::<StepCacheKind>());
        }

        #[test]
        fn any_request_resolves_or_is_refused_without_a_panic(
            prompt in ".{0,40}", w: u32, h: u32, ms: u32, fps: u32, keys: u32, steps: u32, guidance: f32, shift: f32
        ) {
            let request = GenerationRequest {
                prompt, size: Some(FrameSize { width: w, height: h }), duration_ms: Some(ms), fps: Some(fps),
                key_frames: Some(keys), steps: Some(steps), guidance: Some(guidance), shift: Some(shift), ..Default::default()
            };
            if let Ok(plan) = request.resolve(&defaults(), 0) {
                prop_assert!(u64::from(plan.frame_count) * plan.size.rgb_bytes() as u64 <= limits::JOB_FRAMES_BYTES_MAX);
            }
        }
    }
}
