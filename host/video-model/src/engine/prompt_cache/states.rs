//! Text states without the zeros behind them.

use super::PromptKey;
use crate::error::{ModelError, Result};
use crate::weights::Weights;
use kernels::{Dtype, Tensor};
use safetensors::Dtype as StoredDtype;
use safetensors::tensor::TensorView;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// States [text_length, width] of one prompt: only the rows up to its last token are held.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine) struct TextStates {
    text_length: usize,
    width: usize,
    /// Row by row.
    values: Vec<f32>,
}

/// The tensor's name in a file; `__metadata__` has the keys below.
const STATES: &str = "states";
const KEY: &str = "key";
const TEXT_LENGTH: &str = "text_length";
const CHECKSUM: &str = "sha256";

/// Texts of more rows are not believed: the longest that a model takes is 512.
const TEXT_LENGTH_MAX: usize = 1 << 20;

impl TextStates {
    /// None for anything but a matrix of f32.
    pub(in crate::engine) fn new(states: &Tensor) -> Option<Self> {
        let &[text_length, width] = states.shape() else { return None };
        if states.dtype() != Dtype::F32 || width == 0 {
            return None;
        }
        let mut values = states.to_vec_f32();
        let used = values.iter().rposition(|v| *v != 0.0).map_or(0, |last| last / width + 1);
        values.truncate(used * width);
        values.shrink_to_fit();
        Some(Self { text_length, width, values })
    }

    /// All rows, as the encoder gave them.
    pub(in crate::engine) fn tensor(&self) -> Result<Tensor> {
        let mut values = Vec::with_capacity(self.text_length * self.width);
        values.extend_from_slice(&self.values);
        values.resize(self.text_length * self.width, 0.0);
        Ok(Tensor::from_vec(values, &[self.text_length, self.width])?)
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.values.len() * size_of::<f32>()) as u64
    }

    /// A safetensors file with the rows, the key that they belong to and a checksum of them.
    pub(super) fn to_file(&self, key: PromptKey) -> Result<Vec<u8>> {
        let bytes: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let metadata = HashMap::from([
            (KEY.to_owned(), hex::encode(key.0)),
            (TEXT_LENGTH.to_owned(), self.text_length.to_string()),
            (CHECKSUM.to_owned(), checksum(&self.values)),
        ]);
        let failed = |e: &dyn std::error::Error| ModelError::Input(format!("text states cannot be stored: {e}"));
        let shape = vec![self.values.len() / self.width, self.width];
        let view = TensorView::new(StoredDtype::F32, shape, &bytes).map_err(|e| failed(&e))?;
        safetensors::serialize([(STATES, view)], Some(metadata)).map_err(|e| failed(&e))
    }

    /// The states in a file; the error says what is wrong with it.
    pub(super) fn from_file(name: &str, bytes: Vec<u8>, key: PromptKey) -> Result<Self> {
        let damaged = |detail: &str| ModelError::Header {
            file: name.to_owned(),
            format: "safetensors",
            detail: detail.to_owned(),
        };
        let file = Weights::from_bytes(name, bytes)?;
        if file.metadata(KEY) != Some(hex::encode(key.0).as_str()) {
            return Err(damaged("it belongs to another prompt"));
        }
        let text_length = file.metadata(TEXT_LENGTH).and_then(|rows| rows.parse::<usize>().ok());
        let (Some(text_length), Some(&[rows, width])) = (text_length, file.shape(STATES)) else {
            return Err(damaged("its states are not a matrix"));
        };
        if rows > text_length || text_length > TEXT_LENGTH_MAX || width == 0 {
            return Err(damaged("its states have an impossible size"));
        }
        let values = file.tensor(STATES, &[rows, width], Dtype::F32)?.to_vec_f32();
        if file.metadata(CHECKSUM) != Some(checksum(&values).as_str()) {
            return Err(damaged("its checksum does not hold"));
        }
        Ok(Self { text_length, width, values })
    }
}

fn checksum(values: &[f32]) -> String {
    let mut hasher = Sha256::new();
    values.iter().for_each(|v| hasher.update(v.to_le_bytes()));
    hex::encode(hasher.finalize())
}
