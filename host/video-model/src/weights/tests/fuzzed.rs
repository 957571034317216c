//! Hostile bytes and sizes: no panic, whatever they are. The same entry points as the fuzz targets in `fuzz/`.

use super::*;
use crate::fuzzing;
use proptest::prelude::*;
use std::path::Path;

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

/// Every file of the fuzz targets' corpus, as it was found.
#[test]
fn the_corpus_is_refused_or_read_without_a_panic() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (target, run) in fuzzing::TARGETS {
        let mut files = fs::read_dir(corpus.join(target)).unwrap().peekable();
        assert!(files.peek().is_some(), "{target} has no corpus");
        files.for_each(|file| run(&fs::read(file.unwrap().path()).unwrap()));
    }
}

fn mutated(mut bytes: Vec<u8>, changes: Vec<(usize, u8)>, cut: usize) -> Vec<u8> {
    for (at, value) in changes {
        let at = at % bytes.len();
        bytes[at] = value;
    }
    bytes.truncate(bytes.len().saturating_sub(cut));
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6)
}

proptest! {
    #[test]
    fn hostile_configs_never_panic(sizes in proptest::collection::vec(prop_oneof![0usize..20, any::<usize>()], 6)) {
        load_networks(&sizes);
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzzing::weights(&bytes);
    }

    #[test]
    fn mutated_headers_never_panic(changes in changes(), cut in 0usize..200) {
        fuzzing::weights(&mutated(valid(), changes, cut / 8));
    }

    /// Of a small file, so that most changes fall into its header.
    #[test]
    fn mutated_gguf_files_never_panic(changes in changes(), cut in 0usize..200) {
        fuzzing::weights(&mutated(gguf_files::small(), changes, cut / 8));
    }

    #[test]
    fn mutated_descriptions_never_panic(changes in changes(), cut in 0usize..20) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/descriptions/default");
        fuzzing::descriptions(&mutated(fs::read(corpus).unwrap(), changes, cut));
    }

    #[test]
    fn hostile_numbers_never_panic(dims in proptest::collection::vec(any::<u64>(), 0..7), start: u64, end: u64, dtype in "F32|F16|BF16|I8|F8_E4M3|I64|nonsense") {
        let header = serde_json::json!({ "w": { "dtype": dtype, "shape": dims, "data_offsets": [start, end] } }).to_string();
        fuzzing::weights(&file(&header, &[0; 16]));
    }
}
