//! Runs a folder that diffusers wrote through the engine and compares it with diffusers' own result.

use futures::executor::block_on;
use pipeline::{
    Condition, Frame, FrameSize, GenerationRequest, GivenKeyFrame, KeyFrames, Lane, StageContext, StageError,
};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use video_model::Precision;
use video_model::devices::{DeviceChoice, DeviceId};
use video_model::engine::{DiffuseOptions, EngineConfig, VideoEngine};

#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    /// The folder's parts, by the name of the golden's.
    parts: BTreeMap<String, String>,
    model_index: Value,
    /// The text of the file: it may hold numbers that JSON does not have.
    scheduler: String,
    prompt: String,
    negative_prompt: String,
    frames: u32,
    steps: u32,
    guidance: f32,
    size: [u32; 2],
    first: Option<String>,
    last: Option<String>,
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens/pipelines")
}

pub fn cases() -> Vec<Case> {
    serde_json::from_slice(&fs::read(goldens().join("cases.json")).unwrap()).unwrap()
}

/// The case's folder as a user would have it.
pub fn folder_of(case: &Case) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (part, golden) in &case.parts {
        let (from, to) = (goldens().join("parts").join(golden), folder.path().join(part));
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(from).unwrap().flatten() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    fs::create_dir(folder.path().join("scheduler")).unwrap();
    fs::write(folder.path().join("scheduler/scheduler_config.json"), &case.scheduler).unwrap();
    fs::write(folder.path().join("model_index.json"), case.model_index.to_string()).unwrap();
    folder
}

fn engine(model: &Path, precision: Precision, device: DeviceId) -> Arc<VideoEngine> {
    let models = vec![("wan".to_owned(), model.to_owned())];
    let device = DeviceChoice::These(vec![device]);
    let config = EngineConfig { models, dtype: precision, device, threads: Some(2), ..EngineConfig::default() };
    VideoEngine::start(config).unwrap()
}

fn picture(tensor: &TensorView<'_>) -> Frame {
    let [height, width] = [tensor.shape()[0], tensor.shape()[1]];
    let size = FrameSize { width: width as u32, height: height as u32 };
    Frame::new(size, tensor.data().to_vec()).unwrap()
}

fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

pub fn relative_rmse(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |v: f32| f64::from(v).powi(2);
    let error: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (error / expected.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

/// Relative RMSE of the latents, and the root mean square of the pictures' differences in levels of 256.
fn run(case: &Case, golden: &SafeTensors<'_>, precision: Precision, device: DeviceId) -> (f64, f64) {
    let folder = folder_of(case);
    let engine = engine(folder.path(), precision, device);
    let [width, height] = case.size;
    let request = GenerationRequest {
        prompt: case.prompt.clone(),
        negative_prompt: case.negative_prompt.clone(),
        model: Some("wan".to_owned()),
        size: Some(FrameSize { width, height }),
        key_frames: Some(case.frames),
        steps: Some(case.steps),
        guidance: Some(case.guidance),
        seed: Some(0),
        ..GenerationRequest::default()
    };
    // Sampler and shift are the folder's own.
    let mut plan = request.resolve(&pipeline::Diffuse::defaults(&*engine, Some("wan")).unwrap(), 0).unwrap();
    let image = |name: &str| picture(&golden.tensor(&format!("image.{name}")).unwrap());
    let first = case.first.iter().map(|name| GivenKeyFrame { index: 0, frame: image(name) });
    let last = case.last.iter().map(|name| GivenKeyFrame { index: case.frames - 1, frame: image(name) });
    plan.given = first.chain(last).collect();

    let noise = folder.path().join("noise.safetensors");
    let noise_view = golden.tensor(&format!("{}.noise", case.name)).unwrap();
    fs::write(&noise, safetensors::serialize([("noise", noise_view)], None).unwrap()).unwrap();
    let dump = folder.path().join("latents.safetensors");
    let options = DiffuseOptions { initial_noise: Some(noise), dump_latents: Some(dump.clone()) };
    let cx = StageContext::unmetered(Lane(0));
    let KeyFrames { frames } = block_on(async {
        let conditioning = engine.condition(&cx, &plan).await?;
        engine.diffuse_with(&cx, &plan, &conditioning, options).await
    })
    .unwrap_or_else(|error: StageError| panic!("{}: {error}", case.name));

    let dumped = fs::read(dump).unwrap();
    let latents = floats(&SafeTensors::deserialize(&dumped).unwrap().tensor("latents").unwrap());
    let expected = floats(&golden.tensor(&format!("{}.latents", case.name)).unwrap());
    let video = golden.tensor(&format!("{}.video", case.name)).unwrap();
    let rgb: Vec<u8> = frames.iter().flat_map(|frame| frame.rgb().to_vec()).collect();
    assert_eq!(rgb.len(), video.data().len(), "{}: size of the video", case.name);
    let levels = rgb.iter().zip(video.data()).map(|(a, b)| f64::from(i16::from(*a) - i16::from(*b)).powi(2));
    (relative_rmse(&latents, &expected), (levels.sum::<f64>() / rgb.len() as f64).sqrt())
}

/// How far a run may be from diffusers.
pub struct Limits {
    /// Relative RMSE of the latents.
    pub latents: f64,
    /// Root mean square of the pictures' differences, in levels of 256.
    pub levels: f64,
}

/// Fails unless every case whose name `takes` says yes to ends where diffusers ends.
#[track_caller]
pub fn follow_diffusers(precision: Precision, device: DeviceId, limits: &Limits, takes: impl Fn(&str) -> bool) {
    let file = fs::read(goldens().join("cases.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&file).unwrap();
    let cases: Vec<Case> = cases().into_iter().filter(|case| takes(&case.name) && !case.name.contains("dpm")).collect();
    assert!(!cases.is_empty());
    let mut failed = Vec::new();
    for case in cases {
        let (latents, levels) = run(&case, &golden, precision, device);
        if !(latents <= limits.latents && levels <= limits.levels) {
            failed.push((case.name, latents, levels));
        }
    }
    let Limits { latents, levels } = limits;
    assert!(failed.is_empty(), "latents above {latents} or pictures above {levels}: {failed:?}");
}
