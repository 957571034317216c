//! From a prompt to the states that the transformer attends to.

mod bert;
mod clean;
mod folder;
mod t5;
mod tokenizer;

pub use bert::{Bert, BertConfig};
pub use clean::clean_prompt;
pub use folder::{FolderEncoder, load_text_encoder};
pub use t5::{T5, T5Config};
pub use tokenizer::PromptTokenizer;

use crate::error::{ModelError, Result};
use kernels::{Dtype, Tensor};

/// Encodes prompts for one model.
pub trait TextEncoder: Send + Sync {
    /// The states of each prompt: [text_length, width] in f32. Rows past the prompt's last token are zero, as Wan was
    /// trained; a prompt that is too long loses its end. Prompts that come together share the passes over the weights.
    fn encode_all(&self, prompts: &[&str]) -> Result<Vec<Tensor>>;

    /// [`TextEncoder::encode_all`] of one prompt.
    fn encode(&self, prompt: &str) -> Result<Tensor> {
        let none = || ModelError::Input("the text encoder gave no states".to_owned());
        self.encode_all(&[prompt])?.pop().ok_or_else(none)
    }

    /// Brings the weights into memory, if they are not; may take long. Encoding does it too, at the cost of its caller.
    fn prepare(&self) -> Result<()>;

    /// Rows that [`TextEncoder::encode`] returns.
    fn text_length(&self) -> usize;

    /// Columns that [`TextEncoder::encode`] returns: the transformer's `text_dim`.
    fn width(&self) -> usize;

    /// Names everything that states depend on beside the prompt: weights, tokenizer, sizes, precision.
    fn digest(&self) -> &str;

    /// Bytes of weights held at present, beyond those that are mapped.
    fn resident_bytes(&self) -> u64;
}

/// The network of a text encoder, without its tokenizer.
pub trait TextNetwork: Send + Sync {
    /// The last states of each text's tokens: [ids, width] in f32.
    ///
    /// Padding is not needed: it would be masked out of every attention, so rows without it come out the same.
    fn states(&self, texts: &[Vec<u32>]) -> Result<Vec<Tensor>>;

    /// Bytes of weights held, beyond those that are mapped.
    fn resident_bytes(&self) -> u64;
}

/// States with rows of zeros behind them, `rows` in all.
pub(crate) fn padded(states: &Tensor, rows: usize) -> Result<Tensor> {
    let &[used, width] = states.shape() else {
        return Err(ModelError::Input(format!("text states of shape {:?}", states.shape())));
    };
    if used >= rows {
        return Ok(states.clone());
    }
    Ok(Tensor::concat_outer(&[states, &Tensor::zeros(&[rows - used, width], Dtype::F32)?])?)
}
