use super::*;
use proptest::prelude::*;
use std::fs;

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

/// Opens, then takes every tensor in both types; the outcome does not matter, the absence of a panic does.
fn exercise(bytes: Vec<u8>) {
    if let Ok(weights) = load(bytes) {
        let names: Vec<String> = weights.names().map(str::to_owned).collect();
        for name in names {
            let shape = weights.shape(&name).unwrap().to_vec();
            let _ = weights.tensor(&name, &shape, Dtype::F32);
            let _ = weights.tensor(&name, &shape, Dtype::Bf16);
            let _ = weights.rows(&name, [2, 2], &[1, 0]);
        }
    }
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
    let fp8 = load(file(r#"{"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}"#, &[0, 0])).unwrap();
    assert!(
        matches!(fp8.tensor("w", &[2], Dtype::F32), Err(ModelError::UnsupportedDtype { dtype, .. }) if dtype == "F8_E4M3")
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
fn an_empty_file_on_disk_is_a_header_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.safetensors"), b"").unwrap();
    assert!(matches!(ModelFiles::Folder(folder.path().to_owned()).weights(""), Err(ModelError::Header { .. })));
}

/// Any sizes at all against a file that holds nothing: refused by the config's check or by the first tensor.
fn load_networks(sizes: &[usize]) {
    let empty = load(file("{}", &[])).unwrap();
    let [a, b, c, d, e, f] = *sizes else { return };
    let config = serde_json::json!({
        "_class_name": "WanTransformer3DModel", "patch_size": [a, b, c], "num_attention_heads": d, "attention_head_dim": e,
        "in_channels": f, "out_channels": a, "text_dim": b, "freq_dim": c, "ffn_dim": d, "num_layers": e,
    });
    let config: crate::transformer::TransformerConfig = serde_json::from_value(config).unwrap();
    let refused = config.check("config.json").is_err();
    assert!(
        refused
            || crate::transformer::WanTransformer::from_weights(&empty.scope(""), config, crate::Precision::F32)
                .is_err()
    );
    let config = serde_json::json!({
        "_class_name": "AutoencoderKLWan", "base_dim": a, "z_dim": b % 20, "dim_mult": [c, d, e], "num_res_blocks": f,
        "temperal_downsample": [true, false], "is_residual": f % 2 == 0, "latents_mean": vec![0.5; b % 20], "latents_std": vec![1.5; b % 20],
    });
    let config: crate::vae::VaeConfig = serde_json::from_value(config).unwrap();
    let refused = config.check("config.json").is_err();
    assert!(refused || crate::vae::WanVae::from_weights(&empty.scope(""), config, Dtype::F32).is_err());
}

proptest! {
    #[test]
    fn hostile_configs_never_panic(sizes in proptest::collection::vec(prop_oneof![0usize..20, any::<usize>()], 6)) {
        load_networks(&sizes);
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        exercise(bytes);
    }

    #[test]
    fn mutated_headers_never_panic(changes in proptest::collection::vec((0usize..180, any::<u8>()), 1..6), cut in 0usize..200) {
        let mut bytes = valid();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(bytes.len().saturating_sub(cut / 8));
        exercise(bytes);
    }

    #[test]
    fn hostile_numbers_never_panic(dims in proptest::collection::vec(any::<u64>(), 0..7), start: u64, end: u64, dtype in "F32|F16|BF16|I64|nonsense") {
        let header = serde_json::json!({ "w": { "dtype": dtype, "shape": dims, "data_offsets": [start, end] } }).to_string();
        exercise(file(&header, &[0; 16]));
    }
}

#[test]
fn rows_are_read_one_by_one_and_checked() {
    let weights = load(valid()).unwrap();
    let rows = weights.rows("a", [2, 2], &[1, 0, 1]).unwrap();
    assert_eq!((rows.shape(), rows.to_vec_f32()), (&[3, 2][..], vec![3.0, 4.0, 1.0, 2.0, 3.0, 4.0]));
    assert!(weights.rows("a", [2, 2], &[2]).unwrap_err().to_string().contains("no row 2"));
    assert!(weights.rows("a", [3, 2], &[0]).unwrap_err().to_string().contains("`a` is [2, 2]"));
}
