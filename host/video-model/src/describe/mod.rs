//! What a model folder is, read from its small files and the headers of its weights: nothing is loaded.

mod shapes;
#[cfg(test)]
mod tests;

use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use crate::transformer::TransformerConfig;
use crate::weights::Weights;
use pipeline::{PicturesTaken, Taken};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Parts that hold weights, in the order of a run. The second and the fourth are not in every family.
const PARTS: [&str; 5] = ["text_encoder", "image_encoder", "transformer", "transformer_2", "vae"];
const OPTIONAL_PARTS: [&str; 2] = ["image_encoder", "transformer_2"];
/// Types that hold less than this share of a part's weights are not named: norms and biases.
const NAMED_SHARE: f64 = 0.01;

/// One network of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartInfo {
    /// Its folder.
    pub name: String,
    /// Number of weights.
    pub parameters: u64,
    /// Size of the weights in their files.
    pub bytes: u64,
    /// Types in which they are stored, the one of most weights first.
    pub dtypes: Vec<String>,
}

/// What a folder is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Description {
    pub(crate) family: &'static str,
    pub(crate) licence: Option<String>,
    pub(crate) parts: Vec<PartInfo>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(rename = "_class_name", default)]
    class_name: String,
    #[serde(default)]
    expand_timesteps: bool,
    #[serde(default)]
    zoetrope: Option<Value>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

impl Index {
    const FILE: &'static str = "model_index.json";

    /// A part is named with its library and class; one that is left out has nulls there.
    fn names(&self, part: &str) -> bool {
        self.rest.get(part).and_then(Value::as_array).is_some_and(|pair| pair.iter().any(Value::is_string))
    }

    fn parts(&self) -> impl Iterator<Item = &'static str> {
        PARTS.into_iter().filter(|part| !OPTIONAL_PARTS.contains(part) || self.names(part))
    }
}

/// Describes a folder; an error when one of its parts has no weights or they are not whole.
pub(crate) fn describe(files: &ModelFiles) -> Result<Description> {
    let index: Index = files.read_json(Index::FILE)?;
    let transformer: TransformerConfig = files.read_json("transformer/config.json")?;
    let parts = index.parts().map(|part| part_info(files, part)).collect::<Result<_>>()?;
    Ok(Description { family: family(&index, &transformer), licence: licence(files), parts })
}

/// Checks that a folder is whole and that its weights fit its configs.
pub(crate) fn check(files: &ModelFiles) -> Result<()> {
    let index: Index = files.read_json(Index::FILE)?;
    for part in index.parts() {
        match part {
            "text_encoder" => shapes::check_text_encoder(files)?,
            "transformer" | "transformer_2" => shapes::check_transformer(files, part)?,
            "vae" => shapes::check_vae(files)?,
            other => drop(files.weights(other)?),
        }
    }
    const TOKENIZER: &str = "tokenizer/tokenizer.json";
    files.read_json::<serde::de::IgnoredAny>(TOKENIZER).map(drop).map_err(|error| match error {
        ModelError::File { .. } => ModelError::config(
            files.name_of(TOKENIZER),
            "the tokenizer is read from this file; save it with transformers' `PreTrainedTokenizerFast`",
        ),
        other => other,
    })
}

/// The family in words.
fn family(index: &Index, transformer: &TransformerConfig) -> &'static str {
    let experts = index.names("transformer_2");
    let has_picture_channels = transformer.in_channels > transformer.out_channels();
    match (transformer.image_dim, transformer.pos_embed_seq_len) {
        _ if index.zoetrope.is_some() => "Wan (own layout)",
        _ if index.expand_timesteps => "Wan 2.2 text-and-image-to-video",
        (Some(_), Some(_)) => "Wan 2.1 first-and-last-frame-to-video",
        (Some(_), None) => "Wan 2.1 image-to-video",
        _ if experts && has_picture_channels => "Wan 2.2 image-to-video, two experts",
        _ if experts => "Wan 2.2 text-to-video, two experts",
        _ if has_picture_channels => "Wan image-to-video",
        _ if index.class_name == "WanPipeline" => "Wan 2.1 text-to-video",
        _ => "Wan",
    }
}

/// What a request may give, in words.
pub(crate) fn takes(pictures: PicturesTaken) -> String {
    let places = [("first", pictures.first), ("last", pictures.last), ("any other", pictures.between)];
    let names = |wanted: Taken| {
        let of_kind = places.iter().filter(|(_, taken)| *taken == wanted).map(|(name, _)| *name);
        of_kind.collect::<Vec<_>>().join(" and ")
    };
    let mut words = "text".to_owned();
    for (taken, how) in [(Taken::Required, ""), (Taken::Optional, ", if wanted")] {
        let names = names(taken);
        if !names.is_empty() {
            words += &format!("; the {names} picture{how}");
        }
    }
    words
}

fn part_info(files: &ModelFiles, part: &str) -> Result<PartInfo> {
    let weights = files.weights(part)?;
    let (mut parameters, mut bytes, mut by_dtype) = (0, 0, BTreeMap::<String, u64>::new());
    for name in weights.names() {
        bytes += weights.stored_bytes(name) as u64;
        if !Weights::is_auxiliary(name) {
            let count = weights.shape(name).map_or(0, |shape| shape.iter().product::<usize>() as u64);
            parameters += count;
            *by_dtype.entry(weights.stored_dtype(name).unwrap_or_default()).or_default() += count;
        }
    }
    let mut dtypes: Vec<(String, u64)> = by_dtype.into_iter().collect();
    dtypes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let named = |(_, count): &(String, u64)| *count as f64 >= NAMED_SHARE * parameters as f64;
    let dtypes = dtypes.into_iter().filter(named).map(|(dtype, _)| dtype).collect();
    Ok(PartInfo { name: part.to_owned(), parameters, bytes, dtypes })
}

/// The licence that the folder names: in its card's front matter, or at the top of a licence file.
fn licence(files: &ModelFiles) -> Option<String> {
    let text = |name: &str| files.read(name).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let in_card = text("README.md").and_then(|card| {
        let front = card.strip_prefix("---")?.split("\n---").next()?.to_owned();
        let line = front.lines().find_map(|line| line.strip_prefix("license:"))?.trim().to_owned();
        (!line.is_empty()).then_some(line)
    });
    let first_line = |name: &str| text(name)?.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned);
    let found = in_card.or_else(|| ["LICENSE", "LICENSE.txt", "LICENSE.md"].into_iter().find_map(first_line));
    found.map(|line| line.chars().filter(|c| !c.is_control()).take(80).collect())
}
