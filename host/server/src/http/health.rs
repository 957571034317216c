//! Probes for whoever runs the process.

use super::error::ApiError;
use crate::platform::Platform;
use axum::Json;
use axum::extract::State;
use control_plane::JobStore;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// A database that takes longer is as good as none.
const READY_TIME_MAX: Duration = Duration::from_secs(5);

/// The process answers.
pub(super) async fn alive() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// The process can take work: its database answers, and a device works if it runs jobs.
pub(super) async fn ready(State(platform): State<Arc<Platform>>) -> Result<Json<Value>, ApiError> {
    if platform.config.runs_jobs() && !platform.engine.has_working_device() {
        return Err(ApiError::Unavailable("no device works; restart the process".to_owned()));
    }
    match tokio::time::timeout(READY_TIME_MAX, platform.jobs.queue_stats()).await {
        Ok(Ok(stats)) => Ok(Json(json!({ "status": "ready", "queued": stats.queued, "running": stats.running }))),
        Ok(Err(_)) | Err(_) => Err(ApiError::Unavailable("the database does not answer".to_owned())),
    }
}
