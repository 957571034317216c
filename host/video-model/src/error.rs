//! Why a model could not be loaded or run.

use pipeline::StageError;
use std::io;
use thiserror::Error;

/// Result of this crate's model code.
pub type Result<T> = std::result::Result<T, ModelError>;

/// A model that cannot be loaded, or an input that it cannot take. Files are named as they lie in the model folder.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file of the folder is absent or cannot be read.
    #[error("{file}: cannot be read; check that the model folder is complete")]
    File {
        /// The file.
        file: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A folder holds no weights under any name that we know.
    #[error("{folder}: no weights; expected {expected}")]
    NoWeights {
        /// The folder looked in.
        folder: String,
        /// The names looked for.
        expected: String,
    },
    /// A folder holds several weight files and nothing says which one is meant.
    #[error("{folder}: {count} {ending} files and no index; leave the one that is meant")]
    AmbiguousWeights {
        /// The folder.
        folder: String,
        /// How many there are.
        count: usize,
        /// The kind of file.
        ending: &'static str,
    },
    /// A JSON file or a tokenizer does not say what we need.
    #[error("{file}: {detail}")]
    Config {
        /// The file.
        file: String,
        /// The key at fault and what it should be.
        detail: String,
    },
    /// A weight file is not a whole file of its format.
    #[error("{file}: not a valid {format} file: {detail}; download it again")]
    Header {
        /// The file.
        file: String,
        /// `safetensors` or `GGUF`.
        format: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// The index names a weight file that is not there.
    #[error("{index}: shard {shard} is missing; download it again")]
    MissingShard {
        /// The index file.
        index: String,
        /// The absent file.
        shard: String,
    },
    /// No weight file holds the tensor.
    #[error("{file}: there is no tensor `{tensor}`")]
    MissingTensor {
        /// The file, or the folder of several.
        file: String,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor has another shape than the config says.
    #[error("{file}: `{tensor}` is {found:?}, the config needs {expected:?}")]
    WrongShape {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The shape that the config asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a type that we do not read.
    #[error(
        "{file}: `{tensor}` is stored as {dtype}; F32, F16, BF16, F8_E4M3, I8 with a scale, and GGUF's Q2_K to Q8_0 are read"
    )]
    UnsupportedDtype {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The stored type.
        dtype: String,
    },
    /// A scale beside a quantised tensor is neither one number nor one a row.
    #[error("{file}: `{tensor}` is {found:?}; one scale, or one for each of {rows} rows, is read")]
    ScaleShape {
        /// The file.
        file: String,
        /// The scale's name.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// Rows of the tensor that it scales.
        rows: usize,
    },
    /// A weight is NaN or infinite: the file is damaged, or the model was.
    #[error("{file}: `{tensor}` holds {value} at element {index}")]
    NotFinite {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Index of the first such element.
        index: usize,
        /// NaN or ±inf.
        value: f32,
    },
    /// A tensor of an adapter file does not fit the model, or the file's other tensors.
    #[error("{file}: `{tensor}` {detail}")]
    Adapter {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it, and what it should be.
        detail: String,
    },
    /// A model that we know of and cannot run.
    #[error("{0} is not supported yet")]
    Unsupported(String),
    /// An input does not fit the model.
    #[error("{0}")]
    Input(String),
    /// An operation refused its tensors: config and weights disagree.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
}

impl ModelError {
    /// The outcome of a stage that it ends; `about` says what was at work.
    pub(crate) fn of_stage(&self, about: &str) -> StageError {
        match self {
            Self::Kernel(error) if error.spoils_device() => {
                tracing::error!(%error, about, "the device failed");
                StageError::DeviceFailed { own_step: true }
            }
            Self::Kernel(error @ kernels::Error::DeviceMemory { .. }) => {
                StageError::Unavailable(format!("the device has no memory left for this job: {error}"))
            }
            other => StageError::Internal(format!("{about}{other}")),
        }
    }

    /// A `Config` error.
    pub(crate) fn config(file: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Config { file: file.into(), detail: detail.into() }
    }
}
