//! `condition`: prompts and pictures become what the transformer attends to.

use super::internal;
use super::on_device::MadeOn;
use super::prompt_cache::{PromptCache, PromptKey};
use crate::device_queue::Session;
use crate::memory::Placement;
use crate::model::VideoModel;
use crate::text::clean_prompt;
use kernels::Tensor;
use pipeline::{Frame, GenerationPlan, StageError, StageResult};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// What `condition` hands to `diffuse`: raw states, so that a transformer (and its adapters) can make its own of them.
#[derive(Clone)]
pub(super) struct PromptConditioning {
    pub(super) model_name: String,
    pub(super) model: Arc<VideoModel>,
    /// The prompt's states [text_length, width].
    pub(super) prompt: Tensor,
    /// Those of the negative prompt; only when the plan is guided.
    pub(super) negative: Option<Tensor>,
    /// States of the given pictures, one below the other, for models that attend to them.
    pub(super) image: Option<Tensor>,
    /// How the job makes do with the memory that there is.
    pub(super) placement: Placement,
    /// What it needs besides the model's weights.
    pub(super) job_bytes: u64,
    /// The device that holds all of this.
    pub(super) made_on: MadeOn,
}

/// A prompt as the text encoder sees it.
struct Text {
    prompt: String,
    key: PromptKey,
    states: Option<Tensor>,
}

/// Encodes what the cache does not know: one step for all prompts, then one for each picture.
pub(super) struct Encode {
    model_name: String,
    model: Arc<VideoModel>,
    /// The prompt and, for a guided plan, the negative prompt.
    texts: Vec<Text>,
    /// Pictures that the model attends to, in their order in time.
    pictures: Vec<Frame>,
    picture_states: Vec<Tensor>,
    learnt: Vec<(PromptKey, Tensor)>,
    steps: u32,
}

/// What a plan is conditioned on, and the states that were not known before.
pub(super) struct Encoded {
    pub(super) conditioning: PromptConditioning,
    pub(super) learnt: Vec<(PromptKey, Tensor)>,
}

impl Encode {
    /// All of `plan`, until [`Encode::look_up`] says what of it is known.
    pub(super) fn new(plan: &GenerationPlan, model: Arc<VideoModel>) -> Self {
        let digest = model.text_encoder.digest();
        let text = |prompt: &str| {
            let prompt = clean_prompt(prompt);
            Text { key: PromptKey::new(digest, &prompt), prompt, states: None }
        };
        let negative = plan.guidance.is_guided().then(|| text(&plan.negative_prompt));
        let texts = [text(&plan.prompt)].into_iter().chain(negative).collect();
        let mut given: Vec<_> = plan.given.iter().filter(|_| model.image_encoder.is_some()).collect();
        given.sort_by_key(|given| given.index);
        let pictures: Vec<Frame> = given.into_iter().map(|given| given.frame.clone()).collect();
        let steps = 1 + pictures.len() as u32;
        let (model_name, picture_states, learnt) = (plan.model.clone(), Vec::new(), Vec::new());
        Self { model_name, model, texts, pictures, picture_states, learnt, steps }
    }

    /// Takes what is known from the cache; may read files.
    pub(super) fn look_up(mut self, cache: &PromptCache) -> StageResult<Self> {
        for text in &mut self.texts {
            if let Some(known) = cache.get(text.key) {
                text.states = Some(known.tensor().map_err(internal)?);
            }
        }
        self.steps = u32::from(self.needs_text_encoder()) + self.pictures.len() as u32;
        Ok(self)
    }

    /// Whether the text encoder has to be asked.
    pub(super) fn needs_text_encoder(&self) -> bool {
        self.texts.iter().any(|text| text.states.is_none())
    }

    fn encode_texts(&mut self) -> StageResult<()> {
        let missing: Vec<&mut Text> = self.texts.iter_mut().filter(|text| text.states.is_none()).collect();
        let prompts: Vec<&str> = missing.iter().map(|text| text.prompt.as_str()).collect();
        let states = self.model.text_encoder.encode_all(&prompts).map_err(internal)?;
        for (text, states) in missing.into_iter().zip(states) {
            // Copied within the step: what a device that fails leaves behind must not be kept as the prompt's.
            self.learnt.push((text.key, states.to_host().map_err(|e| internal(e.into()))?));
            text.states = Some(states);
        }
        Ok(())
    }

    fn encode_picture(&mut self) -> StageResult<()> {
        let (Some(encoder), Some(picture)) = (&self.model.image_encoder, self.pictures.get(self.picture_states.len()))
        else {
            return Err(StageError::Internal("a picture for a model that attends to none".to_owned()));
        };
        self.picture_states.push(encoder.encode(picture).map_err(internal)?);
        Ok(())
    }

    /// The conditioning, once everything is encoded.
    pub(super) fn finished(&mut self) -> StageResult<Option<Encoded>> {
        if self.needs_text_encoder() || self.picture_states.len() < self.pictures.len() {
            return Ok(None);
        }
        let mut states = self.texts.iter_mut().filter_map(|text| text.states.take());
        let Some(prompt) = states.next() else { return Ok(None) };
        let negative = states.next();
        let pictures: Vec<&Tensor> = self.picture_states.iter().collect();
        let image = match pictures.is_empty() {
            true => None,
            false => Some(Tensor::concat_outer(&pictures).map_err(|e| internal(e.into()))?),
        };
        let (model_name, model) = (self.model_name.clone(), Arc::clone(&self.model));
        // The engine has decided about memory, and says so when all is encoded.
        let (placement, job_bytes, made_on) = (Placement::default(), 0, MadeOn::default());
        let conditioning =
            PromptConditioning { model_name, model, prompt, negative, image, placement, job_bytes, made_on };
        Ok(Some(Encoded { conditioning, learnt: std::mem::take(&mut self.learnt) }))
    }
}

impl Session for Encode {
    type Output = Encoded;

    fn steps(&self) -> u32 {
        self.steps
    }

    fn cost_class(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        ("condition", &self.model_name, self.needs_text_encoder()).hash(&mut hasher);
        hasher.finish()
    }

    fn step(&mut self) -> StageResult<Option<Encoded>> {
        match self.needs_text_encoder() {
            true => self.encode_texts()?,
            false => self.encode_picture()?,
        }
        self.finished()
    }
}
