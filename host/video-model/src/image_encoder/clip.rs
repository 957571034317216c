//! CLIP's vision tower up to its last layer but one (transformers' `CLIPVisionModel`; <https://arxiv.org/abs/2103.00020>).

use crate::error::{ModelError, Result};
use crate::weights::{Scope, Weights};
use kernels::{
    Activation, Dtype, PackedLinear, Tensor, activate, add, attention, layer_norm, linear, linear_combination,
    linear_residual, patchify,
};
use serde::Deserialize;

/// Sizes of a `CLIPVisionModel`, with transformers' names and defaults.
#[derive(Debug, Clone, Deserialize)]
pub struct ClipVisionConfig {
    /// The classes that the weights were saved from.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Width of a state.
    pub hidden_size: usize,
    /// Inner width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of layers, the last one included.
    pub num_hidden_layers: usize,
    /// Heads of every attention.
    pub num_attention_heads: usize,
    /// Sides of a picture in pixels.
    pub image_size: usize,
    /// Sides of a patch in pixels.
    pub patch_size: usize,
    /// Activation of the feed-forward layers.
    #[serde(default = "default_activation")]
    pub hidden_act: String,
    /// Of every norm.
    #[serde(default = "default_eps")]
    pub layer_norm_eps: f32,
}

fn default_activation() -> String {
    "quick_gelu".to_owned()
}

fn default_eps() -> f32 {
    1e-5
}

impl ClipVisionConfig {
    /// Refuses what we cannot run; `file` is named in the message.
    pub(super) fn check(&self, file: &str) -> Result<()> {
        if let Some(other) = self.architectures.iter().find(|name| !name.starts_with("CLIPVisionModel")) {
            return Err(ModelError::Unsupported(format!("image encoder {other} ({file})")));
        }
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
            return Err(ModelError::config(file, format!("hidden_size {width} does not split into {heads} heads")));
        }
        let (side, patch) = (self.image_size, self.patch_size);
        if side == 0 || side > 4096 || patch == 0 || !side.is_multiple_of(patch) || self.num_hidden_layers < 2 {
            let detail = "image_size must be whole patches, and num_hidden_layers at least 2";
            return Err(ModelError::config(file, detail));
        }
        FeedForward::named(&self.hidden_act, file).map(drop)
    }

    /// Rows of the states: one for the whole picture, then one a patch.
    pub fn tokens(&self) -> usize {
        1 + (self.image_size / self.patch_size.max(1)).pow(2)
    }
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl Norm {
    fn load(scope: &Scope<'_>, config: &ClipVisionConfig) -> Result<Self> {
        let vector = |name| scope.vector(name, config.hidden_size);
        Ok(Self { weight: vector("weight")?, bias: vector("bias")?, eps: config.layer_norm_eps })
    }

    fn forward(&self, x: &Tensor, out: Dtype) -> Result<Tensor> {
        Ok(layer_norm(x, Some(&self.weight), Some(&self.bias), self.eps, out)?)
    }
}

/// The activation between the two halves of a feed-forward layer.
#[derive(Clone, Copy)]
enum FeedForward {
    Fused(Activation),
    /// x·σ(1.702 x), OpenAI's; it is SiLU of 1.702 x over 1.702.
    QuickGelu,
}

const QUICK_GELU_SLOPE: f32 = 1.702;

impl FeedForward {
    fn named(name: &str, file: &str) -> Result<Self> {
        match name {
            "quick_gelu" => Ok(Self::QuickGelu),
            "gelu" => Ok(Self::Fused(Activation::Gelu)),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Self::Fused(Activation::GeluTanh)),
            other => Err(ModelError::Unsupported(format!("hidden_act {other} ({file})"))),
        }
    }

    fn linear(self, x: &Tensor, weight: &PackedLinear) -> Result<Tensor> {
        match self {
            Self::Fused(activation) => Ok(linear(x, weight, activation, Dtype::F32)?),
            Self::QuickGelu => {
                let inner = linear(x, weight, Activation::None, Dtype::F32)?;
                let steep = linear_combination(&[(QUICK_GELU_SLOPE, &inner)])?;
                Ok(linear_combination(&[(1.0 / QUICK_GELU_SLOPE, &activate(&steep, Activation::Silu))])?)
            }
        }
    }
}

struct Layer {
    attention_norm: Norm,
    query: PackedLinear,
    key: PackedLinear,
    value: PackedLinear,
    output: PackedLinear,
    inner_norm: Norm,
    inner: PackedLinear,
    inner_output: PackedLinear,
}

impl Layer {
    fn load(scope: &Scope<'_>, config: &ClipVisionConfig, dtype: Dtype) -> Result<Self> {
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let (heads, mlp) = (scope.at("self_attn"), scope.at("mlp"));
        Ok(Self {
            attention_norm: Norm::load(&scope.at("layer_norm1"), config)?,
            query: heads.linear("q_proj", d, d, dtype)?,
            key: heads.linear("k_proj", d, d, dtype)?,
            value: heads.linear("v_proj", d, d, dtype)?,
            output: heads.linear("out_proj", d, d, dtype)?,
            inner_norm: Norm::load(&scope.at("layer_norm2"), config)?,
            inner: mlp.linear("fc1", d, inner, dtype)?,
            inner_output: mlp.linear("fc2", inner, d, dtype)?,
        })
    }

    /// x [tokens, width] in f32 → the same shape.
    fn forward(&self, mut x: Tensor, heads: usize, activation: FeedForward) -> Result<Tensor> {
        let dtype = self.query.dtype();
        let normed = self.attention_norm.forward(&x, dtype)?;
        // It runs once a job, so attention can afford f32 whatever the products read.
        let project = |w: &PackedLinear| linear(&normed, w, Activation::None, Dtype::F32);
        let (q, k, v) = (project(&self.query)?, project(&self.key)?, project(&self.value)?);
        let scale = 1.0 / ((self.query.n() / heads) as f32).sqrt();
        let mixed = attention(&q, &k, &v, heads, scale, None, None)?;
        linear_residual(&mixed, &self.output, None, &mut x)?;
        let normed = self.inner_norm.forward(&x, dtype)?;
        let inner = activation.linear(&normed, &self.inner)?;
        linear_residual(&inner, &self.inner_output, None, &mut x)?;
        Ok(x)
    }
}

/// The network alone: pixels to states.
pub struct ClipVision {
    config: ClipVisionConfig,
    patches: PackedLinear,
    /// The row for the whole picture with its position, [1, width].
    class: Tensor,
    /// Positions of the patches, [patches, width].
    positions: Tensor,
    norm: Norm,
    /// All but the last, which nobody reads.
    layers: Vec<Layer>,
    activation: FeedForward,
    resident_bytes: u64,
}

impl ClipVision {
    /// Loads the tensors of `weights`, with or without the prefix `vision_model.`.
    pub fn load(weights: &Weights, config: ClipVisionConfig, dtype: Dtype) -> Result<Self> {
        let prefixed = weights.names().any(|name| name.starts_with("vision_model."));
        Self::from_weights(&weights.scope(if prefixed { "vision_model" } else { "" }), config, dtype)
    }

    /// Builds the network from the tensors in `scope`.
    pub fn from_weights(scope: &Scope<'_>, config: ClipVisionConfig, dtype: Dtype) -> Result<Self> {
        let (d, patch, tokens) = (config.hidden_size, config.patch_size, config.tokens());
        let embeddings = scope.at("embeddings");
        // A convolution whose kernel is its stride: one product for all patches.
        let kernel = embeddings.at("patch_embedding").tensor("weight", &[d, 3, patch, patch], dtype)?;
        let kernel = kernel.reshape(&[d, 3 * patch * patch])?;
        let positions = embeddings.at("position_embedding").tensor("weight", &[tokens, d], Dtype::F32)?;
        let class = embeddings.vector("class_embedding", d)?.reshape(&[1, d])?;
        let layers = scope.at("encoder.layers");
        let kept = config.num_hidden_layers - 1;
        let elements = kept * (4 * d * d + 2 * d * config.intermediate_size) + 3 * patch * patch * d;
        Ok(Self {
            patches: PackedLinear::new(&kernel, None, dtype)?,
            class: add(&class, &positions.slice_outer(0..1)?)?,
            positions: positions.slice_outer(1..tokens)?,
            norm: Norm::load(&scope.at("pre_layrnorm"), &config)?,
            layers: (0..kept).map(|i| Layer::load(&layers.at(i), &config, dtype)).collect::<Result<_>>()?,
            activation: FeedForward::named(&config.hidden_act, "image encoder")?,
            resident_bytes: (elements * dtype.size_bytes()) as u64,
            config,
        })
    }

    /// pixels [side, side, 3] → `hidden_states[-2]` [tokens, width] in f32.
    pub fn states(&self, pixels: &Tensor) -> Result<Tensor> {
        self.states_traced(pixels, |_, _| ())
    }

    /// Like [`ClipVision::states`]; `trace` sees the states before the first layer and after every one.
    pub fn states_traced(&self, pixels: &Tensor, trace: impl Fn(usize, &Tensor)) -> Result<Tensor> {
        let (side, patch) = (self.config.image_size, self.config.patch_size);
        let patches = patchify(&pixels.reshape(&[1, side, side, 3])?, [1, patch, patch])?;
        let embedded = add(&linear(&patches, &self.patches, Activation::None, Dtype::F32)?, &self.positions)?;
        let mut x = self.norm.forward(&Tensor::concat_outer(&[&self.class, &embedded])?, Dtype::F32)?;
        trace(0, &x);
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, self.config.num_attention_heads, self.activation)?;
            trace(i + 1, &x);
        }
        Ok(x)
    }

    /// Sizes of the network.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// Bytes of the weights in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.resident_bytes
    }
}
