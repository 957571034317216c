//! What an address says: its parts, its query string, and the page of a list that it asks for.

use super::error::ApiError;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;

const LIMIT_DEFAULT: u32 = 20;
const LIMIT_MAX: u32 = 100;

/// The variable parts of a path, as text: what they name is checked where it is looked up.
pub(super) struct Address<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Address<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(address)) => Ok(Self(address)),
            Err(error) => Err(ApiError::Invalid { param: None, code: "invalid_path", message: error.body_text() }),
        }
    }
}

/// A query string whose parameters must all be known.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(error) => Err(ApiError::Invalid { param: None, code: "invalid_query", message: error.body_text() }),
        }
    }
}

/// Which part of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PageParams {
    pub(super) after: Option<String>,
    limit: Option<u32>,
    pub(super) order: Option<String>,
}

impl PageParams {
    pub(super) fn limit(&self) -> Result<u32, ApiError> {
        checked_limit(self.limit, LIMIT_DEFAULT, LIMIT_MAX)
    }
}

/// Entries wanted on one page.
pub(super) fn checked_limit(limit: Option<u32>, default: u32, max: u32) -> Result<u32, ApiError> {
    let limit = limit.unwrap_or(default);
    if (1..=max).contains(&limit) {
        return Ok(limit);
    }
    Err(ApiError::invalid("limit", format!("limit: {limit} is out of range: between 1 and {max}")))
}

/// Reads an identifier from a query.
pub(super) fn parameter<T>(name: &str, text: Option<&str>) -> Result<Option<T>, ApiError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.map(|t| t.parse().map_err(|error| ApiError::invalid(name, format!("{name}: {error}")))).transpose()
}
