//! BERT and MiniLM: post-norm transformer encoders with learnt positions (transformers' `BertModel`).

use super::TextNetwork;
use crate::error::{ModelError, Result};
use crate::weights::{Scope, Weights};
use kernels::{
    Activation, Dtype, PackedLinear, Tensor, add, attention, embedding, layer_norm, linear, linear_residual,
};
use serde::Deserialize;

/// Everything is f32: an encoder runs once per prompt, so its time does not matter and its precision does.
const DTYPE: Dtype = Dtype::F32;

/// Sizes of a `BertModel`, with transformers' names and defaults.
#[derive(Debug, Clone, Deserialize)]
pub struct BertConfig {
    /// Rows of the word table.
    pub vocab_size: usize,
    /// Width of a state.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of every attention.
    pub num_attention_heads: usize,
    /// Inner width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Activation of the feed-forward layers.
    #[serde(default = "default_activation")]
    pub hidden_act: String,
    /// Longest text in tokens.
    pub max_position_embeddings: usize,
    /// Kinds of sentences.
    #[serde(default = "default_type_vocab_size")]
    pub type_vocab_size: usize,
    /// Of every norm.
    #[serde(default = "default_eps")]
    pub layer_norm_eps: f32,
    /// `absolute`, or absent.
    #[serde(default)]
    pub position_embedding_type: Option<String>,
}

impl BertConfig {
    /// Refuses what we cannot run; `file` is named in the message.
    pub(super) fn check(&self, file: &str, text_length: usize) -> Result<()> {
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let (width, heads) = (self.hidden_size, self.num_attention_heads);
            return Err(ModelError::config(file, format!("hidden_size {width} does not split into {heads} heads")));
        }
        if text_length > self.max_position_embeddings {
            let max = self.max_position_embeddings;
            let detail = format!("a text length of {text_length} is over max_position_embeddings {max}");
            return Err(ModelError::config(file, detail));
        }
        match self.position_embedding_type.as_deref() {
            None | Some("absolute") => Ok(()),
            Some(other) => Err(ModelError::Unsupported(format!("position_embedding_type {other} ({file})"))),
        }
    }
}

fn default_activation() -> String {
    "gelu".to_owned()
}

fn default_type_vocab_size() -> usize {
    2
}

fn default_eps() -> f32 {
    1e-12
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl Norm {
    fn load(scope: &Scope<'_>, width: usize, eps: f32) -> Result<Self> {
        Ok(Self { weight: scope.vector("weight", width)?, bias: scope.vector("bias", width)?, eps })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(layer_norm(x, Some(&self.weight), Some(&self.bias), self.eps, DTYPE)?)
    }
}

struct Layer {
    query: PackedLinear,
    key: PackedLinear,
    value: PackedLinear,
    attention_output: PackedLinear,
    attention_norm: Norm,
    intermediate: PackedLinear,
    output: PackedLinear,
    output_norm: Norm,
}

impl Layer {
    fn load(scope: &Scope<'_>, config: &BertConfig) -> Result<Self> {
        let (d, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let attention = scope.at("attention");
        let heads = attention.at("self");
        Ok(Self {
            query: heads.linear("query", d, d, DTYPE)?,
            key: heads.linear("key", d, d, DTYPE)?,
            value: heads.linear("value", d, d, DTYPE)?,
            attention_output: attention.linear("output.dense", d, d, DTYPE)?,
            attention_norm: Norm::load(&attention.at("output.LayerNorm"), d, eps)?,
            intermediate: scope.linear("intermediate.dense", d, inner, DTYPE)?,
            output: scope.linear("output.dense", inner, d, DTYPE)?,
            output_norm: Norm::load(&scope.at("output.LayerNorm"), d, eps)?,
        })
    }

    /// x [tokens, width] → the same shape.
    fn forward(&self, mut x: Tensor, heads: usize, activation: Activation) -> Result<Tensor> {
        let project = |w: &PackedLinear| linear(&x, w, Activation::None, DTYPE);
        let (q, k, v) = (project(&self.query)?, project(&self.key)?, project(&self.value)?);
        let scale = 1.0 / ((self.query.n() / heads) as f32).sqrt();
        let mixed = attention(&q, &k, &v, heads, scale, None, None)?;
        linear_residual(&mixed, &self.attention_output, None, &mut x)?;
        let mut x = self.attention_norm.forward(&x)?;
        let inner = linear(&x, &self.intermediate, activation, DTYPE)?;
        linear_residual(&inner, &self.output, None, &mut x)?;
        self.output_norm.forward(&x)
    }
}

/// The network alone: token ids to states.
pub struct Bert {
    words: Tensor,
    /// Positions plus token type 0, the only one that single sentences have.
    positions: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
    heads: usize,
    activation: Activation,
    resident_bytes: u64,
}

impl Bert {
    /// Builds the network of a folder's weights; a `bert.` prefix of the tensors is accepted.
    pub fn load(weights: &Weights, config: &BertConfig) -> Result<Self> {
        let prefixed = weights.names().any(|name| name.starts_with("bert.embeddings."));
        let mut bert = Self::from_weights(&weights.scope(if prefixed { "bert" } else { "" }), config)?;
        let elements = weights.names().filter_map(|name| weights.shape(name)).map(|s| s.iter().product::<usize>());
        bert.resident_bytes = (elements.sum::<usize>() * DTYPE.size_bytes()) as u64;
        Ok(bert)
    }

    /// Builds the network from the tensors in `scope`; a pooler is ignored.
    pub fn from_weights(scope: &Scope<'_>, config: &BertConfig) -> Result<Self> {
        let d = config.hidden_size;
        let embeddings = scope.at("embeddings");
        let table = |name: &str, rows: usize| embeddings.at(name).tensor("weight", &[rows, d], DTYPE);
        let token_type = table("token_type_embeddings", config.type_vocab_size)?;
        let positions = table("position_embeddings", config.max_position_embeddings)?;
        let layers = scope.at("encoder.layer");
        Ok(Self {
            words: table("word_embeddings", config.vocab_size)?,
            positions: add(&positions, &embedding(&token_type, &vec![0; config.max_position_embeddings])?)?,
            norm: Norm::load(&embeddings.at("LayerNorm"), d, config.layer_norm_eps)?,
            layers: (0..config.num_hidden_layers).map(|i| Layer::load(&layers.at(i), config)).collect::<Result<_>>()?,
            heads: config.num_attention_heads,
            activation: activation_named(&config.hidden_act)?,
            resident_bytes: 0,
        })
    }

    /// The last states of these tokens: [ids, width] in f32.
    ///
    /// Padding is not needed: it would be masked out of every attention, so rows without it come out the same.
    pub fn states(&self, token_ids: &[u32]) -> Result<Tensor> {
        let (length, max) = (token_ids.len(), self.positions.shape()[0]);
        if length == 0 || length > max {
            return Err(ModelError::Input(format!("{length} tokens; the text encoder takes 1 to {max}")));
        }
        let x = add(&embedding(&self.words, token_ids)?, &self.positions.slice_outer(0..length)?)?;
        let x = self.norm.forward(&x)?;
        self.layers.iter().try_fold(x, |x, layer| layer.forward(x, self.heads, self.activation))
    }
}

impl TextNetwork for Bert {
    fn states(&self, texts: &[Vec<u32>]) -> Result<Vec<Tensor>> {
        texts.iter().map(|ids| Bert::states(self, ids)).collect()
    }

    fn resident_bytes(&self) -> u64 {
        self.resident_bytes
    }
}

fn activation_named(name: &str) -> Result<Activation> {
    match name {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "silu" | "swish" => Ok(Activation::Silu),
        other => Err(ModelError::Unsupported(format!("hidden_act {other}"))),
    }
}
