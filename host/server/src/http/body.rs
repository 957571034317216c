//! Reading bodies: each with a limit in bytes and in time, whatever its headers claim.

use super::error::ApiError;
use super::fields::Fields;
use super::multipart;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use pipeline::limits;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

/// Two pictures as base64 and everything else.
const GENERATION_BYTES_MAX: usize = 2 * (limits::IMAGE_BYTES_MAX / 3 * 4) + 2 * limits::DIRECTOR_INPUT_BYTES_MAX;
/// Settings are small.
const SETTINGS_BYTES_MAX: usize = 64 * 1024;
/// A slow line may need a while for a picture, but not for ever.
const BODY_TIME_MAX: Duration = Duration::from_secs(120);

/// The whole body, if it is at most `bytes_max` long and arrives in time.
pub(super) async fn bytes(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if announced.is_some_and(|length| length > bytes_max as u64) {
        return Err(ApiError::TooLarge { bytes_max });
    }
    match tokio::time::timeout(BODY_TIME_MAX, read(body, bytes_max)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ApiError::BodyTimeout),
    }
}

async fn read(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    use futures::StreamExt;
    let mut stream = body.into_data_stream();
    let mut whole = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| malformed("the body broke off"))?;
        if whole.len() + chunk.len() > bytes_max {
            return Err(ApiError::TooLarge { bytes_max });
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.into())
}

/// A small JSON body.
pub(super) async fn settings<T: DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    let (parts, body) = request.into_parts();
    require_json(&parts.headers)?;
    let bytes = bytes(&parts.headers, body, SETTINGS_BYTES_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|error| malformed(format!("the JSON body does not fit: {error}")))
}

/// The fields of a generation request, sent as JSON or as a form.
pub(super) async fn generation(request: Request) -> Result<Fields, ApiError> {
    let (parts, body) = request.into_parts();
    match media_type(&parts.headers).as_str() {
        "application/json" => {
            let bytes = bytes(&parts.headers, body, GENERATION_BYTES_MAX).await?;
            match serde_json::from_slice(&bytes) {
                Ok(Value::Object(values)) => Ok(Fields::new(values)),
                Ok(_) => Err(malformed("the JSON body must be an object, like {\"prompt\": \"…\"}")),
                Err(error) => Err(malformed(format!("the body is not valid JSON: {error}"))),
            }
        }
        "multipart/form-data" => {
            let bytes = bytes(&parts.headers, body, GENERATION_BYTES_MAX).await?;
            multipart::fields(Request::from_parts(parts, Body::from(bytes))).await
        }
        other => Err(wrong_type(other, "application/json or multipart/form-data")),
    }
}

/// A component's bytes.
pub(super) async fn component(request: Request) -> Result<Bytes, ApiError> {
    let (parts, body) = request.into_parts();
    match media_type(&parts.headers).as_str() {
        "application/wasm" | "application/octet-stream" => {
            bytes(&parts.headers, body, limits::COMPONENT_BYTES_MAX).await
        }
        other => Err(wrong_type(other, "application/wasm")),
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    match media_type(headers).as_str() {
        "application/json" => Ok(()),
        other => Err(wrong_type(other, "application/json")),
    }
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn wrong_type(found: &str, expected: &str) -> ApiError {
    let found = if found.is_empty() { "nothing" } else { found };
    ApiError::UnsupportedMedia(format!("the content-type is {found}; send {expected}"))
}

pub(super) fn malformed(message: impl Into<String>) -> ApiError {
    ApiError::Invalid { param: None, code: "malformed_body", message: message.into() }
}
