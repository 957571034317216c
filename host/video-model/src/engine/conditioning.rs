//! `condition`: prompts become what the transformer attends to.

use super::internal;
use crate::device_queue::Session;
use crate::model::VideoModel;
use crate::text::clean_prompt;
use kernels::Tensor;
use pipeline::{Frame, GenerationPlan, StageResult};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

/// What `condition` hands to `diffuse`.
#[derive(Clone)]
pub(super) struct PromptConditioning {
    pub(super) model_name: String,
    pub(super) model: Arc<VideoModel>,
    /// The prompt's states [text_length, width].
    pub(super) prompt: Tensor,
    /// Those of the negative prompt; encoded only when the plan is guided.
    pub(super) negative: Option<Tensor>,
    /// States of the given pictures, one below the other, for models that attend to them.
    pub(super) image: Option<Tensor>,
}

/// Bytes of text states kept: some 65,000 prompts of the built-in model, eight of the largest.
const CACHE_BYTES_MAX: usize = 64 << 20;

/// Text states by model and cleaned prompt, least recently used first. Most requests share their negative prompt.
#[derive(Default)]
pub(super) struct PromptCache {
    entries: Mutex<VecDeque<(PromptKey, Tensor)>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PromptKey {
    model: String,
    prompt: String,
}

impl PromptCache {
    fn get(&self, key: &PromptKey) -> Option<Tensor> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let at = entries.iter().position(|(k, _)| k == key)?;
        let entry = entries.remove(at)?;
        let states = entry.1.clone();
        entries.push_back(entry);
        Some(states)
    }

    fn insert(&self, key: PromptKey, states: Tensor) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = |t: &Tensor| t.len() * t.dtype().size_bytes();
        let mut held: usize = entries.iter().map(|(_, t)| bytes(t)).sum();
        while held + bytes(&states) > CACHE_BYTES_MAX {
            let Some((_, dropped)) = entries.pop_front() else { return };
            held -= bytes(&dropped);
        }
        entries.push_back((key, states));
    }
}

/// Encodes the prompt and, for a guided plan, the negative prompt, then the given pictures if the model attends to them:
/// one step each.
pub(super) struct EncodePrompts {
    model_name: String,
    model: Arc<VideoModel>,
    cache: Arc<PromptCache>,
    prompts: Vec<String>,
    encoded: Vec<Tensor>,
    /// First, then last.
    pictures: Vec<Frame>,
    images: Vec<Tensor>,
}

impl EncodePrompts {
    pub(super) fn new(plan: &GenerationPlan, model: Arc<VideoModel>, cache: Arc<PromptCache>) -> Self {
        let mut prompts = vec![clean_prompt(&plan.prompt)];
        if plan.guidance.is_guided() {
            prompts.push(clean_prompt(&plan.negative_prompt));
        }
        let mut given: Vec<_> = plan.given.iter().filter(|_| model.image_encoder.is_some()).collect();
        given.sort_by_key(|picture| picture.index);
        let pictures = given.into_iter().map(|picture| picture.frame.clone()).collect();
        let model_name = plan.model.clone();
        Self { model_name, model, cache, prompts, encoded: Vec::new(), pictures, images: Vec::new() }
    }

    fn states(&self, prompt: &str) -> StageResult<Tensor> {
        let key = PromptKey { model: self.model_name.clone(), prompt: prompt.to_owned() };
        if let Some(states) = self.cache.get(&key) {
            return Ok(states);
        }
        let states = self.model.text_encoder.encode(prompt).map_err(internal)?;
        self.cache.insert(key, states.clone());
        Ok(states)
    }
}

impl Session for EncodePrompts {
    type Output = PromptConditioning;

    fn steps(&self) -> u32 {
        (self.prompts.len() + self.pictures.len()) as u32
    }

    fn cost_class(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        ("condition", &self.model_name).hash(&mut hasher);
        hasher.finish()
    }

    fn step(&mut self) -> StageResult<Option<PromptConditioning>> {
        match (self.prompts.get(self.encoded.len()), self.pictures.get(self.images.len()), &self.model.image_encoder) {
            (Some(prompt), ..) => self.encoded.push(self.states(prompt)?),
            (None, Some(picture), Some(encoder)) => self.images.push(encoder.encode(picture).map_err(internal)?),
            _ => {}
        }
        if self.encoded.len() < self.prompts.len() || self.images.len() < self.pictures.len() {
            return Ok(None);
        }
        let image = match self.images.is_empty() {
            true => None,
            false => {
                Some(Tensor::concat_outer(&self.images.iter().collect::<Vec<_>>()).map_err(|e| internal(e.into()))?)
            }
        };
        let mut encoded = std::mem::take(&mut self.encoded).into_iter();
        Ok(encoded.next().map(|prompt| PromptConditioning {
            model_name: self.model_name.clone(),
            model: Arc::clone(&self.model),
            prompt,
            negative: encoded.next(),
            image,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::Dtype;

    fn key(prompt: &str) -> PromptKey {
        PromptKey { model: "m".to_owned(), prompt: prompt.to_owned() }
    }

    #[test]
    fn the_cache_stays_within_its_bytes_and_forgets_the_least_recent() {
        let cache = PromptCache::default();
        let third = CACHE_BYTES_MAX / 3 / 4;
        let states = || Tensor::zeros(&[third], Dtype::F32).unwrap();
        for prompt in ["a", "b", "c"] {
            cache.insert(key(prompt), states());
        }
        assert!(cache.get(&key("a")).is_some());
        cache.insert(key("d"), states());
        assert!(cache.get(&key("b")).is_none() && cache.get(&key("a")).is_some() && cache.get(&key("d")).is_some());
        assert!(cache.get(&PromptKey { model: "other".to_owned(), ..key("a") }).is_none());
        cache.insert(key("huge"), Tensor::zeros(&[CACHE_BYTES_MAX / 4 + 1], Dtype::F32).unwrap());
        assert!(cache.get(&key("huge")).is_none());
    }
}
