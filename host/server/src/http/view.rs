//! Stored things as a client sees them: seconds since 1970, percent, the four states of the Videos API.

use crate::platform::Platform;
use control_plane::{ApiKey, FunctionVersion, JobRecord, JobState, Tenant};
use pipeline::{Diffuse, FrameSize};
use serde_json::{Value, json};

/// The `video` object.
pub(super) fn video(platform: &Platform, job: &JobRecord) -> Value {
    let request = &job.spec.request;
    let defaults = platform.engine.defaults(request.model.as_deref()).ok();
    let size = request.size.or(defaults.as_ref().map(|d| d.size));
    let duration_ms = request.duration_ms.or(defaults.as_ref().map(|d| d.duration_ms));
    let (status, made_size, error) = match &job.state {
        JobState::Queued => ("queued", None, Value::Null),
        JobState::Running => ("in_progress", None, Value::Null),
        JobState::Completed(video) => ("completed", Some(video.size), Value::Null),
        JobState::Failed(failure) => ("failed", None, json!({ "code": failure.code, "message": failure.message })),
    };
    json!({
        "id": job.id,
        "object": "video",
        "model": request.model.as_deref().unwrap_or_else(|| platform.engine.default_model()),
        "status": status,
        "progress": job.progress_permille / 10,
        "stage": job.stage,
        "created_at": seconds(job.created_ms),
        "completed_at": job.completed_ms.map(seconds),
        "expires_at": job.expires_ms.map(seconds),
        "prompt": request.prompt,
        "seed": request.seed,
        "size": made_size.or(size).as_ref().map(FrameSize::to_string),
        "seconds": duration_ms.map(seconds_text),
        "remixed_from_video_id": job.remixed_from,
        "error": error,
    })
}

/// One version of a function.
pub(super) fn function(version: &FunctionVersion) -> Value {
    json!({
        "object": "function",
        "name": version.name,
        "version": version.version,
        "kind": version.kind,
        "digest": version.digest,
        "size_bytes": version.size_bytes,
        "created_at": seconds(version.created_ms),
    })
}

/// A tenant and its quotas.
pub(super) fn tenant(tenant: &Tenant) -> Value {
    json!({ "object": "tenant", "id": tenant.id, "created_at": seconds(tenant.created_ms), "quotas": tenant.quotas })
}

/// A key, without its secret.
pub(super) fn api_key(key: &ApiKey) -> Value {
    json!({
        "object": "api_key",
        "id": key.id,
        "tenant": key.tenant,
        "role": key.role,
        "label": key.label,
        "prefix": key.prefix,
        "created_at": seconds(key.created_ms),
        "last_used_at": key.last_used_ms.map(seconds),
        "revoked_at": key.revoked_ms.map(seconds),
    })
}

/// A page of a list. `first_id` and `last_id` are for the client that pages by them.
pub(super) fn list(data: Vec<Value>, id: &str, has_more: bool) -> Value {
    let id_of = |entry: Option<&Value>| entry.map_or(Value::Null, |e| e[id].clone());
    let (first_id, last_id) = (id_of(data.first()), id_of(data.last()));
    json!({ "object": "list", "data": data, "first_id": first_id, "last_id": last_id, "has_more": has_more })
}

fn seconds(ms: u64) -> u64 {
    ms / 1000
}

/// Milliseconds as the shortest decimal number of seconds: `4`, `0.25`.
fn seconds_text(ms: u32) -> String {
    (f64::from(ms) / 1000.0).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_written_as_they_were_sent() {
        assert_eq!([4000, 250, 1001, 60_000].map(seconds_text), ["4", "0.25", "1.001", "60"]);
    }
}
