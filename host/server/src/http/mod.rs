//! What comes from outside: routes, authentication, limits on bodies, and the one map from domain errors to HTTP.
//!
//! The public face is the OpenAI Videos API; functions, usage and tenants are routes of our own. Handlers are thin: read
//! what was sent into typed values (`fields`, `body`), call the platform, show the result (`view`). Whatever a
//! client sends is answered with the API's error envelope; what the host did wrong is logged under the request's id.

mod auth;
mod body;
mod content;
mod device_metrics;
mod error;
mod fields;
mod functions;
mod health;
mod metrics;
mod models;
mod multipart;
mod observe;
mod page;
mod picture;
mod tenants;
mod usage;
mod videos;
mod view;

use crate::platform::Platform;
use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRef};
use axum::middleware;
use axum::routing::{delete, get, post, put};
use error::ApiError;
use metrics::Metrics;
use std::sync::Arc;

/// What every handler can reach.
#[derive(Clone)]
struct Gateway {
    platform: Arc<Platform>,
    metrics: Arc<Metrics>,
}

impl FromRef<Gateway> for Arc<Platform> {
    fn from_ref(gateway: &Gateway) -> Self {
        gateway.platform.clone()
    }
}

impl FromRef<Gateway> for Arc<Metrics> {
    fn from_ref(gateway: &Gateway) -> Self {
        gateway.metrics.clone()
    }
}

/// All routes of the gateway.
pub fn router(platform: Arc<Platform>) -> Router {
    let gateway = Gateway { platform, metrics: Arc::default() };
    Router::new()
        .merge(video_routes())
        .merge(function_routes())
        .merge(operator_routes())
        .route("/v1/models", get(models::list))
        .route("/v1/models/{name}", get(models::show))
        .route("/v1/usage", get(usage::report))
        .route("/v1/usage/export", get(usage::export))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::scrape))
        .fallback(async || ApiError::not_found("route", "this address"))
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        // Each handler states its own limit when it reads a body; see `body`.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(gateway.clone(), observe::observe))
        .with_state(gateway)
}

fn video_routes() -> Router<Gateway> {
    Router::new()
        .route("/v1/videos", post(videos::create).get(videos::list))
        .route("/v1/videos/{id}", get(videos::show).delete(videos::delete))
        .route("/v1/videos/{id}/content", get(content::content))
        .route("/v1/videos/{id}/cancel", post(videos::cancel))
        .route("/v1/videos/{id}/remix", post(videos::remix))
}

fn function_routes() -> Router<Gateway> {
    let one = put(functions::publish).post(functions::publish).get(functions::show).delete(functions::delete);
    Router::new()
        .route("/v1/functions", get(functions::list))
        .route("/v1/functions/{name}", one)
        .route("/v1/functions/{name}/invocations", post(functions::invoke))
}

fn operator_routes() -> Router<Gateway> {
    Router::new()
        .route("/v1/tenants", post(tenants::create).get(tenants::list))
        .route("/v1/tenants/{tenant}", get(tenants::show))
        .route("/v1/tenants/{tenant}/quotas", put(tenants::set_quotas))
        .route("/v1/tenants/{tenant}/keys", post(tenants::create_key).get(tenants::list_keys))
        .route("/v1/tenants/{tenant}/keys/{key}", delete(tenants::revoke_key))
}
