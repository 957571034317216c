//! What the fuzz targets run: hostile bytes go in, anything but a panic comes out. The tests run the same functions.

use crate::config::FolderConfig;
use crate::files::ModelFiles;
use crate::transformer::TransformerConfig;
use crate::vae::VaeConfig;
use crate::weights::Weights;
use kernels::Dtype;

/// Reads hostile bytes.
pub type Target = fn(&[u8]);

/// The targets by name: `fuzz/` has a program and a corpus of each name.
pub const TARGETS: [(&str, Target); 3] = [("safetensors", weights), ("gguf", weights), ("descriptions", descriptions)];

/// Opens a weight file and takes every tensor of it in each way.
pub fn weights(bytes: &[u8]) {
    let Ok(weights) = Weights::from_bytes("fuzzed", bytes.to_vec()) else { return };
    let names: Vec<String> = weights.names().map(str::to_owned).collect();
    for name in names {
        let shape = weights.shape(&name).unwrap_or_default().to_vec();
        drop(weights.check(&name, &shape));
        drop(weights.tensor(&name, &shape, Dtype::F32));
        drop(weights.tensor(&name, &shape, Dtype::Bf16));
        if let [rows, columns] = *shape {
            drop(weights.int8(&name, [rows, columns]));
            drop(weights.rows(&name, [rows, columns], &[1, 0]));
        }
    }
}

/// Reads the JSON files that describe a model; in the input they follow one another, with a zero byte between.
pub fn descriptions(bytes: &[u8]) {
    const NAMES: [&str; 4] =
        ["model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json"];
    let parts = NAMES.into_iter().zip(bytes.split(|byte| *byte == 0));
    let files = ModelFiles::memory(parts.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())));
    drop(FolderConfig::load(&files));
    drop(files.read_json::<TransformerConfig>(NAMES[2]).map(|config| config.check(NAMES[2])));
    drop(files.read_json::<VaeConfig>(NAMES[3]).map(|config| config.check(NAMES[3])));
}
