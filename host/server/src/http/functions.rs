//! `/v1/functions`: deploy, look, delete, invoke.

use super::auth::Caller;
use super::body;
use super::error::ApiError;
use super::fields::Generation;
use super::page::{Address, PageParams, Params, parameter};
use super::{videos, view};
use crate::platform::Platform;
use crate::submission::FunctionCall;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use control_plane::{FunctionKind, FunctionVersion, JobRecord};
use pipeline::FunctionName;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How long an invocation waits for its video when the client does not say.
const WAIT_DEFAULT: Duration = Duration::from_secs(30);
/// How long it waits at most; intermediaries cut longer silences.
const WAIT_MAX: Duration = Duration::from_secs(60);

pub(super) async fn publish(
    State(platform): State<Arc<Platform>>,
    caller: Caller,
    Address(name): Address<String>,
    request: Request,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let name: FunctionName = name.parse().map_err(|error| ApiError::invalid("name", format!("name: {error}")))?;
    let component = body::component(request).await?;
    let published = platform.publish(caller.tenant(), &name, component.into()).await?;
    let status = if published.is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(view::function(&published.version))))
}

pub(super) async fn list(
    State(platform): State<Arc<Platform>>,
    caller: Caller,
    Params(params): Params<PageParams>,
) -> Result<Json<Value>, ApiError> {
    if params.order.as_deref().is_some_and(|order| order != "asc") {
        return Err(ApiError::invalid("order", "order: functions are listed by name; only asc is known"));
    }
    let after = parameter("after", params.after.as_deref())?;
    let limit = params.limit()?;
    // One more than wanted says whether there are more.
    let mut functions = platform.jobs.functions(caller.tenant(), after.as_ref(), limit + 1).await?;
    let has_more = functions.len() > limit as usize;
    functions.truncate(limit as usize);
    Ok(Json(view::list(functions.iter().map(view::function).collect(), "name", has_more)))
}

pub(super) async fn show(
    State(platform): State<Arc<Platform>>,
    caller: Caller,
    Address(name): Address<String>,
) -> Result<Json<Value>, ApiError> {
    let name = function_name(&name)?;
    let versions = platform.jobs.function_versions(caller.tenant(), &name).await?;
    let latest = versions.first().ok_or_else(|| ApiError::not_found("function", name.as_str()))?;
    let mut shown = view::function(latest);
    shown["versions"] = versions.iter().map(view::function).collect();
    Ok(Json(shown))
}

pub(super) async fn delete(
    State(platform): State<Arc<Platform>>,
    caller: Caller,
    Address(name): Address<String>,
) -> Result<Json<Value>, ApiError> {
    let name = function_name(&name)?;
    platform.unpublish(caller.tenant(), &name).await?;
    Ok(Json(json!({ "name": name, "object": "function.deleted", "deleted": true })))
}

/// Like a video request in which this function has the place that its kind says. Waits for the video unless the client
/// prefers not to; a client that hangs up does not stop the job.
pub(super) async fn invoke(
    State(platform): State<Arc<Platform>>,
    caller: Caller,
    Address(name): Address<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let name = function_name(&name)?;
    let wait = preferred_wait(request.headers())?;
    let key = videos::idempotency_key(request.headers())?;
    let mut fields = body::generation(request).await?;
    let idempotency = videos::idempotency(key, &format!("POST /v1/functions/{name}/invocations"), &fields);
    let call = FunctionCall { name, version: fields.version()?, config: fields.config()? };
    let version = platform.jobs.function(caller.tenant(), &call.name, call.version).await?;
    let version = version.ok_or_else(|| ApiError::not_found("function", call.name.as_str()))?;
    let generation = placed(fields.generation()?, call, &version)?;
    let admitted = platform.submit(videos::submission(caller.tenant().clone(), generation, idempotency)?).await?;
    let job = finished_within(&platform, admitted.job, wait).await?;
    let mut response = videos::show_job(&platform, &job);
    if !job.state.is_finished() {
        *response.status_mut() = StatusCode::ACCEPTED;
    }
    if wait.is_zero() {
        response.headers_mut().insert("preference-applied", HeaderValue::from_static("respond-async"));
    }
    Ok(response)
}

/// Puts the invoked function where its kind belongs.
fn placed(mut generation: Generation, call: FunctionCall, version: &FunctionVersion) -> Result<Generation, ApiError> {
    let taken = |field: &str| {
        let message = format!("{field}: the invoked function has this place already; leave the field out");
        Err(ApiError::invalid(field, message))
    };
    match version.kind {
        FunctionKind::PromptHook if generation.prompt_hook.is_some() => return taken("prompt_hook"),
        FunctionKind::Director if generation.director.is_some() => return taken("director"),
        FunctionKind::PromptHook => generation.prompt_hook = Some(call),
        FunctionKind::Director => generation.director = Some(call),
        FunctionKind::SimpleEffect | FunctionKind::FrameEffect => generation.effects.insert(0, call),
    }
    Ok(generation)
}

/// The job when it has finished, or as it stands when the time is over.
async fn finished_within(platform: &Platform, job: JobRecord, wait: Duration) -> Result<JobRecord, ApiError> {
    if wait.is_zero() {
        return Ok(job);
    }
    match tokio::time::timeout(wait, platform.wait(&job.tenant, &job.id)).await {
        Ok(finished) => Ok(finished?),
        Err(_) => videos::find(platform, &job.tenant, job.id.as_str()).await,
    }
}

/// `Prefer: respond-async` or `Prefer: wait=10` (RFC 7240).
fn preferred_wait(headers: &HeaderMap) -> Result<Duration, ApiError> {
    let mut wait = WAIT_DEFAULT;
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    for preference in values.flat_map(|value| value.split(',')).map(str::trim) {
        if preference.eq_ignore_ascii_case("respond-async") {
            return Ok(Duration::ZERO);
        }
        if let Some(seconds) = preference.strip_prefix("wait=") {
            let seconds = seconds.trim_matches('"').parse();
            let seconds = seconds.map_err(|_| ApiError::invalid("Prefer", "Prefer: wait is a number of seconds"))?;
            wait = Duration::from_secs(seconds).min(WAIT_MAX);
        }
    }
    Ok(wait)
}

/// A name in a path: one that cannot exist does not exist.
fn function_name(name: &str) -> Result<FunctionName, ApiError> {
    let shown: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
    name.parse().map_err(|_| ApiError::not_found("function", shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_are_read_as_the_standard_says() {
        let wait = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("prefer", HeaderValue::from_static(value));
            }
            preferred_wait(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(wait(&[]).unwrap(), 30);
        assert_eq!(wait(&["respond-async"]).unwrap(), 0);
        assert_eq!(wait(&["wait=5, respond-async"]).unwrap(), 0);
        assert_eq!(wait(&["handling=lenient", "wait=5"]).unwrap(), 5);
        assert_eq!(wait(&["wait=100000"]).unwrap(), 60);
        assert!(wait(&["wait=soon"]).is_err());
    }
}
