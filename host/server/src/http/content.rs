//! `/v1/videos/{id}/content`: the file and its previews, whole or in ranges, read in small pieces.

use super::auth::Caller;
use super::error::ApiError;
use super::page::{Address, Params};
use super::videos::find;
use crate::platform::Platform;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use control_plane::JobState;
use futures::{Stream, stream};
use media::{FolderStore, ObjectError};
use pipeline::{JobId, ObjectKey, StoredVideo};
use serde::Deserialize;
use std::ops::Range;
use std::sync::Arc;

/// What one read holds in memory.
const PIECE_BYTES: u64 = 256 * 1024;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ContentParams {
    #[serde(default)]
    variant: Variant,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Variant {
    #[default]
    Video,
    Thumbnail,
    Spritesheet,
}

impl Variant {
    /// Where it lies, its type, and how its file is called.
    fn of(self, stored: &StoredVideo) -> (&ObjectKey, &'static str, &'static str) {
        match self {
            Self::Video => (&stored.video, "video/mp4", "mp4"),
            Self::Thumbnail => (&stored.thumbnail, "image/webp", "webp"),
            Self::Spritesheet => (&stored.spritesheet, "image/jpeg", "jpg"),
        }
    }
}

pub(super) async fn content(
    State(platform): State<Arc<Platform>>,
    caller: Caller,
    Address(id): Address<String>,
    Params(params): Params<ContentParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let job = find(&platform, caller.tenant(), &id).await?;
    let stored = match job.state {
        JobState::Completed(stored) => stored,
        JobState::Queued | JobState::Running => return Err(no_content(&job.id, "has not finished; ask again later")),
        JobState::Failed(_) => return Err(no_content(&job.id, "failed and has no content")),
    };
    let (key, media_type, extension) = params.variant.of(&stored);
    let bytes = platform.objects.len(key).await?;
    // The key ends in the digest of the bytes, which makes it a strong validator.
    let etag = format!("\"{}\"", key.as_str().rsplit('/').next().unwrap_or_default());
    let common = [
        (header::CONTENT_TYPE, media_type.to_owned()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, etag.clone()),
        (header::CACHE_CONTROL, "private, max-age=3600".to_owned()),
        (header::CONTENT_DISPOSITION, format!("inline; filename=\"{}.{extension}\"", job.id)),
    ];
    if names(&headers, header::IF_NONE_MATCH, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    let unchanged = !headers.contains_key(header::IF_RANGE) || names(&headers, header::IF_RANGE, &etag);
    let range = headers.get(header::RANGE).and_then(|v| v.to_str().ok()).filter(|_| unchanged);
    let Some(range) = range.map_or(Ok(None), |text| wanted(text, bytes))? else {
        let length = [(header::CONTENT_LENGTH, bytes.to_string())];
        return Ok((common, length, Body::from_stream(pieces(platform.objects.clone(), key.clone(), 0..bytes)))
            .into_response());
    };
    let part = [
        (header::CONTENT_LENGTH, (range.end - range.start).to_string()),
        (header::CONTENT_RANGE, format!("bytes {}-{}/{bytes}", range.start, range.end - 1)),
    ];
    let body = Body::from_stream(pieces(platform.objects.clone(), key.clone(), range));
    Ok((StatusCode::PARTIAL_CONTENT, common, part, body).into_response())
}

fn no_content(id: &JobId, message: &str) -> ApiError {
    ApiError::Conflict { code: "no_content", message: format!("`{id}` {message}") }
}

/// Whether a validator header names this version of the file.
fn names(headers: &HeaderMap, header: header::HeaderName, etag: &str) -> bool {
    let value = headers.get(header).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(',').any(|one| one.trim() == etag)
}

/// The bytes that a `Range` header asks for (RFC 9110 §14). None for what a server should ignore: another unit, several
/// ranges, nonsense. An error for a range that lies outside.
fn wanted(text: &str, bytes: u64) -> Result<Option<Range<u64>>, ApiError> {
    let Some((from, to)) = text.strip_prefix("bytes=").and_then(|r| r.split_once('-')) else { return Ok(None) };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let range = match (from.trim(), to.trim()) {
        ("", "") => return Ok(None),
        ("", suffix) => number(suffix).map(|length| bytes.saturating_sub(length)..bytes),
        (from, "") => number(from).map(|from| from..bytes),
        (from, to) => match (number(from), number(to)) {
            (Some(from), Some(to)) if from <= to => Some(from..to.saturating_add(1).min(bytes)),
            _ => None,
        },
    };
    match range {
        None => Ok(None),
        Some(range) if range.start >= range.end => Err(ApiError::RangeNotSatisfiable { bytes }),
        Some(range) => Ok(Some(range)),
    }
}

/// The bytes of `range`, one piece at a time. A read error ends the connection: the headers are gone already.
fn pieces(objects: FolderStore, key: ObjectKey, range: Range<u64>) -> impl Stream<Item = Result<Bytes, ObjectError>> {
    stream::try_unfold(range, move |range| {
        let (objects, key) = (objects.clone(), key.clone());
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let piece = objects.get_range(&key, range.start, PIECE_BYTES.min(range.end - range.start)).await?;
            if piece.is_empty() {
                return Ok(None);
            }
            let next = range.start + piece.len() as u64..range.end;
            Ok(Some((Bytes::from(piece), next)))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let read = |text| wanted(text, 100).unwrap();
        assert_eq!(read("bytes=0-0"), Some(0..1));
        assert_eq!(read("bytes=10-19"), Some(10..20));
        assert_eq!(read("bytes=90-"), Some(90..100));
        assert_eq!(read("bytes=90-500"), Some(90..100));
        assert_eq!(read("bytes=-10"), Some(90..100));
        assert_eq!(read("bytes=-500"), Some(0..100));
        for ignored in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "lines=1-2",
            "bytes=9-1",
            "bytes=1-2,4-5",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(read(ignored), None, "{ignored}");
        }
        for outside in ["bytes=100-", "bytes=100-200", "bytes=-0"] {
            assert!(matches!(wanted(outside, 100), Err(ApiError::RangeNotSatisfiable { bytes: 100 })), "{outside}");
        }
        assert!(wanted("bytes=0-", 0).is_err(), "an empty file has no first byte");
    }
}
