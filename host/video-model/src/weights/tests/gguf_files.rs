//! GGUF: every type that is read equals ggml's own reading, and damage is refused.

use super::*;

const GOLDEN: &[u8] = include_bytes!("../../../../../tests/parity/goldens/gguf_tiny.gguf");
const EXPECTED: &[u8] = include_bytes!("../../../../../tests/parity/goldens/gguf_tiny.safetensors");

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A tensor's line in the header: dimensions with the innermost first, ggml's type, offset.
fn info(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims_bytes = dims.iter().flat_map(|d| d.to_le_bytes());
    let head = [string(name), (dims.len() as u32).to_le_bytes().to_vec()].concat();
    head.into_iter().chain(dims_bytes).chain(kind.to_le_bytes()).chain(offset.to_le_bytes()).collect()
}

fn gguf(values: &[Vec<u8>], tensors: &[Vec<u8>], data: &[u8]) -> Vec<u8> {
    let counts = [(tensors.len() as u64).to_le_bytes(), (values.len() as u64).to_le_bytes()].concat();
    let mut bytes = [&b"GGUF\x03\0\0\0"[..], &counts, &values.concat(), &tensors.concat()].concat();
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(data);
    bytes
}

fn text_value(key: &str, value: &str) -> Vec<u8> {
    [string(key), 8u32.to_le_bytes().to_vec(), string(value)].concat()
}

/// A row of f32 and a block of Q8_0.
pub(super) fn small() -> Vec<u8> {
    let tensors = [info("a", &[2, 1], 0, 0), info("b", &[32], 8, 32)];
    let data = [&1f32.to_le_bytes()[..], &2f32.to_le_bytes(), &[0; 24], &[0, 0x3c], &[3; 32]].concat();
    gguf(&[text_value("general.architecture", "wan")], &tensors, &data)
}

fn says(bytes: Vec<u8>, words: &[&str]) {
    let message = Weights::from_bytes("wan.gguf", bytes).unwrap_err().to_string();
    assert!(words.iter().chain(&["wan.gguf"]).all(|word| message.contains(word)), "{message}");
}

#[test]
fn every_type_is_read_as_ggml_reads_it_and_the_original_dialect_is_understood() {
    let expected = Weights::from_bytes("expected", EXPECTED).unwrap();
    let weights = Weights::from_bytes("gguf_tiny.gguf", GOLDEN).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
    assert_eq!(weights.metadata("general.architecture"), Some("wan"));
    for name in expected.names().filter(|name| *name != "proj_out.weight") {
        let shape = expected.shape(name).unwrap();
        let (a, b) = (weights.tensor(name, shape, Dtype::F32), expected.tensor(name, shape, Dtype::F32));
        let (a, b) = (a.unwrap().to_vec_f32(), b.unwrap().to_vec_f32());
        // One rounding more or less where a formula is summed in another order.
        let close = a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs().max(1.0));
        assert!(close, "{name} ({})", weights.stored_dtype(name).unwrap());
    }
    let kinds: std::collections::BTreeSet<_> = weights.names().filter_map(|name| weights.stored_dtype(name)).collect();
    assert_eq!(kinds.len(), 13, "{kinds:?}");
    weights.tensor("proj_out.weight", &[3, 8], Dtype::Bf16).unwrap();
    assert!(weights.unused().is_empty());
}

#[test]
fn dimensions_of_one_may_be_missing_and_no_others() {
    let weights = Weights::from_bytes("wan.gguf", small()).unwrap();
    for shape in [vec![1, 2], vec![2], vec![2, 1, 1]] {
        assert_eq!(weights.tensor("a", &shape, Dtype::F32).unwrap().to_vec_f32(), [1.0, 2.0]);
    }
    assert!(matches!(weights.tensor("b", &[16, 2], Dtype::F32), Err(ModelError::WrongShape { .. })));
    assert_eq!(weights.tensor("b", &[32], Dtype::Bf16).unwrap().to_vec_f32(), [3.0; 32]);
}

#[test]
fn a_shape_that_the_converter_noted_is_given_back() {
    let numbers: Vec<u8> = [2u32, 1, 1, 2].iter().flat_map(|n| n.to_le_bytes()).collect();
    let key = string("comfy.gguf.orig_shape.a");
    let noted =
        [key, 9u32.to_le_bytes().to_vec(), 5u32.to_le_bytes().to_vec(), 4u64.to_le_bytes().to_vec(), numbers].concat();
    let data = [0; 16];
    let weights =
        Weights::from_bytes("wan.gguf", gguf(std::slice::from_ref(&noted), &[info("a", &[4], 0, 0)], &data)).unwrap();
    assert_eq!(weights.shape("a"), Some(&[2, 1, 1, 2][..]));
    says(gguf(&[noted], &[info("a", &[3], 0, 0)], &data), &["`a`", "cannot have been"]);
}

#[test]
fn each_kind_of_damage_names_the_file_and_the_tensor() {
    let whole = small();
    says(whole[..whole.len() - 1].to_vec(), &["`b`", "cut off"]);
    says(whole[..60].to_vec(), &["ends within its header"]);
    says(b"GGUF\x03\0\0".to_vec(), &["ends within its header"]);
    says(b"GGUF\0\0\0\x03".to_vec(), &["version 50331648"]);
    says(gguf(&[], &[info("odd", &[31], 8, 0)], &[0; 64]), &["`odd`", "whole blocks"]);
    says(gguf(&[], &[info("vast", &[1 << 40, 1 << 40], 0, 0)], &[]), &["`vast`", "larger than any file"]);
    says(gguf(&[], &[info("far", &[1], 0, u64::MAX)], &[]), &["`far`", "larger than any file"]);
    says(gguf(&[], &[info("deep", &[1; 9], 0, 0)], &[]), &["`deep`", "9 dimensions"]);
    says(gguf(&[], &[info("a", &[1], 0, 0), info("a", &[1], 0, 0)], &[0; 4]), &["`a`", "twice"]);
    says(gguf(&[[string("k"), 77u32.to_le_bytes().to_vec()].concat()], &[], &[]), &["unknown type 77"]);
}

#[test]
fn types_that_are_not_read_and_values_that_are_no_numbers_are_typed_errors() {
    let bytes = gguf(&[], &[info("iq", &[256], 16, 0), info("nan", &[1], 0, 0)], &f32::NAN.to_le_bytes());
    let weights = Weights::from_bytes("wan.gguf", bytes).unwrap();
    assert!(
        matches!(weights.tensor("iq", &[256], Dtype::F32), Err(ModelError::UnsupportedDtype { dtype, .. }) if dtype == "ggml type 16")
    );
    assert!(matches!(weights.tensor("nan", &[1], Dtype::F32), Err(ModelError::NotFinite { .. })));
}

#[test]
fn a_folder_may_hold_a_gguf_file_of_this_family_and_of_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let files = ModelFiles::Folder(folder.path().to_owned());
    fs::write(folder.path().join("wan2.1-t2v-1.3b-Q4_K_M.gguf"), GOLDEN).unwrap();
    assert!(files.weights("").unwrap().shape("blocks.0.attn1.to_q.weight").is_some());
    let other = gguf(&[text_value("general.architecture", "llama")], &[info("token_embd.weight", &[1], 0, 0)], &[0; 4]);
    fs::write(folder.path().join("wan2.1-t2v-1.3b-Q4_K_M.gguf"), other).unwrap();
    let refused = files.weights("").unwrap_err().to_string();
    assert!(refused.contains("GGUF architecture `llama`") && refused.contains("Q4_K_M.gguf"), "{refused}");
}
