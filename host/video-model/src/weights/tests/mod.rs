//! What is read comes back exactly; what is damaged is refused by file and tensor.

mod fuzzed;
mod gguf_files;
mod scaled;

use super::*;
use crate::files::ModelFiles;
use std::fs;
use std::time::{Duration, Instant};

/// A safetensors file with one f32 tensor `a` [2, 2] and one bf16 tensor `b` [2].
fn valid() -> Vec<u8> {
    let header = r#"{"__metadata__":{"made":"here"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[16,20]}}"#;
    let mut data: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    data.extend([bf16::from_f32(0.5), bf16::from_f32(-2.0)].iter().flat_map(|v| v.to_le_bytes()));
    file(header, &data)
}

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn load(bytes: Vec<u8>) -> Result<Weights> {
    Weights::from_bytes("model.safetensors", bytes)
}
#[test]
fn tensors_come_back_converted_and_the_rest_is_reported() {
    let weights = load(valid()).unwrap();
    assert_eq!(weights.metadata("made"), Some("here"));
    assert_eq!(weights.unused(), ["a", "b"]);
    assert_eq!(weights.tensor("a", &[2, 2], Dtype::Bf16).unwrap().to_vec_f32(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(weights.unused(), ["b"]);
    assert_eq!(weights.scope("").tensor("b", &[2], Dtype::F32).unwrap().to_vec_f32(), [0.5, -2.0]);
}

#[test]
fn each_kind_of_damage_names_the_file_and_the_tensor() {
    let says = |result: Result<Weights>, words: &[&str]| {
        let message = result.unwrap_err().to_string();
        assert!(words.iter().all(|w| message.contains(w)), "{message}");
    };
    let whole = valid();
    says(load(whole[..whole.len() - 1].to_vec()), &["model.safetensors", "`b`", "cut off"]);
    says(load(whole[..40].to_vec()), &["ends within its header"]);
    says(load(vec![1, 2, 3]), &["cannot hold a header"]);
    says(load([&(1u64 << 60).to_le_bytes()[..], b"{}"].concat()), &["header would be"]);
    let overflow = r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#;
    says(load(file(overflow, &[])), &["`a`", "does not fill"]);
    let beyond = format!(r#"{{"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,{}]}}}}"#, u64::MAX);
    says(load(file(&beyond, &[0])), &["`a`", "cut off"]);
}

#[test]
fn wrong_shapes_types_and_values_are_typed_errors() {
    let weights = load(valid()).unwrap();
    assert!(
        matches!(weights.tensor("a", &[4], Dtype::F32), Err(ModelError::WrongShape { tensor, .. }) if tensor == "a")
    );
    assert!(
        matches!(weights.tensor("c", &[4], Dtype::F32), Err(ModelError::MissingTensor { tensor, .. }) if tensor == "c")
    );
    let complex = load(file(r#"{"w":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8])).unwrap();
    assert!(
        matches!(complex.tensor("w", &[1], Dtype::F32), Err(ModelError::UnsupportedDtype { dtype, .. }) if dtype == "C64")
    );
    let header = r#"{"w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;
    let infinite = load(file(header, &[0, 0, 0x00, 0x7c])).unwrap();
    assert!(matches!(infinite.tensor("w", &[2], Dtype::Bf16), Err(ModelError::NotFinite { index: 1, .. })));
}

#[test]
fn a_sharded_folder_loads_and_a_missing_shard_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("transformer");
    fs::create_dir(&part).unwrap();
    fs::write(part.join("one.safetensors"), valid()).unwrap();
    let two = file(r#"{"c":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &7f32.to_le_bytes());
    fs::write(part.join("two.safetensors"), two).unwrap();
    let index = r#"{"metadata":{},"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}}"#;
    fs::write(part.join("diffusion_pytorch_model.safetensors.index.json"), index).unwrap();
    let files = ModelFiles::Folder(folder.path().to_owned());
    let weights = files.weights("transformer").unwrap();
    assert_eq!(weights.tensor("c", &[1], Dtype::F32).unwrap().to_vec_f32(), [7.0]);
    fs::remove_file(part.join("two.safetensors")).unwrap();
    assert!(
        matches!(files.weights("transformer"), Err(ModelError::MissingShard { shard, .. }) if shard == "two.safetensors")
    );
    let escape = r#"{"weight_map":{"a":"../one.safetensors"}}"#;
    fs::write(part.join("diffusion_pytorch_model.safetensors.index.json"), escape).unwrap();
    assert!(matches!(files.weights("transformer"), Err(ModelError::MissingShard { .. })));
    assert!(matches!(files.weights("vae"), Err(ModelError::NoWeights { .. })));
}

#[test]
fn the_only_weight_file_is_taken_whatever_its_name_and_two_are_ambiguous() {
    let folder = tempfile::tempdir().unwrap();
    let files = ModelFiles::Folder(folder.path().to_owned());
    fs::write(folder.path().join("wan2.1_t2v_1.3B_bf16.safetensors"), valid()).unwrap();
    assert_eq!(files.weights("").unwrap().names().count(), 2);
    fs::write(folder.path().join("another.safetensors"), valid()).unwrap();
    let refused = files.weights("").unwrap_err();
    assert!(matches!(refused, ModelError::AmbiguousWeights { count: 2, .. }), "{refused}");
    fs::write(folder.path().join("diffusion_pytorch_model.safetensors"), valid()).unwrap();
    assert!(files.weights("").is_ok(), "the name that diffusers gives wins");
}

#[test]
fn weights_can_be_shared_between_threads() {
    fn shareable<T: Send + Sync + 'static>(value: T) -> T {
        value
    }
    let weights = std::sync::Arc::new(shareable(load(valid()).unwrap()));
    let taken = std::thread::spawn({
        let weights = std::sync::Arc::clone(&weights);
        move || weights.tensor("a", &[2, 2], Dtype::F32).unwrap().to_vec_f32()
    });
    assert_eq!(taken.join().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(weights.unused(), ["b"]);
}

/// Refusing a damaged file is a matter of its header; a second is generous on a busy machine.
const PATIENCE: Duration = Duration::from_secs(1);

#[test]
fn damage_is_refused_within_a_second_however_large_the_file_is() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = |name: &str, start: &[u8], word: &str| {
        let path = folder.path().join(name);
        fs::write(&path, start).unwrap();
        // Sparse: it takes no room, but is there to be read.
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(32 << 30).unwrap();
        let start = Instant::now();
        let message = ModelFiles::Folder(folder.path().to_owned()).weights("").unwrap_err().to_string();
        assert!(start.elapsed() < PATIENCE, "{name}: {:?}", start.elapsed());
        assert!(message.contains(name) && message.contains(word), "{message}");
        fs::remove_file(path).unwrap();
    };
    refuse("model.safetensors", &(1u64 << 60).to_le_bytes(), "header would be 1152921504606846976 bytes");
    refuse("model.safetensors", &(16u64 << 20).to_le_bytes(), "not a valid safetensors file");
    let many =
        |tensors: u64, values: u64| [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &values.to_le_bytes()].concat();
    refuse("wan.gguf", &many(1 << 60, 0), "tensors");
    refuse("wan.gguf", &many(1, 1 << 60), "not a valid GGUF file");
    // 2^40 strings of nothing in one array: there is room for them in the file, not in a header.
    let array = [&many(1, 1)[..], &[1, 0, 0, 0, 0, 0, 0, 0, b'k', 9, 0, 0, 0, 8, 0, 0, 0], &(1u64 << 40).to_le_bytes()];
    refuse("wan.gguf", &array.concat(), "ends within its header");
}

#[test]
fn an_empty_file_on_disk_is_a_header_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.safetensors"), b"").unwrap();
    assert!(matches!(ModelFiles::Folder(folder.path().to_owned()).weights(""), Err(ModelError::Header { .. })));
}

#[test]
fn rows_are_read_one_by_one_and_checked() {
    let weights = load(valid()).unwrap();
    let rows = weights.rows("a", [2, 2], &[1, 0, 1]).unwrap();
    assert_eq!((rows.shape(), rows.to_vec_f32()), (&[3, 2][..], vec![3.0, 4.0, 1.0, 2.0, 3.0, 4.0]));
    assert!(weights.rows("a", [2, 2], &[2]).unwrap_err().to_string().contains("no row 2"));
    assert!(weights.rows("a", [3, 2], &[0]).unwrap_err().to_string().contains("`a` is [2, 2]"));
}
