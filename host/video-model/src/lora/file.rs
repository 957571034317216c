//! One adapter file, checked against the model that it is for.

use super::keys::{Keys, Part};
use super::layers::layer_shape;
use crate::error::{ModelError, Result};
use crate::transformer::TransformerConfig;
use crate::weights::Weights;
use kernels::{Dtype, Tensor, linear_combination};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A LoRA file, opened and checked; its tensors are read when adapters are made of it.
#[derive(Debug)]
pub struct LoraFile {
    file: String,
    weights: Weights,
    layers: BTreeMap<String, StoredCorrection>,
    unused: Vec<String>,
}

/// The tensors of one layer's correction.
#[derive(Debug)]
struct StoredCorrection {
    down: String,
    up: String,
    bias: Option<String>,
    rank: usize,
    /// [outputs, inputs] of the layer.
    shape: [usize; 2],
    /// Alpha over the rank.
    scale: f32,
}

/// One layer's correction in f32: `up · down`, and what is added to the bias.
pub(super) struct Correction {
    /// [rank, inputs]
    pub(super) down: Tensor,
    /// [outputs, rank]
    pub(super) up: Tensor,
    /// `[outputs]`
    pub(super) bias: Option<Tensor>,
}

impl LoraFile {
    /// Opens a safetensors file of adapters for a transformer of `config`. A tensor of the wrong shape, half of a pair or a
    /// file without a single layer of this model is an error; keys that are not used are logged and kept by name.
    pub fn open(path: &Path, config: &TransformerConfig) -> Result<Self> {
        let file = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| ModelError::File { file: file.clone(), source })?;
        Self::from_weights(file.clone(), Weights::as_stored(&file, bytes)?, config)
    }

    fn from_weights(file: String, weights: Weights, config: &TransformerConfig) -> Result<Self> {
        let keys = Keys::new(config);
        let mut found: BTreeMap<String, BTreeMap<Part, String>> = BTreeMap::new();
        let mut unused = Vec::new();
        for key in weights.names() {
            match keys.parse(key) {
                Some((layer, part)) => {
                    if let Some(twice) = found.entry(layer).or_default().insert(part, key.to_owned()) {
                        return Err(refused(&file, key, format!("says the same as `{twice}`; leave one of them out")));
                    }
                }
                None => unused.push(key.to_owned()),
            }
        }
        let alpha = PeftAlpha::read(&weights);
        let mut layers = BTreeMap::new();
        for (layer, parts) in found {
            let Some(shape) = layer_shape(config, &layer) else { continue };
            // A bias without matrices (or an alpha of nothing) is no correction that an adapter can make alone.
            if !parts.contains_key(&Part::Down) && !parts.contains_key(&Part::Up) {
                unused.extend(parts.into_values());
                continue;
            }
            let stored = StoredCorrection::check(&file, &weights, &layer, shape, &parts, &alpha)?;
            layers.insert(layer, stored);
        }
        if layers.is_empty() {
            let example = unused.first().map_or("it is empty".to_owned(), |key| format!("its first is `{key}`"));
            return Err(ModelError::config(file, format!("no tensor is an adapter of this model's layers; {example}")));
        }
        if let Some(first) = unused.first() {
            tracing::warn!(lora = %file, count = unused.len(), first, "adapter tensors that are not used");
        }
        Ok(Self { file, weights, layers, unused })
    }

    /// Where it was read from.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Keys that nothing was made of: layers that the model does not have, and kinds of corrections that are not low-rank
    /// products. The video lacks what they would have done.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// Names of the corrected layers, as diffusers names them.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// The correction of a layer at `strength`, if the file has one.
    pub(super) fn correction(&self, layer: &str, strength: f32) -> Result<Option<Correction>> {
        let Some(stored) = self.layers.get(layer) else { return Ok(None) };
        let [outputs, inputs] = stored.shape;
        let read = |name: &str, shape: &[usize]| {
            let at = self.weights.shape(name).unwrap_or(shape);
            Ok::<_, ModelError>(self.weights.tensor(name, at, Dtype::F32)?.reshape(shape)?)
        };
        let scaled = |tensor: Tensor, factor: f32| linear_combination(&[(factor, &tensor)]);
        let bias = match &stored.bias {
            Some(name) => Some(scaled(read(name, &[outputs])?, strength)?),
            None => None,
        };
        Ok(Some(Correction {
            down: read(&stored.down, &[stored.rank, inputs])?,
            up: scaled(read(&stored.up, &[outputs, stored.rank])?, stored.scale * strength)?,
            bias,
        }))
    }
}

impl StoredCorrection {
    fn check(
        file: &str,
        weights: &Weights,
        layer: &str,
        shape: [usize; 2],
        parts: &BTreeMap<Part, String>,
        alpha: &PeftAlpha,
    ) -> Result<Self> {
        let [outputs, inputs] = shape;
        let (down, up) = match (parts.get(&Part::Down), parts.get(&Part::Up)) {
            (Some(down), Some(up)) => (down, up),
            (Some(one), None) | (None, Some(one)) => {
                return Err(refused(file, one, "has no other half (down and up come in pairs)".to_owned()));
            }
            (None, None) => return Err(refused(file, layer, "has neither half".to_owned())),
        };
        // A convolution over patches is stored with its kernel's dimensions, and its other half with ones.
        let count = |name: &str| weights.shape(name).map_or(0, |shape| shape.iter().product());
        let rank = weights.shape(down).and_then(|shape| shape.first()).copied().unwrap_or(0);
        if rank == 0 || count(down) != rank * inputs {
            let found = weights.shape(down).unwrap_or_default();
            return Err(refused(file, down, format!("is {found:?}, `{layer}` needs [rank, {inputs}]")));
        }
        if weights.shape(up).and_then(|shape| shape.first()) != Some(&outputs) || count(up) != outputs * rank {
            let found = weights.shape(up).unwrap_or_default();
            return Err(refused(
                file,
                up,
                format!("is {found:?}, `{layer}` and the other half need [{outputs}, {rank}]"),
            ));
        }
        let bias = parts.get(&Part::Bias).cloned();
        if let Some(bias) = bias.as_ref().filter(|bias| count(bias) != outputs) {
            let found = weights.shape(bias).unwrap_or_default();
            return Err(refused(file, bias, format!("is {found:?}, `{layer}` needs [{outputs}]")));
        }
        let scale = match parts.get(&Part::Alpha) {
            Some(key) if count(key) != 1 => {
                return Err(refused(file, key, "is more than one number".to_owned()));
            }
            Some(key) => {
                let alpha = weights.tensor(key, weights.shape(key).unwrap_or_default(), Dtype::F32)?;
                alpha.to_vec_f32().first().copied().unwrap_or(1.0) / rank as f32
            }
            None => alpha.scale(layer, rank),
        };
        Ok(Self { down: down.clone(), up: up.clone(), bias, rank, shape, scale })
    }
}

/// The scale that PEFT's programs write into the file's metadata rather than beside each pair.
#[derive(Debug, Default)]
struct PeftAlpha {
    alpha: Option<f32>,
    by_layer: Vec<(String, f32)>,
    /// Scales by the root of the rank (arXiv 2312.03732).
    root: bool,
}

impl PeftAlpha {
    fn read(weights: &Weights) -> Self {
        let metadata = weights.metadata("lora_adapter_metadata").and_then(|json| serde_json::from_str(json).ok());
        let Some(Value::Object(entries)) = metadata else { return Self::default() };
        let get = |key: &str| entries.iter().find_map(|(name, v)| (name.rsplit('.').next() == Some(key)).then_some(v));
        let number = |value: &Value| value.as_f64().map(|n| n as f32);
        let by_layer = get("alpha_pattern").and_then(Value::as_object).into_iter().flatten();
        Self {
            alpha: get("lora_alpha").and_then(number),
            by_layer: by_layer.filter_map(|(layer, value)| Some((layer.clone(), number(value)?))).collect(),
            root: get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        }
    }

    /// A file that says nothing has its scale in its matrices.
    fn scale(&self, layer: &str, rank: usize) -> f32 {
        let named = |name: &str| layer == name || layer.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
        let own = self.by_layer.iter().find(|(name, _)| named(name)).map(|(_, alpha)| *alpha);
        let divisor = if self.root { (rank as f32).sqrt() } else { rank as f32 };
        own.or(self.alpha).map_or(1.0, |alpha| alpha / divisor)
    }
}

fn refused(file: &str, tensor: &str, detail: String) -> ModelError {
    ModelError::Adapter { file: file.to_owned(), tensor: tensor.to_owned(), detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;
    use std::collections::HashMap;

    /// The smallest transformer: width 4, one block.
    fn config() -> TransformerConfig {
        TransformerConfig {
            num_attention_heads: 1,
            attention_head_dim: 4,
            num_layers: 1,
            ffn_dim: 8,
            ..TransformerConfig::default()
        }
    }

    /// A file with tensors of ones.
    fn file(tensors: &[(&str, &[usize])], metadata: Option<&str>) -> Result<LoraFile> {
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|(_, shape)| 1f32.to_le_bytes().repeat(shape.iter().product())).collect();
        let view = |shape: &[usize], bytes| TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap();
        let views = tensors.iter().zip(&bytes).map(|((name, shape), bytes)| (*name, view(shape, bytes)));
        let metadata = metadata.map(|json| HashMap::from([("lora_adapter_metadata".to_owned(), json.to_owned())]));
        let bytes = safetensors::serialize(views, metadata).unwrap();
        LoraFile::from_weights(
            "style.safetensors".to_owned(),
            Weights::as_stored("style.safetensors", bytes)?,
            &config(),
        )
    }

    const DOWN: &str = "transformer.blocks.0.attn1.to_q.lora_A.weight";
    const UP: &str = "transformer.blocks.0.attn1.to_q.lora_B.weight";

    fn scale(alpha: Option<&[usize]>, metadata: Option<&str>) -> f32 {
        let mut tensors: Vec<(&str, &[usize])> = vec![(DOWN, &[2, 4]), (UP, &[4, 2])];
        tensors.extend(alpha.map(|shape| ("diffusion_model.blocks.0.self_attn.q.alpha", shape)));
        let correction = file(&tensors, metadata).unwrap().correction("blocks.0.attn1.to_q", 3.0).unwrap().unwrap();
        assert_eq!(correction.down.to_vec_f32(), [1.0; 8]);
        correction.up.to_vec_f32()[0]
    }

    #[test]
    fn the_scale_is_strength_times_alpha_over_rank() {
        assert_eq!(scale(None, None), 3.0);
        assert_eq!(scale(Some(&[]), None), 1.5);
        assert_eq!(scale(Some(&[1]), None), 1.5);
        assert_eq!(scale(None, Some(r#"{"transformer.r": 2, "transformer.lora_alpha": 8}"#)), 12.0);
        let own = r#"{"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn1.to_q": 1}}"#;
        assert_eq!(scale(None, Some(own)), 1.5);
    }

    #[test]
    fn keys_that_are_not_used_are_told_by_name() {
        let style = file(
            &[
                (DOWN, &[2, 4]),
                (UP, &[4, 2]),
                ("diffusion_model.blocks.0.self_attn.norm_q.diff", &[4]),
                ("diffusion_model.blocks.0.ffn.0.diff_b", &[8]),
                ("lora_te_encoder.lora_down.weight", &[2, 2]),
            ],
            None,
        )
        .unwrap();
        let unused = ["diffusion_model.blocks.0.self_attn.norm_q.diff", "lora_te_encoder.lora_down.weight"];
        assert_eq!(style.unused()[..2], unused);
        assert_eq!(style.unused()[2], "diffusion_model.blocks.0.ffn.0.diff_b");
        assert_eq!(style.layers().collect::<Vec<_>>(), ["blocks.0.attn1.to_q"]);
    }

    #[test]
    fn files_that_do_not_fit_name_the_file_and_the_tensor() {
        let says = |tensors: &[(&str, &[usize])], words: &[&str]| {
            let error = file(tensors, None).unwrap_err().to_string();
            assert!(words.iter().all(|w| error.contains(w)) && error.contains("style.safetensors"), "{error}");
        };
        says(&[(DOWN, &[2, 5]), (UP, &[4, 2])], &[DOWN, "[2, 5]", "[rank, 4]"]);
        says(&[(DOWN, &[2, 4]), (UP, &[4, 3])], &[UP, "[4, 3]", "[4, 2]"]);
        says(&[(DOWN, &[2, 4]), (UP, &[5, 2])], &[UP, "[5, 2]"]);
        says(&[(DOWN, &[2, 4])], &[DOWN, "other half"]);
        says(&[(UP, &[4, 2])], &[UP, "other half"]);
        says(&[("unet.lora_A.weight", &[2, 4])], &["no tensor is an adapter", "unet.lora_A.weight"]);
        let twice = "diffusion_model.blocks.0.self_attn.q.lora_down.weight";
        says(&[(DOWN, &[2, 4]), (UP, &[4, 2]), (twice, &[2, 4])], &[twice, "says the same"]);
        let alpha = "transformer.blocks.0.attn1.to_q.alpha";
        says(&[(DOWN, &[2, 4]), (UP, &[4, 2]), (alpha, &[2])], &[alpha, "more than one"]);
    }
}
