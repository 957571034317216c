//! From a prompt to the states that the transformer attends to.

mod bert;
mod clean;
mod tokenizer;

pub use bert::{Bert, BertConfig, BertEncoder};
pub use clean::clean_prompt;
pub use tokenizer::PromptTokenizer;

use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use kernels::Tensor;
use serde::Deserialize;

/// Encodes prompts for one model.
pub trait TextEncoder: Send + Sync {
    /// The states of `prompt`: [text_length, width] in f32. Rows past the prompt's last token are zero, as Wan was
    /// trained; a prompt that is too long loses its end.
    fn encode(&self, prompt: &str) -> Result<Tensor>;

    /// Rows that [`TextEncoder::encode`] returns.
    fn text_length(&self) -> usize;

    /// Columns that [`TextEncoder::encode`] returns: the transformer's `text_dim`.
    fn width(&self) -> usize;
}

/// Loads the encoder in `text_encoder/` with the tokenizer in `tokenizer/`; `Unsupported` for one that we do not have.
pub fn load_text_encoder(files: &ModelFiles, text_length: usize) -> Result<Box<dyn TextEncoder>> {
    #[derive(Deserialize)]
    struct Architecture {
        #[serde(default)]
        architectures: Vec<String>,
        #[serde(default)]
        model_type: String,
    }
    let found: Architecture = files.read_json("text_encoder/config.json")?;
    let name = found.architectures.first().cloned().unwrap_or(found.model_type);
    if !name.to_lowercase().starts_with("bert") {
        return Err(ModelError::Unsupported(format!("text encoder {name}")));
    }
    let tokenizer = PromptTokenizer::load(files, "tokenizer/tokenizer.json", text_length)?;
    Ok(Box::new(BertEncoder::load(files, "text_encoder", tokenizer)?))
}
