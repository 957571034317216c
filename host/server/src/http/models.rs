//! `/v1/models`: what this server can run.

use super::auth::Caller;
use super::error::ApiError;
use super::page::Address;
use super::view;
use crate::platform::Platform;
use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) async fn list(State(platform): State<Arc<Platform>>, _: Caller) -> Result<Json<Value>, ApiError> {
    Ok(Json(view::list(models(&platform)?, "id", false)))
}

pub(super) async fn show(
    State(platform): State<Arc<Platform>>,
    _: Caller,
    Address(name): Address<String>,
) -> Result<Json<Value>, ApiError> {
    let found = models(&platform)?.into_iter().find(|model| model["id"] == name.as_str());
    let shown: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
    found.map(Json).ok_or_else(|| ApiError::not_found("model", shown))
}

fn models(platform: &Platform) -> Result<Vec<Value>, ApiError> {
    let mut shown = Vec::new();
    for info in platform.engine.models()? {
        let details = serde_json::to_value(&info).map_err(ApiError::internal)?;
        let id = info.name;
        shown.push(json!({ "id": id, "object": "model", "created": 0, "owned_by": "zoetrope", "details": details }));
    }
    Ok(shown)
}
