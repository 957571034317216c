//! `/v1/tenants`: for operators only.

use super::auth::Operator;
use super::body;
use super::error::ApiError;
use super::page::{Address, PageParams, Params, parameter};
use super::view;
use crate::platform::Platform;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use control_plane::{ApiKeyId, Quotas, Role};
use pipeline::TenantId;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

const LABEL_BYTES_MAX: usize = 200;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTenant {
    id: String,
    #[serde(default)]
    quotas: Quotas,
}

pub(super) async fn create(
    State(platform): State<Arc<Platform>>,
    _: Operator,
    request: Request,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let new: NewTenant = body::settings(request).await?;
    let id: TenantId = new.id.parse().map_err(|error| ApiError::invalid("id", format!("id: {error}")))?;
    let tenant = platform.jobs.create_tenant(&id, new.quotas).await?;
    Ok((StatusCode::CREATED, Json(view::tenant(&tenant))))
}

pub(super) async fn list(
    State(platform): State<Arc<Platform>>,
    _: Operator,
    Params(params): Params<PageParams>,
) -> Result<Json<Value>, ApiError> {
    if params.order.as_deref().is_some_and(|order| order != "asc") {
        return Err(ApiError::invalid("order", "order: tenants are listed by name; only asc is known"));
    }
    let after = parameter("after", params.after.as_deref())?;
    let limit = params.limit()?;
    let mut tenants = platform.jobs.tenants(after.as_ref(), limit + 1).await?;
    let has_more = tenants.len() > limit as usize;
    tenants.truncate(limit as usize);
    Ok(Json(view::list(tenants.iter().map(view::tenant).collect(), "id", has_more)))
}

pub(super) async fn show(
    State(platform): State<Arc<Platform>>,
    _: Operator,
    Address(tenant): Address<String>,
) -> Result<Json<Value>, ApiError> {
    let id = tenant_id(&tenant)?;
    let tenant = platform.jobs.tenant(&id).await?.ok_or_else(|| ApiError::not_found("tenant", id.as_str()))?;
    Ok(Json(view::tenant(&tenant)))
}

pub(super) async fn set_quotas(
    State(platform): State<Arc<Platform>>,
    _: Operator,
    Address(tenant): Address<String>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let id = tenant_id(&tenant)?;
    let quotas: Quotas = body::settings(request).await?;
    let tenant = platform.jobs.set_quotas(&id, quotas).await?;
    Ok(Json(view::tenant(&tenant)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKey {
    #[serde(default)]
    label: String,
    role: Option<Role>,
}

/// Makes a key; its secret is in this answer and nowhere else.
pub(super) async fn create_key(
    State(platform): State<Arc<Platform>>,
    _: Operator,
    Address(tenant): Address<String>,
    request: Request,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let id = tenant_id(&tenant)?;
    let new: NewKey = body::settings(request).await?;
    if new.label.len() > LABEL_BYTES_MAX || new.label.chars().any(char::is_control) {
        let message = format!("label: at most {LABEL_BYTES_MAX} bytes, without control characters");
        return Err(ApiError::invalid("label", message));
    }
    let (key, secret) = platform.jobs.create_key(&id, new.role.unwrap_or(Role::Tenant), &new.label).await?;
    let mut shown = view::api_key(&key);
    shown["key"] = json!(secret.expose());
    Ok((StatusCode::CREATED, Json(shown)))
}

pub(super) async fn list_keys(
    State(platform): State<Arc<Platform>>,
    _: Operator,
    Address(tenant): Address<String>,
) -> Result<Json<Value>, ApiError> {
    let id = tenant_id(&tenant)?;
    platform.jobs.tenant(&id).await?.ok_or_else(|| ApiError::not_found("tenant", id.as_str()))?;
    let keys = platform.jobs.keys(&id).await?;
    Ok(Json(view::list(keys.iter().map(view::api_key).collect(), "id", false)))
}

pub(super) async fn revoke_key(
    State(platform): State<Arc<Platform>>,
    _: Operator,
    Address((tenant, key)): Address<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let id = tenant_id(&tenant)?;
    let key: ApiKeyId = key.parse().map_err(|_| ApiError::not_found("API key", "this id"))?;
    let key = platform.jobs.revoke_key(&id, &key).await?;
    Ok(Json(view::api_key(&key)))
}

/// A name in a path: one that cannot exist does not exist.
fn tenant_id(name: &str) -> Result<TenantId, ApiError> {
    let shown: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
    name.parse().map_err(|_| ApiError::not_found("tenant", shown))
}
