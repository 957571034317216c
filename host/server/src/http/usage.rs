//! `/v1/usage`: sums for people, records for machines. A tenant sees its own; an operator everyone's, or one tenant's.

use super::auth::Caller;
use super::error::ApiError;
use super::page::{Params, checked_limit, parameter};
use crate::platform::Platform;
use axum::Json;
use axum::extract::State;
use control_plane::{UsageFilter, UsageGroup};
use pipeline::TenantId;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

const EXPORT_LIMIT_DEFAULT: u32 = 1000;
const EXPORT_LIMIT_MAX: u32 = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReportParams {
    group_by: Option<UsageGroup>,
    tenant: Option<String>,
    /// Seconds since 1970.
    from: Option<u64>,
    /// Seconds since 1970, itself not included.
    to: Option<u64>,
}

pub(super) async fn report(
    State(platform): State<Arc<Platform>>,
    caller: Caller,
    Params(params): Params<ReportParams>,
) -> Result<Json<Value>, ApiError> {
    let filter = UsageFilter {
        tenant: visible(&caller, params.tenant.as_deref())?,
        from_ms: params.from.unwrap_or(0).saturating_mul(1000),
        to_ms: params.to.map(|seconds| seconds.saturating_mul(1000)),
    };
    let group = params.group_by.unwrap_or(UsageGroup::Total);
    let data = platform.jobs.usage_report(&filter, group).await?;
    Ok(Json(json!({ "object": "list", "group_by": group, "data": data })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExportParams {
    cursor: Option<u64>,
    limit: Option<u32>,
    tenant: Option<String>,
}

/// The ledger from a cursor on. The same cursor gives the same records again, for ever.
pub(super) async fn export(
    State(platform): State<Arc<Platform>>,
    caller: Caller,
    Params(params): Params<ExportParams>,
) -> Result<Json<Value>, ApiError> {
    let tenant = visible(&caller, params.tenant.as_deref())?;
    let limit = checked_limit(params.limit, EXPORT_LIMIT_DEFAULT, EXPORT_LIMIT_MAX)?;
    let page = platform.jobs.export_usage(tenant.as_ref(), params.cursor.unwrap_or(0), limit).await?;
    let body = json!({
        "object": "list",
        "data": page.records,
        "next_cursor": page.next_cursor,
        "has_more": page.has_more,
    });
    Ok(Json(body))
}

/// Whose usage the caller sees: none means everyone's.
fn visible(caller: &Caller, asked: Option<&str>) -> Result<Option<TenantId>, ApiError> {
    let asked: Option<TenantId> = parameter("tenant", asked)?;
    if caller.is_operator() {
        return Ok(asked);
    }
    match asked {
        Some(other) if other != *caller.tenant() => Err(ApiError::not_found("tenant", other.as_str())),
        _ => Ok(Some(caller.tenant().clone())),
    }
}
