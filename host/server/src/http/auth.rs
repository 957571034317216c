//! Who is asking: `Authorization: Bearer zt_…`, checked before a body is read.

use super::error::ApiError;
use crate::platform::Platform;
use axum::extract::{FromRef, FromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use control_plane::{Principal, Role};
use pipeline::TenantId;
use std::sync::Arc;
use tracing::Span;

/// A request with a valid key.
pub(super) struct Caller(pub(super) Principal);

impl Caller {
    /// The tenant on whose behalf everything happens.
    pub(super) fn tenant(&self) -> &TenantId {
        &self.0.tenant
    }

    pub(super) fn is_operator(&self) -> bool {
        self.0.role == Role::Operator
    }
}

/// A request with a valid operator key.
pub(super) struct Operator;

impl<S> FromRequestParts<S> for Caller
where
    S: Send + Sync,
    Arc<Platform>: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let platform = Arc::<Platform>::from_ref(state);
        let key = bearer(parts).ok_or(ApiError::Unauthenticated)?;
        let principal = platform.jobs.authenticate(key).await?.ok_or(ApiError::Unauthenticated)?;
        Span::current().record("tenant", principal.tenant.as_str());
        Ok(Self(principal))
    }
}

impl<S> FromRequestParts<S> for Operator
where
    S: Send + Sync,
    Arc<Platform>: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        if Caller::from_request_parts(parts, state).await?.is_operator() {
            Ok(Self)
        } else {
            Err(ApiError::Forbidden("this needs an operator's key".to_owned()))
        }
    }
}

fn bearer(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}
