//! Whether weights fit their config, by the headers alone: what takes a minute to load is refused at once.

use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use crate::transformer::TransformerConfig;
use crate::vae::VaeConfig;
use crate::weights::Weights;
use serde::Deserialize;

/// Checks every tensor of the video transformer in `part`, and that no block is left over.
pub(super) fn check_transformer(files: &ModelFiles, part: &str) -> Result<()> {
    let path = format!("{part}/config.json");
    let config: TransformerConfig = files.read_json(&path)?;
    config.check(&files.name_of(&path))?;
    let weights = files.weights(part)?;
    let (d, [pf, ph, pw]) = (config.width(), config.patch_size);
    let expect = Expect { weights: &weights };
    expect.tensor("patch_embedding.weight", &[d, config.in_channels, pf, ph, pw])?;
    expect.tensor("patch_embedding.bias", &[d])?;
    expect.tensor("scale_shift_table", &[1, 2, d])?;
    expect.linear("proj_out", d, config.out_channels() * pf * ph * pw)?;
    expect.linear("condition_embedder.time_embedder.linear_1", config.freq_dim, d)?;
    expect.linear("condition_embedder.time_embedder.linear_2", d, d)?;
    expect.linear("condition_embedder.time_proj", d, 6 * d)?;
    expect.linear("condition_embedder.text_embedder.linear_1", config.text_dim, d)?;
    expect.linear("condition_embedder.text_embedder.linear_2", d, d)?;
    if let Some(image) = config.image_dim {
        const EMBEDDER: &str = "condition_embedder.image_embedder";
        expect.norm(&format!("{EMBEDDER}.norm1"), image)?;
        expect.linear(&format!("{EMBEDDER}.ff.net.0.proj"), image, image)?;
        expect.linear(&format!("{EMBEDDER}.ff.net.2"), image, d)?;
        expect.norm(&format!("{EMBEDDER}.norm2"), d)?;
        if let Some(tokens) = config.pos_embed_seq_len {
            expect.tensor(&format!("{EMBEDDER}.pos_embed"), &[1, tokens, image])?;
        }
    }
    for block in 0..config.num_layers {
        check_block(&expect, &format!("blocks.{block}"), &config)?;
    }
    let one_more = format!("blocks.{}.", config.num_layers);
    match weights.names().find(|name| name.starts_with(&one_more)) {
        None => Ok(()),
        Some(name) => Err(ModelError::config(
            files.name_of(&path),
            format!("num_layers is {}, the weights have `{name}`", config.num_layers),
        )),
    }
}

fn check_block(expect: &Expect<'_>, block: &str, config: &TransformerConfig) -> Result<()> {
    let (d, inner) = (config.width(), config.ffn_dim);
    expect.tensor(&format!("{block}.scale_shift_table"), &[1, 6, d])?;
    if config.cross_attn_norm {
        expect.norm(&format!("{block}.norm2"), d)?;
    }
    for attention in ["attn1", "attn2"] {
        for layer in ["to_q", "to_k", "to_v", "to_out.0"] {
            expect.linear(&format!("{block}.{attention}.{layer}"), d, d)?;
        }
        for norm in ["norm_q", "norm_k"] {
            expect.tensor(&format!("{block}.{attention}.{norm}.weight"), &[d])?;
        }
    }
    if config.image_dim.is_some() {
        for layer in ["add_k_proj", "add_v_proj"] {
            expect.linear(&format!("{block}.attn2.{layer}"), d, d)?;
        }
        expect.tensor(&format!("{block}.attn2.norm_added_k.weight"), &[d])?;
    }
    expect.linear(&format!("{block}.ffn.net.0.proj"), d, inner)?;
    expect.linear(&format!("{block}.ffn.net.2"), inner, d)
}

/// The sizes of a `UMT5EncoderModel`, with transformers' names.
#[derive(Deserialize)]
struct Umt5 {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
}

#[derive(Deserialize)]
struct TextEncoder {
    #[serde(default)]
    model_type: String,
}

/// Checks the matrices of a UMT5 text encoder. Others are small enough to be checked as they load.
pub(super) fn check_text_encoder(files: &ModelFiles) -> Result<()> {
    const CONFIG: &str = "text_encoder/config.json";
    let weights = files.weights("text_encoder")?;
    if files.read_json::<TextEncoder>(CONFIG)?.model_type != "umt5" {
        return Ok(());
    }
    let config: Umt5 = files.read_json(CONFIG)?;
    let expect = Expect { weights: &weights };
    let Some(inner) = config.num_heads.checked_mul(config.d_kv) else {
        return Err(ModelError::config(files.name_of(CONFIG), "num_heads and d_kv are out of range"));
    };
    // Either name is written for the same table.
    let table = ["shared.weight", "encoder.embed_tokens.weight"].into_iter().find(|name| weights.shape(name).is_some());
    expect.tensor(table.unwrap_or("shared.weight"), &[config.vocab_size, config.d_model])?;
    for layer in 0..config.num_layers {
        let block = format!("encoder.block.{layer}.layer");
        for name in ["q", "k", "v"] {
            expect.tensor(&format!("{block}.0.SelfAttention.{name}.weight"), &[inner, config.d_model])?;
        }
        expect.tensor(&format!("{block}.0.SelfAttention.o.weight"), &[config.d_model, inner])?;
        expect.tensor(&format!("{block}.1.DenseReluDense.wo.weight"), &[config.d_model, config.d_ff])?;
    }
    expect.tensor("encoder.final_layer_norm.weight", &[config.d_model])
}

/// Checks the layers at the VAE's ends and around its latents; the rest is checked as it loads, in a second.
pub(super) fn check_vae(files: &ModelFiles) -> Result<()> {
    const CONFIG: &str = "vae/config.json";
    let config: VaeConfig = files.read_json(CONFIG)?;
    config.check(&files.name_of(CONFIG))?;
    let weights = files.weights("vae")?;
    let (expect, z) = (Expect { weights: &weights }, config.z_dim);
    expect.tensor("quant_conv.weight", &[2 * z, 2 * z, 1, 1, 1])?;
    expect.tensor("post_quant_conv.weight", &[z, z, 1, 1, 1])?;
    let patch = config.patch_size.unwrap_or(1);
    let (inner, decoder) = (3 * patch * patch, config.decoder_base_dim.unwrap_or(config.base_dim));
    expect.tensor("encoder.conv_in.weight", &[config.base_dim, inner, 3, 3, 3])?;
    expect.tensor("decoder.conv_out.weight", &[inner, decoder * config.dim_mult.first().unwrap_or(&1), 3, 3, 3])
}

struct Expect<'w> {
    weights: &'w Weights,
}

impl Expect<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.weights.check(name, shape)
    }

    fn linear(&self, name: &str, inputs: usize, outputs: usize) -> Result<()> {
        self.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        self.tensor(&format!("{name}.bias"), &[outputs])
    }

    fn norm(&self, name: &str, width: usize) -> Result<()> {
        self.tensor(&format!("{name}.weight"), &[width])?;
        self.tensor(&format!("{name}.bias"), &[width])
    }
}
