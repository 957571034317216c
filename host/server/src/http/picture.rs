//! Pictures inside a request: an uploaded file, or a data URL. Addresses are never fetched.

use super::error::ApiError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pipeline::limits;
use serde_json::Value;

/// The bytes of what `field` holds: `{"image_url": "data:…"}` or the data URL itself.
pub(super) fn from_value(field: &str, value: &Value) -> Result<Vec<u8>, ApiError> {
    let wrong = |message: &str| ApiError::invalid(field, format!("{field}: {message}"));
    let url = match value {
        Value::String(url) => url,
        Value::Object(reference) if reference.contains_key("file_id") => {
            return Err(wrong("`file_id` is not supported; send the picture itself, as a file or as an image_url"));
        }
        Value::Object(reference) => match (reference.len(), reference.get("image_url")) {
            (1, Some(Value::String(url))) => url,
            _ => return Err(wrong("send a file, or {\"image_url\": \"data:image/png;base64,…\"}")),
        },
        _ => return Err(wrong("send a file, or {\"image_url\": \"data:image/png;base64,…\"}")),
    };
    let Some(data) = url.strip_prefix("data:") else {
        return Err(wrong("image_url must be a data URL (data:image/png;base64,…); addresses are not fetched"));
    };
    let Some((_, encoded)) = data.split_once(";base64,") else {
        return Err(wrong("image_url must be base64: data:image/png;base64,…"));
    };
    if encoded.len() / 4 * 3 > limits::IMAGE_BYTES_MAX {
        return Err(wrong(&format!("the picture is larger than {} bytes", limits::IMAGE_BYTES_MAX)));
    }
    STANDARD.decode(encoded).map_err(|error| wrong(&format!("image_url is not valid base64: {error}")))
}
