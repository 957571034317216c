//! Wan's original tensor names, as its authors' files, GGUF conversions and most adapters use them, in diffusers' words.
//!
//! Source of the pairs: the module trees of Wan's own `WanModel` and diffusers' `WanTransformer3DModel`.

/// Modules of the whole network: original path, diffusers' path.
const NETWORK: [(&str, &str); 13] = [
    ("patch_embedding", "patch_embedding"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
    ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
    ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
    ("head.head", "proj_out"),
    ("head.modulation", "scale_shift_table"),
];

/// Modules of a block: original path, diffusers' path. The norms are numbered by use there, by place here.
const BLOCK: [(&str, &str); 19] = [
    ("self_attn.q", "attn1.to_q"),
    ("self_attn.k", "attn1.to_k"),
    ("self_attn.v", "attn1.to_v"),
    ("self_attn.o", "attn1.to_out.0"),
    ("self_attn.norm_q", "attn1.norm_q"),
    ("self_attn.norm_k", "attn1.norm_k"),
    ("cross_attn.q", "attn2.to_q"),
    ("cross_attn.k", "attn2.to_k"),
    ("cross_attn.v", "attn2.to_v"),
    ("cross_attn.o", "attn2.to_out.0"),
    ("cross_attn.norm_q", "attn2.norm_q"),
    ("cross_attn.norm_k", "attn2.norm_k"),
    ("cross_attn.k_img", "attn2.add_k_proj"),
    ("cross_attn.v_img", "attn2.add_v_proj"),
    ("cross_attn.norm_k_img", "attn2.norm_added_k"),
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("modulation", "scale_shift_table"),
];

/// What some programs write before every name.
const PREFIXES: [&str; 2] = ["model.diffusion_model.", "diffusion_model."];

/// The name without a prefix that only says that it is a diffusion model's.
pub fn without_prefix(name: &str) -> &str {
    PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// Diffusers' name for an original one; what follows the module's path stays (`weight`, `lora_A.weight`, …). None for a
/// name that no module of the original network has, and so for names that are diffusers' already.
pub fn to_diffusers(name: &str) -> Option<String> {
    let name = without_prefix(name);
    if let Some((block, rest)) = split_block(name) {
        return Some(format!("{block}.{}", translate(rest, &BLOCK)?));
    }
    translate(name, &NETWORK)
}

/// Whether a file with these names speaks the original dialect.
pub fn is_original<'n>(mut names: impl Iterator<Item = &'n str>) -> bool {
    names.any(|name| split_block(without_prefix(name)).is_some_and(|(_, rest)| translate(rest, &BLOCK).is_some()))
}

/// Pairs of original and diffusers' paths of every module of a network of `blocks` blocks: for dialects that flatten a
/// path (`blocks_0_self_attn_q`) and so cannot be translated piece by piece.
pub fn modules(blocks: usize) -> impl Iterator<Item = (String, String)> {
    let of_block = |i| BLOCK.iter().map(move |(from, to)| (format!("blocks.{i}.{from}"), format!("blocks.{i}.{to}")));
    let of_network = NETWORK.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned()));
    of_network.chain((0..blocks).flat_map(of_block))
}

/// `blocks.7` and what follows the dot.
fn split_block(name: &str) -> Option<(&str, &str)> {
    let (index, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
    let block = &name[..name.len() - rest.len() - 1];
    (!index.is_empty() && index.bytes().all(|b| b.is_ascii_digit())).then_some((block, rest))
}

fn translate(path: &str, table: &[(&str, &str)]) -> Option<String> {
    table.iter().find_map(|(from, to)| {
        let rest = path.strip_prefix(from)?;
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{to}{rest}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// Made by `tests/parity/dialect.py` with diffusers' own conversion.
    fn golden() -> BTreeMap<String, String> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/parity/goldens/dialect.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn every_original_name_becomes_the_one_that_diffusers_gives_it() {
        for (original, diffusers) in golden() {
            assert_eq!(to_diffusers(&original).as_ref(), Some(&diffusers), "{original}");
            assert_eq!(to_diffusers(&format!("model.diffusion_model.{original}")), Some(diffusers));
        }
    }

    #[test]
    fn every_module_of_the_tables_is_in_the_golden() {
        let golden = golden();
        let module = |name: &str| {
            let parents = [".weight", ".bias"];
            parents.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
        };
        let oracle: BTreeSet<_> = golden.iter().map(|(from, to)| (module(from), module(to))).collect();
        assert_eq!(oracle, modules(2).collect::<BTreeSet<_>>());
    }

    #[test]
    fn names_of_diffusers_and_of_others_are_left_alone() {
        let golden = golden();
        assert!(is_original(golden.keys().map(String::as_str)));
        assert!(!is_original(golden.values().map(String::as_str)));
        for name in ["blocks.0.attn1.to_q.weight", "proj_out.bias", "blocks.0.norm2.bias", "blocks.x.ffn.0", "", "."] {
            assert_eq!(to_diffusers(name), None, "{name}");
        }
        assert_eq!(to_diffusers("blocks.0.self_attn.query.weight"), None, "a module's name is taken whole");
    }

    #[test]
    fn what_follows_a_module_stays() {
        let adapter = to_diffusers("diffusion_model.blocks.11.cross_attn.k_img.lora_A.weight");
        assert_eq!(adapter.as_deref(), Some("blocks.11.attn2.add_k_proj.lora_A.weight"));
    }
}
