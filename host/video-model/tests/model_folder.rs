//! Loading whole folders: what is wrong with one is said by file, key or tensor, before anything runs.

use kernels::Dtype;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use video_model::transformer::Timestep;
use video_model::{ModelError, ModelFiles, Precision, VideoModel};

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";

/// A copy of the default model's folder, to be damaged.
fn copy_of_default_model() -> TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().flatten() {
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(&default_model(), folder.path());
    folder
}

fn default_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("default-model/weights")
}

fn load(folder: &TempDir) -> Result<VideoModel, ModelError> {
    VideoModel::load(&ModelFiles::Folder(folder.path().to_owned()), Precision::Bf16)
}

/// The message of the refusal after `change` was made to a whole folder.
fn refusal(change: impl FnOnce(&Path)) -> String {
    let folder = copy_of_default_model();
    change(folder.path());
    load(&folder).err().expect("the damaged folder was loaded").to_string()
}

fn replace(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from} is not in {}", file.display());
    fs::write(file, text.replacen(from, to, 1)).unwrap();
}

#[track_caller]
fn assert_says(message: &str, words: &[&str]) {
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
}

#[test]
fn default_model_loads_and_its_parts_fit() {
    let model = VideoModel::load(&ModelFiles::Folder(default_model()), Precision::Bf16).unwrap();
    let frames = model.config.defaults.key_frames as usize;
    assert_eq!(model.latent_frames(frames), Some(frames));
    assert_eq!(model.latent_frames(0), None);
    assert!((model.config.defaults.size.width as usize).is_multiple_of(model.config.size_multiple_px()));
}

#[test]
fn models_of_other_families_are_refused_by_the_part_that_we_lack() {
    let gemma = refusal(|folder| {
        fs::write(
            folder.join("text_encoder/config.json"),
            r#"{"architectures": ["Gemma3Model"], "model_type": "gemma3"}"#,
        )
        .unwrap();
    });
    assert_says(&gemma, &["text encoder Gemma3Model", "not supported yet"]);
    let clip = refusal(|folder| {
        replace(&folder.join("transformer/config.json"), r#""image_dim": null"#, r#""image_dim": 1280"#)
    });
    assert_says(&clip, &["image_dim and added_kv_proj_dim"]);
    let ltx = refusal(|folder| replace(&folder.join("model_index.json"), "WanPipeline", "LTXPipeline"));
    assert_says(&ltx, &["LTXPipeline", "not supported yet"]);
}

#[test]
fn damaged_weights_are_named_by_file_and_tensor() {
    let cut = refusal(|folder| {
        let file = fs::OpenOptions::new().write(true).open(folder.join(TRANSFORMER)).unwrap();
        file.set_len(1_000_000).unwrap();
    });
    assert_says(&cut, &[TRANSFORMER, "cut off"]);
    let absurd = refusal(|folder| {
        let mut bytes = fs::read(folder.join(TRANSFORMER)).unwrap();
        bytes[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        fs::write(folder.join(TRANSFORMER), bytes).unwrap();
    });
    assert_says(&absurd, &[TRANSFORMER, "header would be 1152921504606846976 bytes"]);
    let not_finite = refusal(|folder| {
        // The last tensor ends with the file; 0xffff is a NaN in bf16.
        let mut bytes = fs::read(folder.join(TRANSFORMER)).unwrap();
        let end = bytes.len();
        bytes[end - 2..].fill(0xff);
        fs::write(folder.join(TRANSFORMER), bytes).unwrap();
    });
    assert_says(&not_finite, &[TRANSFORMER, "NaN"]);
    let missing = refusal(|folder| fs::remove_file(folder.join(TRANSFORMER)).unwrap());
    assert_says(&missing, &["transformer", "no weights"]);
}

#[test]
fn configs_that_do_not_fit_the_weights_or_each_other_are_refused() {
    let wider = refusal(|folder| replace(&folder.join("transformer/config.json"), r#""ffn_dim": "#, r#""ffn_dim": 1"#));
    assert_says(&wider, &["ffn.net", "the config needs"]);
    let more_channels =
        |folder: &Path| replace(&folder.join("transformer/config.json"), r#""in_channels": "#, r#""in_channels": 1"#);
    assert_says(&refusal(more_channels), &["in_channels", "the conditioning needs"]);
    let unknown = refusal(|folder| {
        more_channels(folder);
        replace(&folder.join("model_index.json"), r#""conditioning": "mask1","#, "");
    });
    assert_says(&unknown, &["in_channels", "not supported yet"]);
    let no_text =
        refusal(|folder| replace(&folder.join("model_index.json"), r#""text_length": "#, r#""text_length": 9"#));
    assert_says(&no_text, &["max_position_embeddings"]);
    let broken = refusal(|folder| fs::write(folder.join("vae/config.json"), "{").unwrap());
    assert_says(&broken, &["vae/config.json"]);
}

#[test]
fn inputs_of_the_wrong_shape_are_errors_not_panics() {
    let model = VideoModel::load(&ModelFiles::Folder(default_model()), Precision::Bf16).unwrap();
    let zeros = |shape: &[usize]| kernels::Tensor::zeros(shape, Dtype::F32).unwrap();
    let text =
        model.experts[0].transformer.context(&model.text_encoder.encode("a red star").unwrap(), None, None).unwrap();
    let channels = model.experts[0].transformer.config().in_channels;
    for shape in [vec![8, 8, channels], vec![1, 8, 7, channels], vec![1, 8, 8, channels + 1], vec![1, 512, 8, channels]]
    {
        assert!(
            model.experts[0].transformer.forward(&zeros(&shape), Timestep::Clip(500.0), &[&text], None, None).is_err(),
            "{shape:?}"
        );
    }
    assert!(model.experts[0].transformer.context(&zeros(&[4, 3]), None, None).is_err());
    assert!(model.vae.encode(&zeros(&[1, 100, 128, 3])).is_err());
    assert!(model.vae.encode(&zeros(&[1, 128, 128, 4])).is_err());
    assert!(model.vae.decode(&zeros(&[1, 8, 8, 1])).is_err());
}
