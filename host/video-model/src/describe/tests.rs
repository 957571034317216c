use super::*;
use include_dir::{Dir, include_dir};
use serde_json::json;

static DEFAULT: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/default-model/weights");

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";

/// The built-in model's files with one of them changed, or taken away.
fn changed(path: &str, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> ModelFiles {
    fn collect(dir: &Dir<'static>, into: &mut BTreeMap<String, Vec<u8>>) {
        into.extend(dir.files().map(|file| (file.path().to_str().unwrap().to_owned(), file.contents().to_vec())));
        dir.dirs().for_each(|dir| collect(dir, into));
    }
    let mut files = BTreeMap::new();
    collect(&DEFAULT, &mut files);
    let old = files.remove(path).unwrap_or_default();
    files.extend(change(old).map(|new| (path.to_owned(), new)));
    ModelFiles::memory(files)
}

fn refusal(path: &str, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> String {
    check(&changed(path, change)).expect_err("the damaged folder was taken").to_string()
}

fn edited(edit: impl FnOnce(&mut Value)) -> impl FnOnce(Vec<u8>) -> Option<Vec<u8>> {
    |old| {
        let mut value = serde_json::from_slice(&old).unwrap();
        edit(&mut value);
        Some(value.to_string().into_bytes())
    }
}

#[test]
fn the_built_in_model_is_whole_and_says_what_it_is() {
    let files = ModelFiles::Embedded(&DEFAULT);
    check(&files).unwrap();
    let description = describe(&files).unwrap();
    assert_eq!(description.family, "Wan (own layout)");
    let names: Vec<&str> = description.parts.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(names, ["text_encoder", "transformer", "vae"]);
    for part in &description.parts {
        assert!(part.parameters > 100_000 && part.bytes >= part.parameters && !part.dtypes.is_empty(), "{part:?}");
    }
}

#[test]
fn each_way_in_which_a_folder_is_not_whole_is_named() {
    let says = |message: String, words: &[&str]| assert!(words.iter().all(|w| message.contains(w)), "{message}");
    let config = "transformer/config.json";
    says(refusal(config, edited(|c| c["ffn_dim"] = json!(8))), &["blocks.0.ffn.net.0.proj", "the config needs"]);
    says(refusal(config, edited(|c| c["num_layers"] = json!(1))), &[config, "num_layers is 1", "blocks.1."]);
    says(refusal(config, edited(|c| c["num_layers"] = json!(90))), &["there is no tensor", "blocks."]);
    says(refusal("vae/config.json", edited(|c| c["base_dim"] = json!(16))), &["encoder.conv_in.weight"]);
    says(
        refusal(TRANSFORMER, |mut bytes| {
            bytes.pop();
            Some(bytes)
        }),
        &[TRANSFORMER, "cut off"],
    );
    says(refusal(TRANSFORMER, |_| None), &["transformer", "no weights"]);
    says(refusal("tokenizer/tokenizer.json", |_| None), &["tokenizer.json", "PreTrainedTokenizerFast"]);
    says(refusal("tokenizer/tokenizer.json", |_| Some(b"{".to_vec())), &["tokenizer.json"]);
    let named = edited(|index| index["transformer_2"] = json!(["diffusers", "WanTransformer3DModel"]));
    says(refusal("model_index.json", named), &["transformer_2"]);
}

#[test]
fn published_families_are_told_apart() {
    let told = |index: Value, config: Value| {
        let index: Index = serde_json::from_value(index).unwrap();
        let config: TransformerConfig = serde_json::from_value(config).unwrap();
        family(&index, &config)
    };
    let (wan, i2v) = (json!({ "_class_name": "WanPipeline" }), json!({ "_class_name": "WanImageToVideoPipeline" }));
    let expert = json!(["diffusers", "WanTransformer3DModel"]);
    let experts = |class: &str| json!({ "_class_name": class, "boundary_ratio": 0.9, "transformer_2": expert });
    assert_eq!(told(wan.clone(), json!({})), "Wan 2.1 text-to-video");
    let clip = json!({ "image_dim": 1280, "added_kv_proj_dim": 5120, "in_channels": 36 });
    assert_eq!(told(i2v.clone(), clip), "Wan 2.1 image-to-video");
    let both_ends = json!({ "image_dim": 1280, "in_channels": 36, "pos_embed_seq_len": 514 });
    assert_eq!(told(i2v, both_ends), "Wan 2.1 first-and-last-frame-to-video");
    let ti2v = json!({ "_class_name": "WanPipeline", "expand_timesteps": true });
    assert_eq!(told(ti2v, json!({ "in_channels": 48, "out_channels": 48 })), "Wan 2.2 text-and-image-to-video");
    assert_eq!(told(experts("WanPipeline"), json!({})), "Wan 2.2 text-to-video, two experts");
    let a14b = told(experts("WanImageToVideoPipeline"), json!({ "in_channels": 36 }));
    assert_eq!(a14b, "Wan 2.2 image-to-video, two experts");
    let nulls = json!({ "_class_name": "WanPipeline", "transformer_2": [null, null] });
    assert_eq!(told(nulls, json!({})), "Wan 2.1 text-to-video");
}

#[test]
fn the_licence_comes_from_the_card_or_from_the_licence_file() {
    let with = |path: &str, text: &str| licence(&ModelFiles::memory([(path.to_owned(), text.as_bytes().to_vec())]));
    assert_eq!(
        with("README.md", "---\nlanguage: en\nlicense: apache-2.0\n---\n# A\nlicense: no\n").unwrap(),
        "apache-2.0"
    );
    assert_eq!(with("LICENSE.txt", "\n   Apache License\n Version 2.0\n").unwrap(), "Apache License");
    assert_eq!(with("README.md", "# A card without front matter\nlicense: x\n"), None);
}

#[test]
fn what_a_model_takes_is_said_in_words() {
    assert_eq!(takes(PicturesTaken::NONE), "text");
    assert_eq!(takes(PicturesTaken::ANY), "text; the first and last and any other picture, if wanted");
    let clip = PicturesTaken { first: Taken::Required, ..PicturesTaken::NONE };
    assert_eq!(takes(clip), "text; the first picture");
    let experts = PicturesTaken { last: Taken::Optional, ..clip };
    assert_eq!(takes(experts), "text; the first picture; the last picture, if wanted");
    let ends = PicturesTaken { last: Taken::Required, ..clip };
    assert_eq!(takes(ends), "text; the first and last picture");
}
