//! The engine without a server: what the command line's `generate`, `interpolate`, `quality`, `models` and `bench` do.

use crate::config::{Config, DATA_DIR_DEFAULT};
use crate::models::ChosenModel;
use crate::platform::{OpenError, start_engine};
use media::frames_dir::{FramesDirWriter, read_frames_dir, write_png_dir};
use media::{EncodeSettings, FrameRate, Mp4Encoder, VideoEncoder, VideoReader};
use pipeline::life::timed;
use pipeline::{
    Condition, Diffuse, EncodeVideo, Frame, Frames, GenerationPlan, GenerationRequest, GivenKeyFrame, Interpolate,
    ModelDefaults, Stage, StageContext, StageError, StageResult, limits,
};
use rand::Rng;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use video_model::devices::DeviceId;
use video_model::engine::{DeviceReport, DiffuseOptions, VideoEngine};
pub use video_model::memory::{MemoryEstimate, Placement};
pub use video_model::quality::Quality;

/// How the local engine is to run.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// The model to know besides the built-in one, and to use.
    pub model: Option<ChosenModel>,
    /// Adapters that requests may name: files that are called by their paths.
    pub loras: Vec<PathBuf>,
    /// `f32`, `bf16` or `int8`.
    pub dtype: Option<String>,
    /// What the networks run on, like `auto`, `cpu` or `cuda:0`.
    pub device: String,
    /// Threads; none takes all cores.
    pub threads: Option<usize>,
    /// Memory that models and jobs may take, like `12GB`; none takes what is free.
    pub memory: Option<String>,
}

/// The engine of this process, without tenants, queue or ledger.
pub struct LocalEngine {
    engine: Arc<VideoEngine>,
    model: Option<String>,
}

/// What `generate` is to make.
#[derive(Debug, Clone)]
pub struct LocalGeneration {
    /// What to generate.
    pub request: GenerationRequest,
    /// A picture for the first key frame.
    pub first: Option<PathBuf>,
    /// A picture for the last key frame.
    pub last: Option<PathBuf>,
    /// File with the initial latent.
    pub noise: Option<PathBuf>,
    /// File for the final latent.
    pub dump_latents: Option<PathBuf>,
    /// An .mp4 file, or a folder for PNG frames.
    pub out: PathBuf,
}

/// What `generate` did.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The plan that ran, with its seed.
    pub plan: GenerationPlan,
    /// What the video lacks that was asked for.
    pub warnings: Vec<String>,
}

/// How frames between are to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// By the interpolation network.
    Network,
    /// By cross-fading: the baseline.
    Blend,
}

/// The wanted frame rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// This many times as many frames.
    Factor(u32),
    /// This many frames per second.
    Fps(u32),
}

/// What `interpolate` did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Interpolated {
    /// Frames read.
    pub frames_in: u32,
    /// Frames written.
    pub frames_out: u32,
    /// Frame rate written, like `60` or `60000/1001`.
    pub fps: String,
}

impl LocalEngine {
    /// Starts the device thread and loads the registry.
    pub fn start(options: &EngineOptions) -> Result<Self, OpenError> {
        let mut config = Config::in_folder(Path::new(DATA_DIR_DEFAULT));
        if !config.data_dir.is_dir() {
            // A command that makes one video leaves nothing behind; where a server has its data, they share prompts.
            config.prompt_cache_disk_bytes_max = 0;
        }
        config.dtype = options.dtype.clone();
        config.device = options.device.parse().map_err(OpenError::Engine)?;
        // One job has use for one device.
        config.devices_max = 1;
        config.device_threads = options.threads;
        config.loras.extend(options.loras.iter().map(|path| (path.display().to_string(), path.clone())));
        let folder = |model: &ChosenModel| Some((model.name.clone(), model.folder.clone()?));
        config.models.extend(options.model.as_ref().and_then(folder));
        let model = options.model.as_ref().map(|model| model.name.clone());
        let memory = options.memory.as_deref().map(video_model::memory::parse_bytes).transpose();
        config.memory_bytes_max = memory.map_err(OpenError::Engine)?;
        Ok(Self { engine: start_engine(&config)?, model })
    }

    /// What the networks run on, in words.
    pub fn devices(&self) -> String {
        let words = |device: DeviceReport| match device.id {
            DeviceId::Cpu => device.name,
            id @ DeviceId::Cuda(_) => format!("{id} ({})", device.name),
        };
        self.engine.devices().into_iter().map(words).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn engine(&self) -> &VideoEngine {
        &self.engine
    }

    /// What the chosen model does by itself.
    pub fn defaults(&self) -> StageResult<ModelDefaults> {
        self.engine.defaults(self.model.as_deref())
    }

    /// What a request would ask of memory and how it would be placed; the refusal when there is not so much.
    pub fn memory(&self, request: &GenerationRequest) -> StageResult<(Placement, MemoryEstimate)> {
        let request = GenerationRequest { model: self.model.clone(), ..request.clone() };
        self.engine.admit(&request.resolve(&self.defaults()?, 0)?)
    }

    /// Generates and writes a video.
    pub async fn generate(&self, cx: &StageContext, job: LocalGeneration) -> StageResult<Generated> {
        let mut request = job.request;
        request.model = self.model.clone();
        let mut plan = request.resolve(&self.defaults()?, rand::rng().random_range(0..1 << 53))?;
        plan.given = given(&plan, job.first.as_deref(), job.last.as_deref())?;
        self.defaults()?.pictures.check(plan.given.iter().map(|given| given.index), plan.key_frames)?;
        let conditioning = timed(cx, Stage::Condition, self.engine.condition(cx, &plan)).await?;
        let options = DiffuseOptions { initial_noise: job.noise, dump_latents: job.dump_latents };
        let key_frames = timed(cx, Stage::Diffuse, self.engine.diffuse_with(cx, &plan, &conditioning, options)).await?;
        let frames = self.engine.interpolate(cx, key_frames, plan.frame_count, plan.fps, plan.size);
        let frames = timed(cx, Stage::Interpolate, frames).await?;
        timed(cx, Stage::EncodeVideo, write_frames(cx, &job.out, frames)).await?;
        let warnings = self.engine.warnings(&plan);
        Ok(Generated { plan, warnings })
    }

    /// Reads a video or a folder, writes it with frames between. Holds two frames of the input at a time.
    pub async fn interpolate(
        &self,
        cx: &StageContext,
        input: &Path,
        out: &Path,
        rate: Rate,
        between: Between,
    ) -> StageResult<Interpolated> {
        let mut source = Source::open(input)?;
        let times = Times::new(source.fps, rate)?;
        let mut sink = Sink::create(out, times.fps_out)?;
        let start = Instant::now();
        let mut pair = source.next()?.ok_or_else(|| StageError::invalid("input", "there are no frames in it"))?;
        let (mut frames_in, mut frames_out) = (1, 0);
        while let Some(next) = source.next()? {
            cx.check_cancelled()?;
            let ts = times.between(frames_in - 1);
            for frame in self.between(cx, &pair, &next, ts, between).await? {
                sink.push(&frame)?;
                frames_out += 1;
            }
            pair = next;
            frames_in += 1;
            cx.progress.report(Stage::Interpolate, frames_in, source.count.unwrap_or(frames_in).max(frames_in));
        }
        sink.push(&pair)?;
        sink.finish()?;
        cx.progress.finished(Stage::Interpolate, start.elapsed().as_millis() as u64);
        Ok(Interpolated { frames_in, frames_out: frames_out + 1, fps: times.fps_out.to_string() })
    }

    /// The frames at `times` (rising, from 0, below 1) from `a` towards `b`. At 0 that is `a` itself.
    async fn between(
        &self,
        cx: &StageContext,
        a: &Frame,
        b: &Frame,
        times: Vec<f32>,
        how: Between,
    ) -> StageResult<Vec<Frame>> {
        let (given, inner): (Vec<f32>, Vec<f32>) = times.into_iter().partition(|&t| t <= 0.0);
        let mut frames: Vec<Frame> = given.iter().map(|_| a.clone()).collect();
        match how {
            _ if inner.is_empty() => {}
            Between::Blend => frames.extend(inner.iter().map(|&t| video_model::interpolation::blend(a, b, t))),
            Between::Network => frames.extend(self.engine.between(cx, a.clone(), b.clone(), inner).await?),
        }
        Ok(frames)
    }
}

/// Compares two videos or folders of frames.
pub fn quality(reference: &Path, other: &Path) -> StageResult<(Quality, usize)> {
    let (a, b) = (read_frames(reference)?, read_frames(other)?);
    let compared = a.len();
    let quality = video_model::quality::compare(&a, &b);
    Ok((quality.map_err(|mismatch| StageError::invalid("other", mismatch.to_string()))?, compared))
}

fn given(plan: &GenerationPlan, first: Option<&Path>, last: Option<&Path>) -> StageResult<Vec<GivenKeyFrame>> {
    let picture = |path: &Path, index| {
        let bytes = std::fs::read(path)
            .map_err(|error| StageError::invalid("image", format!("{}: {error}", path.display())))?;
        let frame = media::decode_picture(&bytes)
            .map_err(|error| StageError::invalid("image", format!("{}: {error}", path.display())))?;
        Ok(GivenKeyFrame { index, frame })
    };
    let first = first.map(|path| picture(path, 0));
    let last = last.map(|path| picture(path, plan.key_frames - 1));
    first.into_iter().chain(last).collect()
}

fn is_mp4(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("mp4"))
}

async fn write_frames(cx: &StageContext, out: &Path, frames: Frames) -> StageResult<()> {
    let io_error = |error: String| StageError::invalid("out", format!("{}: {error}", out.display()));
    if !is_mp4(out) {
        return write_png_dir(out, &frames.frames).map_err(|error| io_error(error.to_string()));
    }
    let encoded = VideoEncoder::default().encode_video(cx, frames).await?;
    std::fs::write(out, encoded.mp4).map_err(|error| io_error(error.to_string()))
}

fn read_frames(path: &Path) -> StageResult<Vec<Frame>> {
    let refused = |error: String| StageError::invalid("input", format!("{}: {error}", path.display()));
    if path.is_dir() {
        return read_frames_dir(path).map_err(|error| refused(error.to_string()));
    }
    let reader = VideoReader::open(path).map_err(|error| refused(error.to_string()))?;
    let video = reader.read_all(limits::JOB_FRAMES_BYTES_MAX).map_err(|error| refused(error.to_string()))?;
    Ok(video.frames)
}

/// Frames from a video or a folder, one at a time.
struct Source {
    frames: Box<dyn Iterator<Item = Result<Frame, String>> + Send>,
    fps: Option<FrameRate>,
    count: Option<u32>,
    path: PathBuf,
}

impl Source {
    fn open(path: &Path) -> StageResult<Self> {
        if path.is_dir() {
            let frames = read_frames(path)?;
            let count = Some(frames.len() as u32);
            return Ok(Self { frames: Box::new(frames.into_iter().map(Ok)), fps: None, count, path: path.to_owned() });
        }
        let reader = VideoReader::open(path)
            .map_err(|error| StageError::invalid("input", format!("{}: {error}", path.display())))?;
        let (fps, count) = (Some(reader.fps()), reader.frame_count());
        let frames = Box::new(reader.map(|frame| frame.map_err(|error| error.to_string())));
        Ok(Self { frames, fps, count, path: path.to_owned() })
    }

    fn next(&mut self) -> StageResult<Option<Frame>> {
        let frame = self.frames.next().transpose();
        frame.map_err(|error| StageError::invalid("input", format!("{}: {error}", self.path.display())))
    }
}

/// At which times the output wants frames. Output frame `n` shows input time `n · fps_in / fps_out`, in input frames.
struct Times {
    fps_out: FrameRate,
    /// Input frames per output frame, as a fraction.
    step: (u64, u64),
}

impl Times {
    fn new(fps_in: Option<FrameRate>, rate: Rate) -> StageResult<Self> {
        // A folder of frames has no rate of its own; 24 is the cinema's.
        let fps_in =
            fps_in.or(FrameRate::per_second(24)).ok_or_else(|| StageError::Internal("no frame rate".to_owned()))?;
        let fps_out = match rate {
            Rate::Factor(factor @ 1..=64) => fps_in.times(factor),
            Rate::Factor(factor) => {
                return Err(StageError::invalid("factor", format!("{factor} is out of range: between 1 and 64")));
            }
            Rate::Fps(fps) => FrameRate::per_second(fps),
        };
        let in_range = |fps: &FrameRate| (1.0..=f64::from(limits::FPS_MAX)).contains(&fps.as_f64());
        let fps_out = fps_out.filter(in_range).ok_or_else(|| {
            StageError::invalid(
                "fps",
                format!("the result must have between 1 and {} frames a second", limits::FPS_MAX),
            )
        })?;
        let numerator = u64::from(fps_in.numerator()) * u64::from(fps_out.denominator());
        let denominator = u64::from(fps_in.denominator()) * u64::from(fps_out.numerator());
        Ok(Self { fps_out, step: (numerator, denominator) })
    }

    /// The times in `[0, 1)` after input frame `index` at which output frames lie.
    fn between(&self, index: u32) -> Vec<f32> {
        let (step, unit) = (u128::from(self.step.0), u128::from(self.step.1));
        let start = u128::from(index) * unit;
        let first = start.div_ceil(step);
        let in_gap = (first..).map(|n| n * step - start).take_while(|&offset| offset < unit);
        in_gap.map(|offset| offset as f32 / unit as f32).collect()
    }
}

/// An MP4 file or a folder, written frame by frame.
enum Sink {
    Mp4(Box<Mp4Encoder>, PathBuf),
    Folder(FramesDirWriter),
}

impl Sink {
    fn create(out: &Path, fps: FrameRate) -> StageResult<Self> {
        if is_mp4(out) {
            return Ok(Self::Mp4(Box::new(Mp4Encoder::new(fps, EncodeSettings::default())?), out.to_owned()));
        }
        FramesDirWriter::create(out).map(Self::Folder).map_err(|error| StageError::invalid("out", error.to_string()))
    }

    fn push(&mut self, frame: &Frame) -> StageResult<()> {
        match self {
            Self::Mp4(encoder, _) => Ok(encoder.push(frame)?),
            Self::Folder(writer) => {
                writer.push(frame).map(drop).map_err(|error| StageError::invalid("out", error.to_string()))
            }
        }
    }

    fn finish(self) -> StageResult<()> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Mp4(encoder, path) => std::fs::write(&path, encoder.finish()?)
                .map_err(|error| StageError::invalid("out", format!("{}: {error}", path.display()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_times(fps_in: u32, rate: Rate, gaps: u32) -> Vec<f32> {
        let times = Times::new(FrameRate::per_second(fps_in), rate).unwrap();
        (0..gaps).flat_map(|gap| times.between(gap).into_iter().map(move |t| gap as f32 + t)).collect()
    }

    #[test]
    fn a_factor_puts_frames_at_even_distances_and_keeps_the_given_ones() {
        assert_eq!(all_times(24, Rate::Factor(2), 2), [0.0, 0.5, 1.0, 1.5]);
        assert_eq!(all_times(24, Rate::Factor(1), 3), [0.0, 1.0, 2.0]);
    }

    #[test]
    fn any_frame_rate_keeps_the_length() {
        let times = all_times(24, Rate::Fps(60), 24);
        assert_eq!(times.len(), 60);
        assert!(times.windows(2).all(|w| (w[1] - w[0] - 0.4).abs() < 1e-5));
        assert_eq!(all_times(60, Rate::Fps(24), 60).len(), 24, "fewer frames work too");
    }

    #[test]
    fn rates_that_no_video_has_are_refused() {
        for rate in [Rate::Factor(0), Rate::Factor(65), Rate::Fps(0), Rate::Fps(1000)] {
            assert!(Times::new(FrameRate::per_second(24), rate).is_err(), "{rate:?}");
        }
    }
}
