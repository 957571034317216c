//! Which files of a repository make a model in diffusers' layout. Others (other formats, samples) are not fetched.

use crate::failure::Failure;
use serde::Deserialize;
use serde_json::Value;

/// The parts of a pipeline that we run.
const PARTS: [&str; 8] = [
    "scheduler",
    "tokenizer",
    "text_encoder",
    "image_processor",
    "image_encoder",
    "transformer",
    "transformer_2",
    "vae",
];
/// Parts without weights.
const SMALL_PARTS: [&str; 3] = ["scheduler", "tokenizer", "image_processor"];
/// Base names of weight files: diffusers' models, transformers' models.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
/// The file that names the parts.
pub(super) const INDEX: &str = "model_index.json";

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct RemoteFile {
    /// Its path in the repository.
    #[serde(rename = "rfilename")]
    pub(super) path: String,
    /// Its length.
    #[serde(default, rename = "size")]
    pub(super) bytes: Option<u64>,
    /// Set for large files.
    #[serde(default)]
    pub(super) lfs: Option<LargeFile>,
}

/// What the hub knows of a large file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct LargeFile {
    pub(super) sha256: String,
}

/// The files of the model whose `model_index.json` is `index`, in the order of `files`.
pub(super) fn needed<'f>(index: &Value, files: &'f [RemoteFile]) -> Result<Vec<&'f RemoteFile>, Failure> {
    let mut chosen: Vec<&RemoteFile> = files.iter().filter(|file| is_wanted_at_root(&file.path)).collect();
    for part in PARTS.into_iter().filter(|part| is_named(index, part)) {
        let prefix = format!("{part}/");
        let within = |file: &&RemoteFile| file.path.strip_prefix(&prefix).is_some_and(|rest| !rest.contains('/'));
        let of_part: Vec<&RemoteFile> = files.iter().filter(within).collect();
        if of_part.is_empty() {
            return Err(Failure::refused(format!(
                "the repository's {INDEX} names {part}, and there is no such folder"
            )));
        }
        let weights = if SMALL_PARTS.contains(&part) { Vec::new() } else { weights(part, &of_part)? };
        let configs = of_part.into_iter().filter(|file| file.path.ends_with(".json"));
        chosen.extend(configs.filter(|file| !file.path.ends_with(".index.json")));
        chosen.extend(weights);
    }
    Ok(chosen)
}

fn is_wanted_at_root(path: &str) -> bool {
    path == INDEX || ["LICENSE", "LICENSE.txt", "LICENSE.md", "README.md"].contains(&path)
}

/// A part is named with its library and class; one that is left out has nulls there.
fn is_named(index: &Value, part: &str) -> bool {
    index[part].as_array().is_some_and(|pair| pair.iter().any(Value::is_string))
}

/// One file, else an index with its shards, else the only safetensors file, else the only GGUF file.
fn weights<'f>(part: &str, files: &[&'f RemoteFile]) -> Result<Vec<&'f RemoteFile>, Failure> {
    let name = |file: &RemoteFile| file.path[part.len() + 1..].to_owned();
    for stem in STEMS {
        if let Some(single) = files.iter().find(|file| name(file) == format!("{stem}.safetensors")) {
            return Ok(vec![single]);
        }
    }
    for stem in STEMS {
        let index = format!("{stem}.safetensors.index.json");
        if files.iter().any(|file| name(file) == index) {
            let belongs = |file: &&&RemoteFile| name(file) == index || is_shard(&name(file), stem);
            return Ok(files.iter().filter(belongs).copied().collect());
        }
    }
    for ending in [".safetensors", ".gguf"] {
        match files.iter().filter(|file| file.path.ends_with(ending)).collect::<Vec<_>>().as_slice() {
            [] => {}
            [one] => return Ok(vec![one]),
            several => {
                let message = format!("{part} has {} {ending} files and none with the usual name", several.len());
                return Err(Failure::refused(message));
            }
        }
    }
    Err(Failure::refused(format!("{part} has no safetensors or GGUF weights")))
}

/// `<stem>-00001-of-00003.safetensors`.
fn is_shard(name: &str, stem: &str) -> bool {
    let numbers = name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('-'));
    let numbers = numbers.and_then(|rest| rest.strip_suffix(".safetensors")).and_then(|rest| rest.split_once("-of-"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    numbers.is_some_and(|(n, of)| digits(n) && digits(of))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chosen(index: &Value, paths: &[&str]) -> Result<Vec<String>, String> {
        let file = |path: &&str| RemoteFile { path: (*path).to_owned(), bytes: None, lfs: None };
        let files: Vec<RemoteFile> = paths.iter().map(file).collect();
        let needed = needed(index, &files).map_err(|failure| failure.message)?;
        Ok(needed.into_iter().map(|file| file.path.clone()).collect())
    }

    #[test]
    fn of_a_published_folder_only_what_the_layout_needs_is_fetched() {
        let index = json!({
            "_class_name": "WanImageToVideoPipeline", "scheduler": ["diffusers", "UniPCMultistepScheduler"],
            "transformer": ["diffusers", "WanTransformer3DModel"], "transformer_2": [null, null],
            "image_encoder": ["transformers", "CLIPVisionModel"], "boundary_ratio": null,
        });
        let kept = [
            "README.md",
            "model_index.json",
            "scheduler/scheduler_config.json",
            "image_encoder/config.json",
            "image_encoder/model.safetensors",
            "transformer/config.json",
            "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
            "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
            "transformer/diffusion_pytorch_model.safetensors.index.json",
        ];
        let left = [
            ".gitattributes",
            "assets/logo.png",
            "image_encoder/model.fp16.safetensors",
            "image_encoder/pytorch_model.bin",
            "transformer/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
            "transformer/diffusion_pytorch_model.fp16.safetensors.index.json",
            "transformer/onnx/model.onnx",
            "transformer_2/config.json",
            "safety_checker/config.json",
        ];
        assert_eq!(chosen(&index, &[&kept[..], &left].concat()).unwrap(), kept);
    }

    #[test]
    fn weights_of_another_name_or_format_are_taken_when_there_is_one_file_only() {
        let index = json!({ "transformer": ["diffusers", "WanTransformer3DModel"] });
        let gguf = ["model_index.json", "transformer/config.json", "transformer/wan-Q4_K_M.gguf"];
        assert_eq!(chosen(&index, &gguf).unwrap(), gguf);
        let two = ["transformer/a.safetensors", "transformer/b.safetensors"];
        assert!(chosen(&index, &two).unwrap_err().contains("2 .safetensors files"));
        assert!(chosen(&index, &["transformer/model.bin"]).unwrap_err().contains("no safetensors"));
        assert!(chosen(&index, &["vae/config.json"]).unwrap_err().contains("no such folder"));
    }
}
