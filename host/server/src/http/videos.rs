//! `/v1/videos`: create, look, list, cancel, vary, delete.

use super::auth::Caller;
use super::body;
use super::error::ApiError;
use super::fields::{Fields, Generation};
use super::page::{Address, PageParams, Params, parameter};
use super::view;
use crate::platform::Platform;
use crate::submission::{FlowSubmission, Submission};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use control_plane::{Admission, Idempotency, JobRecord, JobState, JobStore, ListOrder, PageRequest};
use pipeline::{Diffuse, JobId, TenantId};
use serde_json::{Value, json};
use std::sync::Arc;

/// How soon a polling client should look again.
const POLL_AFTER_MS: u64 = 500;
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

pub(super) async fn create(
    State(platform): State<Arc<Platform>>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let key = idempotency_key(request.headers())?;
    let fields = body::generation(request).await?;
    let idempotency = idempotency(key, "POST /v1/videos", &fields);
    let submission = submission(caller.tenant().clone(), fields.generation()?, idempotency)?;
    let admitted = platform.submit(submission).await?;
    Ok(show_job(&platform, &admitted.job))
}

pub(super) async fn show(
    State(platform): State<Arc<Platform>>,
    caller: Caller,
    Address(id): Address<String>,
) -> Result<Response, ApiError> {
    let job = find(&platform, caller.tenant(), &id).await?;
    Ok(show_job(&platform, &job))
}

pub(super) async fn list(
    State(platform): State<Arc<Platform>>,
    caller: Caller,
    Params(params): Params<PageParams>,
) -> Result<Json<Value>, ApiError> {
    let order = match params.order.as_deref() {
        None | Some("desc") => ListOrder::Descending,
        Some("asc") => ListOrder::Ascending,
        Some(_) => return Err(ApiError::invalid("order", "order: choose asc or desc")),
    };
    let page = PageRequest { after: parameter("after", params.after.as_deref())?, limit: params.limit()?, order };
    let page = platform.jobs.list(caller.tenant(), &page).await?;
    let data = page.jobs.iter().map(|job| view::video(&platform, job)).collect();
    Ok(Json(view::list(data, "id", page.has_more)))
}

pub(super) async fn delete(
    State(platform): State<Arc<Platform>>,
    caller: Caller,
    Address(id): Address<String>,
) -> Result<Json<Value>, ApiError> {
    let id = job_id(&id)?;
    let objects = platform.jobs.delete(caller.tenant(), &id).await?;
    platform.remove_objects(&objects).await;
    Ok(Json(json!({ "id": id, "object": "video.deleted", "deleted": true })))
}

pub(super) async fn cancel(
    State(platform): State<Arc<Platform>>,
    caller: Caller,
    Address(id): Address<String>,
) -> Result<Response, ApiError> {
    let job = platform.jobs.cancel(caller.tenant(), &job_id(&id)?).await?;
    Ok(show_job(&platform, &job))
}

/// The same video with another prompt: everything else, the seed too, stays.
pub(super) async fn remix(
    State(platform): State<Arc<Platform>>,
    caller: Caller,
    Address(id): Address<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let key = idempotency_key(request.headers())?;
    let source = find(&platform, caller.tenant(), &id).await?;
    let mut fields = body::generation(request).await?;
    let idempotency = idempotency(key, &format!("POST /v1/videos/{id}/remix"), &fields);
    let prompt = fields.text("prompt")?;
    fields.nothing_left()?;
    if !matches!(source.state, JobState::Completed(_)) {
        let message = format!("`{id}` has no video to start from; wait until it is completed");
        return Err(ApiError::Conflict { code: "not_completed", message });
    }
    let mut spec = source.spec;
    spec.request.prompt = prompt.unwrap_or_default();
    spec.request.resolve(&platform.engine.defaults(spec.request.model.as_deref())?, 0)?;
    let admission = Admission {
        tenant: caller.tenant().clone(),
        spec,
        reserve_gpu_ms: platform.config.job_gpu_budget_ms,
        // The pictures are stored already, and counted with the first job.
        input_bytes: 0,
        remixed_from: Some(source.id),
        idempotency,
    };
    let admitted = platform.jobs.admit(admission).await?;
    Ok(show_job(&platform, &admitted.job))
}

/// The tenant's job, whether its name is malformed, unknown or another tenant's: those three look the same.
pub(super) async fn find(platform: &Platform, tenant: &TenantId, id: &str) -> Result<JobRecord, ApiError> {
    let missing = || ApiError::not_found("video", shown(id));
    platform.jobs.get(tenant, &job_id(id)?).await?.ok_or_else(missing)
}

fn job_id(id: &str) -> Result<JobId, ApiError> {
    id.parse().map_err(|_| ApiError::not_found("video", shown(id)))
}

fn shown(id: &str) -> String {
    id.chars().filter(|c| !c.is_control()).take(60).collect()
}

/// The job, and when to look again.
pub(super) fn show_job(platform: &Platform, job: &JobRecord) -> Response {
    let mut response = Json(view::video(platform, job)).into_response();
    if !job.state.is_finished() {
        response.headers_mut().insert("openai-poll-after-ms", HeaderValue::from(POLL_AFTER_MS));
    }
    response
}

/// The value of `Idempotency-Key`.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let valid = (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if valid {
        return Ok(Some(text.to_owned()));
    }
    let message = format!("Idempotency-Key: 1-{IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters");
    Err(ApiError::invalid("Idempotency-Key", message))
}

/// The key, scoped to its route, with what it was sent with.
pub(super) fn idempotency(key: Option<String>, route: &str, fields: &Fields) -> Option<Idempotency> {
    key.map(|key| Idempotency { key: format!("{route} {key}"), body: fields.digest(route) })
}

/// What was read, as the platform takes it.
pub(super) fn submission(
    tenant: TenantId,
    generation: Generation,
    idempotency: Option<Idempotency>,
) -> Result<Submission, ApiError> {
    let flow = match (generation.director, generation.prompt_hook, generation.input) {
        (None, prompt_hook, None) => FlowSubmission::Staged { prompt_hook },
        (Some(director), None, input) => {
            FlowSubmission::Directed { director, input: input.unwrap_or_else(|| "{}".to_owned()) }
        }
        (Some(_), Some(_), _) => {
            let message = "prompt_hook: a director makes the whole video itself; give one of the two";
            return Err(ApiError::invalid("prompt_hook", message));
        }
        (None, _, Some(_)) => {
            return Err(ApiError::invalid("input", "input: this is for a director, and none is named"));
        }
    };
    Ok(Submission {
        tenant,
        request: generation.request,
        images: generation.images,
        flow,
        effects: generation.effects,
        remixed_from: None,
        idempotency,
    })
}
