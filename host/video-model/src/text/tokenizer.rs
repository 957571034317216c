//! Prompts to token ids, by the model's own `tokenizer.json`.

use super::clean_prompt;
use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use tokenizers::{PostProcessor, Tokenizer, TruncationParams};

/// A tokenizer that cuts at a fixed number of tokens and never pads.
pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    text_length: usize,
}

impl PromptTokenizer {
    /// Reads the file at `path`. `text_length` counts the special tokens around the prompt.
    pub fn load(files: &ModelFiles, path: &str, text_length: usize) -> Result<Self> {
        let refused = |detail: String| ModelError::config(files.name_of(path), detail);
        let mut tokenizer = Tokenizer::from_bytes(files.read(path)?).map_err(|e| refused(e.to_string()))?;
        let special = tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(false));
        if text_length <= special {
            return Err(refused(format!(
                "a text length of {text_length} leaves no room beside {special} special tokens"
            )));
        }
        let truncation = TruncationParams { max_length: text_length, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| refused(e.to_string()))?;
        tokenizer.with_padding(None);
        Ok(Self { tokenizer, text_length })
    }

    /// The ids of `prompt` after cleaning: at most [`PromptTokenizer::text_length`] with the special tokens.
    pub fn token_ids(&self, prompt: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode(clean_prompt(prompt), true);
        let encoding = encoding.map_err(|e| ModelError::Input(format!("the prompt cannot be tokenized: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The largest number of tokens.
    pub fn text_length(&self) -> usize {
        self.text_length
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A WordPiece tokenizer of five words, as BERT's.
    const TINY: &str = r###"{
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "red": 5, "star": 6, "##s": 7}}}"###;

    fn tokenizer(text_length: usize) -> Result<PromptTokenizer> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tokenizer.json"), TINY).unwrap();
        PromptTokenizer::load(&ModelFiles::Folder(folder.path().to_owned()), "tokenizer.json", text_length)
    }

    #[test]
    fn words_fall_into_pieces_between_the_special_tokens() {
        let tokenizer = tokenizer(16).unwrap();
        assert_eq!(tokenizer.token_ids("  A red\n\tSTARS ").unwrap(), [2, 4, 5, 6, 7, 3]);
        assert_eq!(tokenizer.token_ids("").unwrap(), [2, 3]);
        assert_eq!(tokenizer.token_ids("a zebra").unwrap(), [2, 4, 1, 3]);
    }

    #[test]
    fn a_long_prompt_is_cut_and_keeps_its_end_token() {
        assert_eq!(tokenizer(5).unwrap().token_ids("a red star a red star").unwrap(), [2, 4, 5, 6, 3]);
        assert!(matches!(tokenizer(2), Err(ModelError::Config { .. })));
    }

    #[test]
    fn a_damaged_tokenizer_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tokenizer.json"), &TINY[..TINY.len() / 2]).unwrap();
        let error =
            PromptTokenizer::load(&ModelFiles::Folder(folder.path().to_owned()), "tokenizer.json", 8).err().unwrap();
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
}
