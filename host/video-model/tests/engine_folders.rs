//! Models that an operator registers by folder: the built-in one's copy, and one that knows no pictures and any size.

use futures::executor::block_on;
use pipeline::{
    Condition, Diffuse, Frame, FrameSize, GenerationPlan, GenerationRequest, GivenKeyFrame, Lane, StageContext,
    StageError, StageResult,
};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use video_model::engine::{EngineConfig, VideoEngine};

const DEFAULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/default-model/weights");
const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";
const PARTS: [&str; 5] = ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"];

fn engine(models: &[(&str, &Path)]) -> Arc<VideoEngine> {
    let models = models.iter().map(|(name, path)| ((*name).to_owned(), path.to_path_buf())).collect();
    VideoEngine::start(EngineConfig { models, threads: Some(2), ..EngineConfig::default() }).unwrap()
}

fn plan(engine: &VideoEngine, model: &str, size: Option<FrameSize>) -> GenerationPlan {
    let request = GenerationRequest {
        prompt: "a green square on a black background".into(),
        model: Some(model.to_owned()),
        size,
        key_frames: Some(3),
        steps: Some(2),
        seed: Some(1),
        ..GenerationRequest::default()
    };
    request.resolve(&engine.defaults(Some(model)).unwrap(), 0).unwrap()
}

fn key_frames(engine: &VideoEngine, plan: &GenerationPlan) -> StageResult<Vec<Frame>> {
    let cx = StageContext::unmetered(Lane(0));
    block_on(async {
        let conditioning = engine.condition(&cx, plan).await?;
        Ok(engine.diffuse(&cx, plan, &conditioning).await?.frames)
    })
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// The built-in model without the channels for known frames, and without a word about its size.
fn text_only_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for part in PARTS {
        fs::create_dir(root.join(part)).unwrap();
        for entry in fs::read_dir(Path::new(DEFAULT).join(part)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), root.join(part).join(entry.file_name())).unwrap();
        }
    }
    fs::copy(Path::new(DEFAULT).join("model_index.json"), root.join("model_index.json")).unwrap();
    edit_json(&root.join("model_index.json"), |index| {
        let ours = index["zoetrope"].as_object_mut().unwrap();
        ours.remove("conditioning");
        ours.remove("size");
    });
    let mut z = 0;
    edit_json(&root.join("transformer/config.json"), |config| {
        z = config["out_channels"].as_u64().unwrap() as usize;
        config["in_channels"] = json!(z);
    });
    keep_first_inputs(&root.join(TRANSFORMER), "patch_embedding.weight", z);
    folder
}

/// Cuts the second dimension of a stored tensor to its first `count` entries.
fn keep_first_inputs(path: &Path, name: &str, count: usize) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let whole = file.tensor(name).unwrap();
    let mut shape = whole.shape().to_vec();
    let (outputs, inputs) = (shape[0], shape[1]);
    let input_bytes = whole.data().len() / (outputs * inputs);
    let rows = whole.data().chunks_exact(inputs * input_bytes);
    let kept: Vec<u8> = rows.flat_map(|row| &row[..count * input_bytes]).copied().collect();
    shape[1] = count;
    let cut = TensorView::new(whole.dtype(), shape, &kept).unwrap();
    let others = file.tensors().into_iter().filter(|(other, _)| other != name);
    let written = safetensors::serialize(others.chain([(name.to_owned(), cut)]), None).unwrap();
    fs::write(path, written).unwrap();
}

#[test]
fn a_registered_copy_of_the_built_in_model_makes_the_same_video() {
    let engine = engine(&[("copy", Path::new(DEFAULT))]);
    let names: Vec<String> = engine.models().unwrap().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["copy", "default"]);
    let (built_in, copy) = (plan(&engine, "default", None), plan(&engine, "copy", None));
    assert!(key_frames(&engine, &built_in).unwrap() == key_frames(&engine, &copy).unwrap());
    let (a, b) = (engine.model_info(Some("copy")).unwrap(), engine.model_info(None).unwrap());
    assert_eq!((a.parameters, a.bytes, a.loaded), (b.parameters, b.bytes, true));
}

#[test]
fn conditioning_of_one_model_is_no_use_to_another() {
    let engine = engine(&[("copy", Path::new(DEFAULT))]);
    let cx = StageContext::unmetered(Lane(0));
    let conditioning = block_on(engine.condition(&cx, &plan(&engine, "default", None))).unwrap();
    let outcome = block_on(engine.diffuse(&cx, &plan(&engine, "copy", None), &conditioning));
    assert!(matches!(outcome, Err(StageError::Internal(_))));
}

#[test]
fn a_text_only_model_makes_any_size_and_refuses_pictures() {
    let folder = text_only_folder();
    let engine = engine(&[("text-only", folder.path())]);
    let defaults = engine.defaults(Some("text-only")).unwrap();
    assert!(defaults.any_size && defaults.key_frames_max > defaults.key_frames);
    let size = FrameSize { width: 96, height: 64 };
    let mut plan = plan(&engine, "text-only", Some(size));
    let frames = key_frames(&engine, &plan).unwrap();
    assert_eq!(frames.iter().map(Frame::size).collect::<Vec<_>>(), [size; 3]);
    plan.given = vec![GivenKeyFrame { index: 0, frame: frames[0].clone() }];
    let refused = key_frames(&engine, &plan);
    assert!(matches!(refused, Err(StageError::InvalidArgument { field: "input_reference", .. })), "{refused:?}");
}
