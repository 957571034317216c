//! Text and image encoders against transformers and diffusers, pictures against Pillow (goldens of
//! `tests/parity/encoders.py`).
//!
//! Tolerances are relative root mean square errors, as in `parity_networks.rs`: in f32 only the order of summation differs,
//! in bf16 each product reads operands with a relative error of up to 2^-9. Resampled pictures are equal to the byte.

// The errors are printed for the table in tests/parity/README.md.
#![allow(clippy::print_stdout)]

use kernels::{Dtype, Tensor};
use pipeline::{Frame, FrameSize};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use video_model::image_encoder::{ClipVision, ImageEncoder};
use video_model::picture::{Filter, resample};
use video_model::text::{T5, load_text_encoder};
use video_model::weights::Weights;
use video_model::{ModelFiles, Precision};

const F32_MAX: f64 = 1e-5;
const BF16_MAX: f64 = 2e-2;

struct Golden {
    bytes: Vec<u8>,
    tensors: Weights,
}

impl Golden {
    fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens");
        let bytes = fs::read(folder.join(format!("{name}.safetensors"))).unwrap();
        Self { tensors: Weights::from_bytes(name, bytes.clone()).unwrap(), bytes }
    }

    fn metadata(&self, key: &str) -> &str {
        self.tensors.metadata(key).unwrap()
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.tensors.tensor(name, self.tensors.shape(name).unwrap(), Dtype::F32).unwrap()
    }

    fn picture(&self, name: &str) -> Frame {
        let &[height, width, 3] = self.tensors.shape(name).unwrap() else { panic!("{name} is no picture") };
        let rgb = self.tensor(name).to_vec_f32().iter().map(|v| *v as u8).collect();
        Frame::new(FrameSize { width: width as u32, height: height as u32 }, rgb).unwrap()
    }

    /// The golden's weights as a published folder has them: a file per part of `names`, with an index when there are more.
    fn write_weights(&self, folder: &Path, parts: usize) {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let mut tensors: Vec<(String, TensorView<'_>)> = file
            .tensors()
            .into_iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix("weights.")?.to_owned(), tensor)))
            .collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        fs::create_dir_all(folder).unwrap();
        if parts == 1 {
            fs::write(folder.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
            return;
        }
        let mut map = serde_json::Map::new();
        for (part, tensors) in tensors.chunks(tensors.len().div_ceil(parts)).enumerate() {
            let name = format!("model-{:05}-of-{parts:05}.safetensors", part + 1);
            map.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), name.clone().into())));
            fs::write(folder.join(&name), safetensors::serialize(tensors.to_vec(), None).unwrap()).unwrap();
        }
        let index = serde_json::json!({"metadata": {}, "weight_map": map});
        fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
}

fn relative_rmse(ours: &Tensor, reference: &Tensor) -> f64 {
    assert_eq!(ours.shape(), reference.shape());
    let (ours, reference) = (ours.to_vec_f32(), reference.to_vec_f32());
    let square_sum = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = square_sum(&mut ours.iter().zip(&reference).map(|(a, b)| f64::from(a - b)));
    (error / square_sum(&mut reference.iter().map(|v| f64::from(*v)))).sqrt()
}

#[track_caller]
fn assert_close(what: &str, ours: &Tensor, reference: &Tensor, max: f64) {
    let relative = relative_rmse(ours, reference);
    println!("{what}: relative RMSE {relative:.1e}");
    assert!(relative <= max, "{what}: relative RMSE {relative:.1e} is over {max:.0e}");
}

fn text_folder(golden: &Golden) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    golden.write_weights(&folder.path().join("text_encoder"), 2);
    fs::write(folder.path().join("text_encoder/config.json"), golden.metadata("config")).unwrap();
    fs::create_dir(folder.path().join("tokenizer")).unwrap();
    fs::write(folder.path().join("tokenizer/tokenizer.json"), golden.metadata("tokenizer")).unwrap();
    folder
}

fn files(folder: &TempDir) -> ModelFiles {
    ModelFiles::Folder(folder.path().to_owned())
}

/// The whole way from a prompt, as diffusers' pipeline goes it: cleaned, cut, run with its mask, zeros behind.
fn check_prompts(name: &str, precision: Precision, max: f64) {
    let golden = Golden::open(name);
    let folder = text_folder(&golden);
    let text_length = golden.metadata("text_length").parse().unwrap();
    let encoder = load_text_encoder(&files(&folder), text_length, precision).unwrap();
    let prompts: Vec<String> = serde_json::from_str(golden.metadata("prompts")).unwrap();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    assert_eq!(encoder.resident_bytes(), 0, "nothing is read before the first prompt");
    let together = encoder.encode_all(&prompts).unwrap();
    assert!(encoder.resident_bytes() > 0);
    for (i, (prompt, states)) in prompts.iter().zip(&together).enumerate() {
        assert_close(
            &format!("{name} {precision} {prompt:?}"),
            states,
            &golden.tensor(&format!("out.prompt.{i}")),
            max,
        );
        assert_eq!(states.to_vec_f32(), encoder.encode(prompt).unwrap().to_vec_f32(), "alone and together are one");
    }
}

/// Layer by layer, with the layers in memory and with each packed in its turn.
fn check_layers(name: &str, dtype: Dtype, max: f64) {
    let golden = Golden::open(name);
    let folder = text_folder(&golden);
    let ids: Vec<u32> = golden.tensor("in.token_ids").to_vec_f32().iter().map(|id| *id as u32).collect();
    let states = [true, false].map(|resident| {
        let weights = Arc::new(files(&folder).weights("text_encoder").unwrap());
        let config = serde_json::from_str(golden.metadata("config")).unwrap();
        let network = T5::new(Arc::clone(&weights), config, dtype, resident).unwrap();
        let check = |layers: usize, _: usize, x: &Tensor| {
            let reference = golden.tensor(&format!("out.states.{layers}"));
            assert_close(&format!("{name} {dtype:?} after {layers} layers"), x, &reference, max);
        };
        let last = network.states_traced(std::slice::from_ref(&ids), check).unwrap().remove(0);
        assert!(weights.unused().is_empty(), "not read: {:?}", weights.unused());
        last
    });
    assert_close(&format!("{name} {dtype:?}"), &states[0], &golden.tensor("out.last"), max);
    assert_eq!(states[0].to_vec_f32(), states[1].to_vec_f32(), "a streamed layer is the resident one");
}

#[test]
fn umt5_matches_transformers_layer_by_layer_resident_or_streamed() {
    check_layers("umt5_tiny", Dtype::F32, F32_MAX);
    check_layers("umt5_tiny", Dtype::Bf16, BF16_MAX);
}

#[test]
fn t5_with_one_position_table_and_relu_matches_transformers() {
    check_layers("t5_tiny", Dtype::F32, F32_MAX);
    check_layers("t5_tiny", Dtype::Bf16, BF16_MAX);
}

#[test]
fn prompts_through_umt5_are_diffusers_conditioning() {
    check_prompts("umt5_tiny", Precision::F32, F32_MAX);
    check_prompts("umt5_tiny", Precision::Bf16, BF16_MAX);
    check_prompts("t5_tiny", Precision::F32, F32_MAX);
}

#[test]
fn the_digest_follows_weights_tokenizer_length_and_precision() {
    let golden = Golden::open("umt5_tiny");
    let folder = text_folder(&golden);
    let digest = |length, precision| load_text_encoder(&files(&folder), length, precision).unwrap().digest().to_owned();
    let first = digest(24, Precision::F32);
    assert_eq!(first, digest(24, Precision::F32));
    assert!(first != digest(25, Precision::F32) && first != digest(24, Precision::Bf16));
    golden.write_weights(&folder.path().join("text_encoder"), 3);
    assert_eq!(first, digest(24, Precision::F32), "how tensors are spread over files does not matter");
    let path = folder.path().join("text_encoder/model-00002-of-00003.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let other_weights = digest(24, Precision::F32);
    assert!(first != other_weights);
    let tokenizer = folder.path().join("tokenizer/tokenizer.json");
    fs::write(&tokenizer, fs::read_to_string(&tokenizer).unwrap() + " ").unwrap();
    assert!(other_weights != digest(24, Precision::F32));
}

#[test]
fn a_text_encoder_that_does_not_fit_its_config_is_named() {
    let golden = Golden::open("umt5_tiny");
    let refusal = |change: &dyn Fn(&Path)| {
        let folder = text_folder(&golden);
        change(&folder.path().join("text_encoder"));
        let encoder = load_text_encoder(&files(&folder), 24, Precision::F32);
        encoder.and_then(|encoder| encoder.encode("a cat").map(drop)).unwrap_err().to_string()
    };
    let edit = |folder: &Path, from: &str, to: &str| {
        let path = folder.join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(path, text.replace(from, to)).unwrap();
    };
    let shard = |folder: &Path| folder.join("model-00001-of-00002.safetensors");
    let wider = refusal(&|folder| edit(folder, r#""d_ff": 44"#, r#""d_ff": 45"#));
    assert!(wider.contains("DenseReluDense.wi_0.weight") && wider.contains("the config needs"), "{wider}");
    let words = refusal(&|folder| edit(folder, r#""vocab_size": 45"#, r#""vocab_size": 46"#));
    assert!(words.contains("shared.weight"), "{words}");
    let missing = refusal(&|folder| fs::remove_file(shard(folder)).unwrap());
    assert!(missing.contains("model-00001-of-00002.safetensors is missing"), "{missing}");
    let cut = refusal(&|folder| {
        let file = fs::OpenOptions::new().write(true).open(shard(folder)).unwrap();
        file.set_len(file.metadata().unwrap().len() - 5).unwrap();
    });
    assert!(cut.contains("model-00001-of-00002.safetensors") && cut.contains("cut off"), "{cut}");
    let other = refusal(&|folder| edit(folder, "UMT5EncoderModel", "GemmaModel"));
    assert!(other.contains("text encoder GemmaModel") && other.contains("config.json"), "{other}");
}

fn image_folder(golden: &Golden) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    golden.write_weights(&folder.path().join("image_encoder"), 1);
    fs::write(folder.path().join("image_encoder/config.json"), golden.metadata("config")).unwrap();
    fs::create_dir(folder.path().join("image_processor")).unwrap();
    let processor = folder.path().join("image_processor/preprocessor_config.json");
    fs::write(processor, golden.metadata("processor")).unwrap();
    folder
}

fn check_image_encoder(name: &str, precision: Precision, max: f64) {
    let dtype = precision.activations();
    let golden = Golden::open(name);
    let folder = image_folder(&golden);
    let encoder = ImageEncoder::load(&files(&folder), "image_encoder", "image_processor", precision).unwrap();
    let states = encoder.encode(&golden.picture("in.picture")).unwrap();
    assert_eq!(states.shape(), [encoder.tokens(), encoder.width()]);
    assert_close(&format!("{name} {dtype:?} from the picture"), &states, &golden.tensor("out.image"), max);

    let config = serde_json::from_str(golden.metadata("config")).unwrap();
    let weights = files(&folder).weights("image_encoder").unwrap();
    let network = ClipVision::load(&weights, config, dtype).unwrap();
    let pixels = kernels::channels_last(&golden.tensor("in.pixels")).unwrap();
    let check = |layers: usize, x: &Tensor| {
        let reference = golden.tensor(&format!("out.states.{layers}"));
        assert_close(&format!("{name} {dtype:?} after {layers} layers"), x, &reference, max);
    };
    network.states_traced(&pixels, check).unwrap();
    let last = format!("encoder.layers.{}.", network.config().num_hidden_layers - 1);
    let expected =
        |name: &&str| name.contains(&last) || name.contains("post_layernorm") || name.contains("position_ids");
    let forgotten: Vec<_> = weights.unused().into_iter().filter(|name| !expected(name)).collect();
    assert!(forgotten.is_empty(), "not read: {forgotten:?}");
}

#[test]
fn clip_vision_matches_transformers_from_the_picture_on() {
    check_image_encoder("clip_vision_tiny", Precision::F32, F32_MAX);
    check_image_encoder("clip_vision_tiny", Precision::Bf16, BF16_MAX);
}

#[test]
fn clip_vision_with_gelu_and_names_without_a_prefix_matches_transformers() {
    check_image_encoder("clip_vision_gelu", Precision::F32, F32_MAX);
    check_image_encoder("clip_vision_gelu", Precision::Bf16, BF16_MAX);
}

#[test]
fn an_image_encoder_that_does_not_fit_its_processor_is_named() {
    let golden = Golden::open("clip_vision_gelu");
    let folder = image_folder(&golden);
    let load = || ImageEncoder::load(&files(&folder), "image_encoder", "image_processor", Precision::F32);
    let processor: PathBuf = folder.path().join("image_processor/preprocessor_config.json");
    fs::write(&processor, r#"{"size": 30, "crop_size": 30}"#).unwrap();
    let refused = load().err().unwrap().to_string();
    assert!(refused.contains("preprocessor_config.json") && refused.contains("image_size is 28"), "{refused}");
    fs::write(&processor, golden.metadata("processor")).unwrap();
    let config = folder.path().join("image_encoder/config.json");
    fs::write(&config, golden.metadata("config").replace("CLIPVisionModel", "SiglipVisionModel")).unwrap();
    let refused = load().err().unwrap().to_string();
    assert!(refused.contains("SiglipVisionModel"), "{refused}");
}

#[test]
fn pictures_are_resampled_byte_for_byte_as_pillow_does() {
    let golden = Golden::open("picture_resize");
    let source = golden.picture("in.picture");
    let mut compared = 0;
    for name in golden.tensors.names().filter(|name| name.starts_with("out.")) {
        let filter = if name.contains("lanczos") { Filter::Lanczos } else { Filter::Bicubic };
        let expected = golden.picture(name);
        let ours = resample(&source, expected.size(), filter);
        let differing = ours.rgb().iter().zip(expected.rgb()).filter(|(a, b)| a != b).count();
        assert_eq!(differing, 0, "{name}: bytes that differ of {}", expected.rgb().len());
        compared += 1;
    }
    assert_eq!(compared, 8);
}
