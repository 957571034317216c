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
use video_model::engine::{EngineConfig, PromptCacheConfig, VideoEngine};

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

/// A copy of the built-in model's folder.
fn copied_folder() -> tempfile::TempDir {
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
    folder
}

/// The built-in model without the channels for known frames, and without a word about its size.
fn text_only_folder() -> tempfile::TempDir {
    let folder = copied_folder();
    let root = folder.path();
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

/// Makes the end of the largest tensor of a file NaN: its size, its header and the start of every tensor stay.
fn damage_weights(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let largest = file.tensors().into_iter().map(|(_, tensor)| tensor.data()).max_by_key(|data| data.len()).unwrap();
    let end = largest.as_ptr_range().end as usize - bytes.as_ptr() as usize;
    bytes[end - 2..end].fill(0xff);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_cached_prompt_never_touches_the_text_encoder_in_this_process_or_the_next() {
    let (folder, data) = (copied_folder(), tempfile::tempdir().unwrap());
    let start = || {
        let models = vec![("copy".to_owned(), folder.path().to_owned())];
        let disk = Some((data.path().join("prompt-cache"), 1 << 20));
        let prompt_cache = PromptCacheConfig { disk, ..PromptCacheConfig::default() };
        VideoEngine::start(EngineConfig { models, threads: Some(2), prompt_cache, ..EngineConfig::default() }).unwrap()
    };
    let first = start();
    let wanted = plan(&first, "copy", None);
    let texts = 1 + u64::from(wanted.guidance.is_guided());
    let frames = key_frames(&first, &wanted).unwrap();
    let steps = first.devices()[0].queue.steps;
    assert!(frames == key_frames(&first, &wanted).unwrap());
    assert_eq!(first.devices()[0].queue.steps, 2 * steps - 1, "no step of the device goes to a text that is known");
    let stats = first.prompt_cache_stats();
    assert_eq!((stats.misses, stats.ram_hits, stats.disk_hits), (texts, texts, 0));
    assert!(stats.ram_bytes > 0 && stats.disk_bytes > 0);
    drop(first);

    // From here on the text encoder cannot be loaded.
    damage_weights(&folder.path().join("text_encoder/model.safetensors"));
    let second = start();
    assert!(frames == key_frames(&second, &wanted).unwrap());
    let stats = second.prompt_cache_stats();
    assert_eq!((stats.misses, stats.ram_hits, stats.disk_hits), (0, 0, texts));
    let other = GenerationPlan { prompt: "another prompt".into(), ..wanted.clone() };
    let refused = key_frames(&second, &other).unwrap_err().to_string();
    assert!(refused.contains("text_encoder") && refused.contains("NaN"), "{refused}");
    // Cleaning comes before the cache: what the encoder would see alike is alike.
    let spaced = GenerationPlan { prompt: format!("  {}\n", wanted.prompt), ..wanted };
    assert!(frames == key_frames(&second, &spaced).unwrap());
}
