//! T5 and UMT5: pre-norm encoders with relative positions and without biases (transformers' `T5EncoderModel` and
//! `UMT5EncoderModel`; <https://arxiv.org/abs/1910.10683>, <https://arxiv.org/abs/2304.09151>).
//!
//! UMT5-XXL is 24 layers of width 4096: 9.7 GB of bf16. A network that does not fit stays in the mapped file, and each layer
//! is packed when its turn comes: all prompts of a job pass through it together. The word table stays there in any case.

use super::TextNetwork;
use crate::error::{ModelError, Result};
use crate::weights::{Scope, Weights};
use kernels::{Activation, Dtype, PackedLinear, Tensor, attention, linear, linear_residual, multiply, rms_norm};
use serde::Deserialize;
use std::sync::Arc;

/// Sizes of a `T5EncoderModel` or `UMT5EncoderModel`, with transformers' names and defaults.
#[derive(Debug, Clone, Deserialize)]
pub struct T5Config {
    /// `t5` or `umt5`: the one has a table of relative positions in its first layer, the other in every layer.
    pub model_type: String,
    /// Rows of the word table.
    pub vocab_size: usize,
    /// Width of a state.
    pub d_model: usize,
    /// Width of a head; heads need not add up to the width of a state.
    pub d_kv: usize,
    /// Inner width of the feed-forward layers.
    pub d_ff: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Heads of every attention.
    pub num_heads: usize,
    /// Rows of a table of relative positions, half of them for each direction.
    #[serde(default = "default_buckets")]
    pub relative_attention_num_buckets: usize,
    /// Positions at this distance and beyond share a row.
    #[serde(default = "default_max_distance")]
    pub relative_attention_max_distance: usize,
    /// Of every norm.
    #[serde(default = "default_eps")]
    pub layer_norm_epsilon: f32,
    /// `relu`, `gated-gelu`, …
    #[serde(default = "default_feed_forward")]
    pub feed_forward_proj: String,
}

fn default_buckets() -> usize {
    32
}

fn default_max_distance() -> usize {
    128
}

fn default_eps() -> f32 {
    1e-6
}

fn default_feed_forward() -> String {
    "relu".to_owned()
}

impl T5Config {
    /// Refuses what we cannot run; `file` is named in the message.
    pub(super) fn check(&self, file: &str) -> Result<()> {
        let sizes = [self.vocab_size, self.d_model, self.d_kv, self.d_ff, self.num_layers, self.num_heads];
        if sizes.iter().any(|&n| n == 0 || n > 1 << 24) {
            return Err(ModelError::config(
                file,
                "vocab_size, d_model, d_kv, d_ff, num_layers and num_heads must be positive",
            ));
        }
        let (buckets, distance) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        if buckets < 4 || distance <= buckets / 4 {
            let detail = format!("{buckets} relative_attention_num_buckets do not reach to the distance {distance}");
            return Err(ModelError::config(file, detail));
        }
        self.feed_forward(file).map(drop)
    }

    /// The activation of the feed-forward layers, and whether a second projection is multiplied with it.
    fn feed_forward(&self, file: &str) -> Result<(Activation, bool)> {
        match self.feed_forward_proj.as_str() {
            "relu" => Ok((Activation::LeakyRelu(0.0), false)),
            "gelu" => Ok((Activation::Gelu, false)),
            // transformers reads "gated-gelu" as T5 v1.1 meant it: the tanh approximation.
            "gated-gelu" | "gated-gelu_new" => Ok((Activation::GeluTanh, true)),
            "gated-silu" => Ok((Activation::Silu, true)),
            other => Err(ModelError::Unsupported(format!("feed_forward_proj {other} ({file})"))),
        }
    }

    fn inner_width(&self) -> usize {
        self.num_heads * self.d_kv
    }

    /// Bytes of all layers when they are packed for products in `dtype`.
    pub fn layer_bytes(&self, dtype: Dtype) -> u64 {
        let feed_forward = if self.feed_forward_proj.starts_with("gated") { 3 } else { 2 };
        let layer = 4 * self.d_model * self.inner_width() + feed_forward * self.d_model * self.d_ff;
        self.num_layers as u64 * layer as u64 * dtype.size_bytes() as u64
    }

    /// The row of the table for a key `distance` positions after (before: negative) its query.
    fn bucket(&self, distance: isize) -> usize {
        let half = self.relative_attention_num_buckets / 2;
        let exact = half / 2;
        let steps = distance.unsigned_abs();
        let row = if steps < exact {
            steps
        } else {
            // In f32 like the reference: at a boundary the rounding decides.
            let span = (self.relative_attention_max_distance as f64 / exact as f64).ln() as f32;
            let share = (steps as f32 / exact as f32).ln() / span;
            (exact + (share * (half - exact) as f32) as usize).min(half - 1)
        };
        if distance > 0 { half + row } else { row }
    }

    /// What attention adds to its scores: a table [buckets, heads] read at every pair of `tokens` → [heads, tokens, tokens].
    fn bias(&self, table: &Tensor, tokens: usize) -> Result<Tensor> {
        let (values, heads) = (table.to_vec_f32(), self.num_heads);
        let rows: Vec<usize> = (1..2 * tokens).map(|i| self.bucket(i as isize - tokens as isize)).collect();
        let mut bias = Vec::with_capacity(heads * tokens * tokens);
        for head in 0..heads {
            // All pairs of one distance share a value, so a query's row is a window of this.
            let by_distance: Vec<f32> = rows.iter().map(|row| values[row * heads + head]).collect();
            (0..tokens).for_each(|query| bias.extend_from_slice(&by_distance[tokens - 1 - query..][..tokens]));
        }
        Ok(Tensor::from_vec(bias, &[heads, tokens, tokens])?)
    }
}

/// A feed-forward layer's first half.
enum Inner {
    Plain(PackedLinear),
    Gated(PackedLinear, PackedLinear),
}

struct Layer {
    attention_norm: Tensor,
    query: PackedLinear,
    key: PackedLinear,
    value: PackedLinear,
    output: PackedLinear,
    /// [buckets, heads]
    positions: Tensor,
    inner_norm: Tensor,
    inner: Inner,
    inner_output: PackedLinear,
    activation: Activation,
}

impl Layer {
    fn load(block: &Scope<'_>, config: &T5Config, dtype: Dtype, shared_positions: Option<&Tensor>) -> Result<Self> {
        let (d, wide, inner) = (config.d_model, config.inner_width(), config.d_ff);
        let (attention, feed_forward) = (block.at("layer.0"), block.at("layer.1"));
        let (heads, dense) = (attention.at("SelfAttention"), feed_forward.at("DenseReluDense"));
        let project = |scope: &Scope<'_>, name: &str, inputs, outputs| -> Result<PackedLinear> {
            let weight = scope.at(name).tensor("weight", &[outputs, inputs], dtype)?;
            Ok(PackedLinear::new(&weight, None, dtype)?)
        };
        let (activation, gated) = config.feed_forward("text encoder")?;
        Ok(Self {
            attention_norm: attention.at("layer_norm").vector("weight", d)?,
            query: project(&heads, "q", d, wide)?,
            key: project(&heads, "k", d, wide)?,
            value: project(&heads, "v", d, wide)?,
            output: project(&heads, "o", wide, d)?,
            positions: shared_positions.cloned().map_or_else(|| position_table(block, config), Ok)?,
            inner_norm: feed_forward.at("layer_norm").vector("weight", d)?,
            inner: match gated {
                true => Inner::Gated(project(&dense, "wi_0", d, inner)?, project(&dense, "wi_1", d, inner)?),
                false => Inner::Plain(project(&dense, "wi", d, inner)?),
            },
            inner_output: project(&dense, "wo", inner, d)?,
            activation,
        })
    }

    /// x [tokens, width] in f32, bias [heads, tokens, tokens] → the same shape.
    fn forward(&self, mut x: Tensor, bias: &Tensor, config: &T5Config) -> Result<Tensor> {
        let (eps, dtype) = (config.layer_norm_epsilon, self.query.dtype());
        let normed = rms_norm(&x, &self.attention_norm, eps, dtype)?;
        // Scores are not scaled and so are large: they stay in f32, whatever the products read.
        let project = |w: &PackedLinear| linear(&normed, w, Activation::None, Dtype::F32);
        let (q, k, v) = (project(&self.query)?, project(&self.key)?, project(&self.value)?);
        let mixed = attention(&q, &k, &v, config.num_heads, 1.0, None, Some(bias))?;
        linear_residual(&mixed, &self.output, None, &mut x)?;
        let normed = rms_norm(&x, &self.inner_norm, eps, dtype)?;
        let inner = match &self.inner {
            Inner::Plain(wi) => linear(&normed, wi, self.activation, Dtype::F32)?,
            Inner::Gated(gate, wi) => {
                let gate = linear(&normed, gate, self.activation, Dtype::F32)?;
                multiply(&gate, &linear(&normed, wi, Activation::None, Dtype::F32)?)?
            }
        };
        linear_residual(&inner, &self.inner_output, None, &mut x)?;
        Ok(x)
    }
}

/// The table [buckets, heads] of relative positions in a layer.
fn position_table(block: &Scope<'_>, config: &T5Config) -> Result<Tensor> {
    let shape = [config.relative_attention_num_buckets, config.num_heads];
    block.at("layer.0.SelfAttention.relative_attention_bias").tensor("weight", &shape, Dtype::F32)
}

/// The network alone: token ids to states.
pub struct T5 {
    config: T5Config,
    weights: Arc<Weights>,
    dtype: Dtype,
    words: &'static str,
    /// T5's one table of positions; UMT5 has one in every layer.
    shared_positions: Option<Tensor>,
    /// All layers, unless they are packed when their turn comes.
    resident: Option<Vec<Layer>>,
    norm: Tensor,
}

const WORD_TABLES: [&str; 2] = ["shared.weight", "encoder.embed_tokens.weight"];

impl T5 {
    /// The network in `weights` for products in `dtype`, its layers packed now (`resident`) or anew for each call.
    pub fn new(weights: Arc<Weights>, config: T5Config, dtype: Dtype, resident: bool) -> Result<Self> {
        let words = WORD_TABLES.into_iter().find(|name| weights.shape(name).is_some()).unwrap_or(WORD_TABLES[0]);
        let norm = weights.scope("encoder.final_layer_norm").vector("weight", config.d_model)?;
        let first = || position_table(&weights.scope("encoder.block.0"), &config);
        let shared_positions = (config.model_type != "umt5").then(first).transpose()?;
        let mut network = Self { config, weights, dtype, words, shared_positions, resident: None, norm };
        // A table that is missing or has another size shows now, not at the first prompt.
        network.embed(&[])?;
        if resident {
            let layers = (0..network.config.num_layers).map(|i| network.load_layer(i));
            network.resident = Some(layers.collect::<Result<_>>()?);
        }
        Ok(network)
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.weights.rows(self.words, [self.config.vocab_size, self.config.d_model], ids)
    }

    fn load_layer(&self, index: usize) -> Result<Layer> {
        let block = self.weights.scope("encoder.block").at(index);
        Layer::load(&block, &self.config, self.dtype, self.shared_positions.as_ref())
    }

    /// Like [`TextNetwork::states`]; `trace` sees the states of each text before the first layer and after every one.
    pub fn states_traced(&self, texts: &[Vec<u32>], trace: impl Fn(usize, usize, &Tensor)) -> Result<Vec<Tensor>> {
        if texts.iter().any(Vec::is_empty) {
            return Err(ModelError::Input("a text without tokens".to_owned()));
        }
        let mut states = texts.iter().map(|ids| self.embed(ids)).collect::<Result<Vec<_>>>()?;
        states.iter().enumerate().for_each(|(text, x)| trace(0, text, x));
        for index in 0..self.config.num_layers {
            let loaded;
            let layer = match &self.resident {
                Some(layers) => &layers[index],
                None => {
                    loaded = self.load_layer(index)?;
                    &loaded
                }
            };
            let forward = |x: Tensor| {
                let bias = self.config.bias(&layer.positions, x.shape()[0])?;
                layer.forward(x, &bias, &self.config)
            };
            states = states.into_iter().map(forward).collect::<Result<_>>()?;
            states.iter().enumerate().for_each(|(text, x)| trace(index + 1, text, x));
        }
        let norm = |x: &Tensor| rms_norm(x, &self.norm, self.config.layer_norm_epsilon, Dtype::F32);
        Ok(states.iter().map(norm).collect::<kernels::Result<_>>()?)
    }
}

impl TextNetwork for T5 {
    fn states(&self, texts: &[Vec<u32>]) -> Result<Vec<Tensor>> {
        self.states_traced(texts, |_, _, _| ())
    }

    fn resident_bytes(&self) -> u64 {
        self.resident.as_ref().map_or(0, |_| self.config.layer_bytes(self.dtype))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// UMT5's own sizes: 32 buckets up to the distance 128, at every distance that 512 tokens have.
    #[test]
    fn distances_fall_into_the_reference_s_buckets() {
        let config: T5Config = serde_json::from_str(
            r#"{"model_type": "umt5", "vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}"#,
        )
        .unwrap();
        let golden = include_str!("../../../../tests/parity/goldens/t5_buckets.json");
        let golden: Vec<(isize, usize)> = serde_json::from_str(golden).unwrap();
        assert_eq!(golden.len(), 1023);
        for (distance, row) in golden {
            assert_eq!(config.bucket(distance), row, "at {distance}");
        }
    }

    #[test]
    fn configs_that_make_no_network_are_refused() {
        let refused = |change: &str| {
            let base = r#"{"model_type": "t5", "vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2"#;
            let config: T5Config = serde_json::from_str(&format!("{base}, {change}}}")).unwrap();
            config.check("config.json").unwrap_err().to_string()
        };
        assert!(refused(r#""relative_attention_num_buckets": 2"#).contains("relative_attention_num_buckets"));
        assert!(refused(r#""relative_attention_max_distance": 8"#).contains("distance 8"));
        assert!(refused(r#""feed_forward_proj": "gated-tanh""#).contains("gated-tanh"));
    }
}
