//! `admit`: from what a tenant asks for to a job in the queue. Everything that can be refused is refused here, before
//! anything is reserved or billed.

use crate::platform::Platform;
use control_plane::{Admission, Admitted, ControlError, FunctionKind, Idempotency, JobStore};
use media::ObjectError;
use pipeline::{
    Flow, FunctionName, FunctionRef, GenerationRequest, GivenImage, JobId, JobSpec, KeyFramePosition, ObjectKey,
    StageError, TenantId, limits,
};
use rand::Rng;
use std::collections::BTreeMap;
use thiserror::Error;

/// A tenant's function, as a request names it.
#[derive(Debug, Clone)]
pub struct FunctionCall {
    /// Its name.
    pub name: FunctionName,
    /// Which version; none is the latest.
    pub version: Option<u32>,
    /// Configuration of this call.
    pub config: BTreeMap<String, String>,
}

/// Who makes the frames.
#[derive(Debug, Clone)]
pub enum FlowSubmission {
    /// The stages in their order.
    Staged {
        /// Rewrites the request first.
        prompt_hook: Option<FunctionCall>,
    },
    /// A director.
    Directed {
        /// The director.
        director: FunctionCall,
        /// Its own input, JSON text.
        input: String,
    },
}

/// Everything that a request says.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Who asks.
    pub tenant: TenantId,
    /// What to generate.
    pub request: GenerationRequest,
    /// Uploaded pictures, as files.
    pub images: Vec<(KeyFramePosition, Vec<u8>)>,
    /// Who makes the frames.
    pub flow: FlowSubmission,
    /// Effects, in this order.
    pub effects: Vec<FunctionCall>,
    /// The job that this one varies.
    pub remixed_from: Option<JobId>,
    /// Makes a repeated request the same job.
    pub idempotency: Option<Idempotency>,
}

impl Submission {
    /// Only a request: no pictures, no functions.
    pub fn plain(tenant: TenantId, request: GenerationRequest) -> Self {
        Self {
            tenant,
            request,
            images: Vec::new(),
            flow: FlowSubmission::Staged { prompt_hook: None },
            effects: Vec::new(),
            remixed_from: None,
            idempotency: None,
        }
    }
}

/// Why a request did not become a job. Nothing was reserved.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// A field is wrong.
    #[error(transparent)]
    Request(#[from] StageError),
    /// There is no such function.
    #[error("{field}: there is no function `{name}`; push it first, or see `zoetrope functions`")]
    UnknownFunction {
        /// The request field.
        field: &'static str,
        /// The name.
        name: FunctionName,
    },
    /// The function is of another kind.
    #[error("{field}: `{name}` is a {found}, and this needs a {expected}")]
    WrongKind {
        /// The request field.
        field: &'static str,
        /// The name.
        name: FunctionName,
        /// What it is.
        found: FunctionKind,
        /// What would do.
        expected: &'static str,
    },
    /// The control plane refused or failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The object store failed.
    #[error("the object store failed")]
    Objects(#[from] ObjectError),
}

impl Platform {
    /// Checks a submission, stores its pictures and enqueues it.
    pub async fn submit(&self, submission: Submission) -> Result<Admitted, SubmitError> {
        let positions = match submission.flow {
            FlowSubmission::Staged { prompt_hook: None } => {
                Some(submission.images.iter().map(|(position, _)| *position))
            }
            // A hook may choose another model, and a director asks for pictures of its own.
            _ => None,
        };
        let request = self.checked_request(submission.request, positions)?;
        let flow = self.checked_flow(&submission.tenant, submission.flow).await?;
        let effects = self.checked_effects(&submission.tenant, submission.effects).await?;
        let (images, input_bytes) = self.store_images(&submission.tenant, submission.images).await?;
        let admission = Admission {
            tenant: submission.tenant,
            spec: JobSpec { request, images, flow, effects },
            reserve_gpu_ms: self.config.job_gpu_budget_ms,
            input_bytes,
            remixed_from: submission.remixed_from,
            idempotency: submission.idempotency,
        };
        // A refusal leaves its pictures where they are: they are named by their content, and removing one could take it
        // from another job that was sent the same picture.
        Ok(self.jobs.admit(admission).await?)
    }

    /// The request with its seed fixed, so that a job that runs again after a crash makes the same video.
    fn checked_request(
        &self,
        mut request: GenerationRequest,
        pictures: Option<impl Iterator<Item = KeyFramePosition>>,
    ) -> Result<GenerationRequest, SubmitError> {
        let defaults = pipeline::Diffuse::defaults(&*self.engine, request.model.as_deref())?;
        // JSON numbers hold 53 bits exactly: a seed shown to a client must come back as it was.
        let seed = *request.seed.get_or_insert_with(|| rand::rng().random_range(0..1 << 53));
        let plan = request.resolve(&defaults, seed)?;
        if let Some(pictures) = pictures {
            defaults.pictures.check(pictures.map(|position| position.index(plan.key_frames)), plan.key_frames)?;
        }
        Ok(request)
    }

    async fn checked_flow(&self, tenant: &TenantId, flow: FlowSubmission) -> Result<Flow, SubmitError> {
        Ok(match flow {
            FlowSubmission::Staged { prompt_hook: None } => Flow::Staged { prompt_hook: None },
            FlowSubmission::Staged { prompt_hook: Some(call) } => {
                let is_hook = |kind| kind == FunctionKind::PromptHook;
                let hook = self.function(tenant, "prompt_hook", call, is_hook, "prompt hook").await?;
                Flow::Staged { prompt_hook: Some(hook) }
            }
            FlowSubmission::Directed { director, input } => {
                check_director_input(&input)?;
                let is_director = |kind| kind == FunctionKind::Director;
                let director = self.function(tenant, "director", director, is_director, "director").await?;
                Flow::Directed { director, input }
            }
        })
    }

    async fn checked_effects(
        &self,
        tenant: &TenantId,
        calls: Vec<FunctionCall>,
    ) -> Result<Vec<FunctionRef>, SubmitError> {
        if calls.len() > limits::EFFECTS_MAX {
            let message = format!("{} effects; at most {} are taken", calls.len(), limits::EFFECTS_MAX);
            return Err(StageError::invalid("effects", message).into());
        }
        let is_effect = |kind| matches!(kind, FunctionKind::SimpleEffect | FunctionKind::FrameEffect);
        let mut effects = Vec::with_capacity(calls.len());
        for call in calls {
            effects.push(self.function(tenant, "effects", call, is_effect, "effect").await?);
        }
        Ok(effects)
    }

    async fn function(
        &self,
        tenant: &TenantId,
        field: &'static str,
        call: FunctionCall,
        fits: impl Fn(FunctionKind) -> bool,
        expected: &'static str,
    ) -> Result<FunctionRef, SubmitError> {
        let Some(version) = self.jobs.function(tenant, &call.name, call.version).await? else {
            return Err(SubmitError::UnknownFunction { field, name: call.name });
        };
        if !fits(version.kind) {
            return Err(SubmitError::WrongKind { field, name: call.name, found: version.kind, expected });
        }
        Ok(FunctionRef { name: call.name, digest: version.digest, config: call.config })
    }

    async fn store_images(
        &self,
        tenant: &TenantId,
        images: Vec<(KeyFramePosition, Vec<u8>)>,
    ) -> Result<(Vec<GivenImage>, u64), SubmitError> {
        let prefix: ObjectKey = format!("{tenant}/pictures").parse().expect("a tenant id makes a valid key");
        let mut given = Vec::with_capacity(images.len());
        let mut input_bytes = 0;
        for (position, bytes) in images {
            let (bytes, extension) = checked_picture(bytes).await?;
            input_bytes += bytes.len() as u64;
            given.push(GivenImage { position, object: self.objects.put(&prefix, bytes, extension).await? });
        }
        Ok((given, input_bytes))
    }
}

/// Decodes the picture once, so that a broken one is refused now and not when the job runs.
async fn checked_picture(bytes: Vec<u8>) -> Result<(Vec<u8>, &'static str), SubmitError> {
    let checking = tokio::task::spawn_blocking(move || media::decode_picture(&bytes).map(|_| bytes));
    let checked = checking.await.map_err(|stopped| StageError::Internal(format!("picture decoder: {stopped}")))?;
    let bytes = checked.map_err(|error| StageError::invalid("input_reference", error.to_string()))?;
    Ok((bytes, "img"))
}

fn check_director_input(input: &str) -> Result<(), StageError> {
    if input.len() > limits::DIRECTOR_INPUT_BYTES_MAX {
        let message = format!("{} bytes; at most {} are taken", input.len(), limits::DIRECTOR_INPUT_BYTES_MAX);
        return Err(StageError::invalid("input", message));
    }
    serde_json::from_str::<serde::de::IgnoredAny>(input)
        .map(drop)
        .map_err(|error| StageError::invalid("input", format!("a director's input is JSON: {error}")))
}
