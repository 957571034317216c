//! The linear layers that adapters can correct.

use crate::transformer::TransformerConfig;

/// Outputs and inputs of a linear layer, named as diffusers names it; none when the model has no such layer.
pub(super) fn layer_shape(config: &TransformerConfig, layer: &str) -> Option<[usize; 2]> {
    let (d, ffn) = (config.width(), config.ffn_dim);
    if let Some(rest) = layer.strip_prefix("blocks.") {
        let (index, name) = rest.split_once('.')?;
        if index.parse::<usize>().ok()? >= config.num_layers {
            return None;
        }
        return match name {
            "ffn.net.0.proj" => Some([ffn, d]),
            "ffn.net.2" => Some([d, ffn]),
            "attn2.add_k_proj" | "attn2.add_v_proj" => config.image_dim.map(|_| [d, d]),
            _ => {
                let projection = name.strip_prefix("attn1.").or_else(|| name.strip_prefix("attn2."))?;
                matches!(projection, "to_q" | "to_k" | "to_v" | "to_out.0").then_some([d, d])
            }
        };
    }
    let patch: usize = config.patch_size.iter().product();
    match layer {
        "patch_embedding" => Some([d, config.in_channels * patch]),
        "proj_out" => Some([config.out_channels() * patch, d]),
        "condition_embedder.time_embedder.linear_1" => Some([d, config.freq_dim]),
        "condition_embedder.time_embedder.linear_2" | "condition_embedder.text_embedder.linear_2" => Some([d, d]),
        "condition_embedder.time_proj" => Some([6 * d, d]),
        "condition_embedder.text_embedder.linear_1" => Some([d, config.text_dim]),
        "condition_embedder.image_embedder.ff.net.0.proj" => config.image_dim.map(|width| [width, width]),
        "condition_embedder.image_embedder.ff.net.2" => config.image_dim.map(|width| [d, width]),
        _ => None,
    }
}
