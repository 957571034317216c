//! The text encoder of a model folder: described when the model loads, in memory when the first prompt needs it.

use super::{Bert, BertConfig, PromptTokenizer, T5, T5Config, TextEncoder, TextNetwork, padded};
use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use crate::memory::available_bytes;
use crate::precision::Precision;
use crate::weights::Weights;
use kernels::{Dtype, Tensor};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

const CONFIG: &str = "text_encoder/config.json";
const TOKENIZER: &str = "tokenizer/tokenizer.json";
/// Part of every digest: to be raised when the same weights give other states than before.
const STATES_VERSION: u32 = 1;

/// The encoder in `text_encoder/` with the tokenizer in `tokenizer/`, for products in `precision` (BERT's are always f32);
/// `Unsupported` for an architecture that we do not have. Weights are mapped and checked to be whole, but not read.
pub fn load_text_encoder(files: &ModelFiles, text_length: usize, precision: Precision) -> Result<Box<dyn TextEncoder>> {
    Ok(Box::new(FolderEncoder::open(files, text_length, precision)?))
}

enum Architecture {
    Bert(BertConfig),
    T5(T5Config),
}

struct Loaded {
    tokenizer: PromptTokenizer,
    network: Box<dyn TextNetwork>,
}

/// A folder's text encoder.
pub struct FolderEncoder {
    files: ModelFiles,
    text_length: usize,
    dtype: Dtype,
    architecture: Architecture,
    weights: Arc<Weights>,
    digest: String,
    loaded: OnceLock<Loaded>,
    /// Held while weights load, so that two first prompts load them once.
    loading: Mutex<()>,
}

impl FolderEncoder {
    /// See [`load_text_encoder`].
    pub fn open(files: &ModelFiles, text_length: usize, precision: Precision) -> Result<Self> {
        // Integers would save time where little is spent, and cost accuracy in everything that follows.
        let dtype = precision.activations();
        let architecture = Architecture::read(files, text_length)?;
        let weights = files.weights("text_encoder")?;
        let mut hasher = Sha256::new();
        hasher.update(format!("states {STATES_VERSION}, {text_length} rows, {dtype:?}\n"));
        for path in [CONFIG, TOKENIZER] {
            hasher.update(Sha256::digest(files.read(path)?));
        }
        hasher.update(weights.digest());
        Ok(Self {
            files: files.clone(),
            text_length,
            dtype,
            architecture,
            weights: Arc::new(weights),
            digest: hex::encode(hasher.finalize()),
            loaded: OnceLock::new(),
            loading: Mutex::new(()),
        })
    }

    fn loaded(&self) -> Result<&Loaded> {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded);
        }
        let tokenizer = PromptTokenizer::load(&self.files, TOKENIZER, self.text_length)?;
        let network = self.architecture.load(&self.weights, self.dtype)?;
        Ok(self.loaded.get_or_init(|| Loaded { tokenizer, network }))
    }
}

impl TextEncoder for FolderEncoder {
    fn encode_all(&self, prompts: &[&str]) -> Result<Vec<Tensor>> {
        let Loaded { tokenizer, network } = self.loaded()?;
        let texts = prompts.iter().map(|prompt| tokenizer.token_ids(prompt)).collect::<Result<Vec<_>>>()?;
        network.states(&texts)?.iter().map(|states| padded(states, self.text_length)).collect()
    }

    fn prepare(&self) -> Result<()> {
        self.loaded().map(drop)
    }

    fn text_length(&self) -> usize {
        self.text_length
    }

    fn width(&self) -> usize {
        match &self.architecture {
            Architecture::Bert(config) => config.hidden_size,
            Architecture::T5(config) => config.d_model,
        }
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn resident_bytes(&self) -> u64 {
        self.loaded.get().map_or(0, |loaded| loaded.network.resident_bytes())
    }
}

impl Architecture {
    fn read(files: &ModelFiles, text_length: usize) -> Result<Self> {
        #[derive(Deserialize)]
        struct Named {
            #[serde(default)]
            architectures: Vec<String>,
            #[serde(default)]
            model_type: String,
        }
        let named: Named = files.read_json(CONFIG)?;
        let name = named.architectures.into_iter().next().unwrap_or(named.model_type);
        let lower = name.to_lowercase();
        if lower.starts_with("bert") {
            let config: BertConfig = files.read_json(CONFIG)?;
            config.check(&files.name_of(CONFIG), text_length)?;
            return Ok(Self::Bert(config));
        }
        if lower.starts_with("umt5") || lower.starts_with("t5") {
            let config: T5Config = files.read_json(CONFIG)?;
            config.check(&files.name_of(CONFIG))?;
            return Ok(Self::T5(config));
        }
        Err(ModelError::Unsupported(format!("text encoder {name} ({})", files.name_of(CONFIG))))
    }

    fn load(&self, weights: &Arc<Weights>, dtype: Dtype) -> Result<Box<dyn TextNetwork>> {
        match self {
            Self::Bert(config) => Ok(Box::new(Bert::load(weights, config)?)),
            Self::T5(config) => {
                let resident = fits_in_memory(config.layer_bytes(dtype));
                if !resident {
                    tracing::info!(bytes = config.layer_bytes(dtype), "the text encoder is streamed, layer by layer");
                }
                Ok(Box::new(T5::new(Arc::clone(weights), config.clone(), dtype, resident)?))
            }
        }
    }
}

/// Whether an encoder of `bytes` may stay in memory: with half of what is available, so that a model's other parts and
/// its activations have the rest. Where the system does not tell, only small ones may.
fn fits_in_memory(bytes: u64) -> bool {
    const SMALL_BYTES: u64 = 512 << 20;
    bytes <= SMALL_BYTES || available_bytes().is_some_and(|available| bytes <= available / 2)
}
