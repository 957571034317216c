//! Weights as they lie in memory once they are packed, from the headers of their files.

use crate::error::Result;
use crate::files::ModelFiles;
use crate::precision::Precision;

/// Columns of a panel, columns of a line of a panel, and lines after the last panel, of the kernels' packed matrices.
const PANEL: usize = 32;
const LINE: usize = 16;
const SPARE_LINES: usize = 32;

/// Bytes of the packed weights of a model's parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct WeightBytes {
    /// What encodes prompts and pictures for the transformer.
    pub(super) encoders: u64,
    /// Of all transformers, without their blocks.
    pub(super) around_blocks: u64,
    /// Of all transformers.
    pub(super) blocks: u64,
    /// The largest block.
    pub(super) block_max: u64,
    pub(super) vae: u64,
}

impl WeightBytes {
    /// Reads the headers in `files`; `transformers` are the folders of the transformers.
    pub(super) fn read(files: &ModelFiles, transformers: &[&str], precision: Precision) -> Result<Self> {
        let mut bytes = Self { vae: vae(files, precision)?, ..Self::default() };
        bytes.encoders = encoder(files, "text_encoder", precision)?;
        if files.contains("image_encoder/config.json") {
            bytes.encoders += encoder(files, "image_encoder", precision)?;
        }
        for folder in transformers {
            bytes.add_transformer(files, folder, precision)?;
        }
        Ok(bytes)
    }

    fn add_transformer(&mut self, files: &ModelFiles, folder: &str, precision: Precision) -> Result<()> {
        let weights = files.weights(folder)?;
        let mut by_block = std::collections::BTreeMap::<&str, u64>::new();
        for (name, shape) in weights.names().filter_map(|name| Some((name, weights.shape(name)?))) {
            let block = name.strip_prefix("blocks.").and_then(|rest| rest.split('.').next());
            match (block, shape) {
                (Some(block), &[n, k]) => *by_block.entry(block).or_default() += linear(n, k, precision),
                (Some(block), _) => *by_block.entry(block).or_default() += vector(shape),
                // Time embedding and head are f32; the text's embedding is never in integers.
                (None, &[n, k]) if name.contains("text_embedder") || name.contains("image_embedder") => {
                    self.around_blocks += linear(n, k, precision.without_integers());
                }
                (None, &[n, ref k @ ..]) if name.ends_with("weight") && !k.is_empty() => {
                    self.around_blocks += linear(n, k.iter().product(), Precision::F32);
                }
                (None, _) => self.around_blocks += vector(shape),
            }
        }
        self.blocks += by_block.values().sum::<u64>();
        self.block_max = by_block.into_values().chain([self.block_max]).max().unwrap_or(0);
        Ok(())
    }
}

/// A packed matrix of n outputs and k inputs.
pub(super) fn linear(n: usize, k: usize, precision: Precision) -> u64 {
    let per_word = match precision {
        Precision::F32 => 1,
        Precision::Bf16 => 2,
        Precision::Int8 => 4,
    };
    let scales = if precision == Precision::Int8 { 8 * n.next_multiple_of(PANEL) } else { 0 };
    ((k.div_ceil(per_word) * n.div_ceil(LINE) + SPARE_LINES) * 4 * LINE + scales) as u64
}

/// Everything that is not multiplied as a matrix is f32, some of it filled up to whole panels.
pub(super) fn vector(shape: &[usize]) -> u64 {
    4 * shape.iter().product::<usize>().next_multiple_of(PANEL) as u64
}

fn vae(files: &ModelFiles, precision: Precision) -> Result<u64> {
    let (weights, precision) = (files.weights("vae")?, precision.without_integers());
    let bytes = weights.names().filter_map(|name| {
        let shape = weights.shape(name)?;
        Some(match *shape {
            // An up-sampler is a transposed convolution of 4×4 taps, kept plain and packed.
            [n, k, 3, 3] if name.starts_with("decoder.") => {
                16 * (n * k * precision.activations().size_bytes()) as u64 + linear(n, 16 * k, precision)
            }
            [n, k, ref taps @ ..] if !taps.is_empty() && name.ends_with("weight") => {
                linear(n, k.next_multiple_of(2) * taps.iter().product::<usize>(), precision)
            }
            _ => vector(shape),
        })
    });
    Ok(bytes.sum())
}

/// Matrices in the precision of the encoder (BERT's is always f32), all else in f32.
fn encoder(files: &ModelFiles, folder: &str, precision: Precision) -> Result<u64> {
    #[derive(serde::Deserialize)]
    struct Named {
        #[serde(default)]
        model_type: String,
    }
    let named: Named = files.read_json(&format!("{folder}/config.json"))?;
    let precision = if named.model_type == "bert" { Precision::F32 } else { precision.without_integers() };
    let weights = files.weights(folder)?;
    let bytes = weights.names().filter_map(|name| match weights.shape(name)? {
        &[n, k] => Some(linear(n, k, precision)),
        shape => Some(vector(shape)),
    });
    Ok(bytes.sum())
}
