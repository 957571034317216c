//! Around every request: an id, a span, a count, and a net under panics.

use super::Gateway;
use super::error::ApiError;
use super::metrics::Answered;
use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use rand::Rng;
use std::panic::AssertUnwindSafe;
use std::time::Instant;
use tracing::{Instrument, debug, field, info_span};

pub(super) async fn observe(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = format!("req_{:016x}", rand::rng().random::<u64>());
    let method = request.method().to_string();
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let span = info_span!("request", request = %id, method, route, tenant = field::Empty);
    // One bad request must not take the connection's other requests with it.
    let answer = AssertUnwindSafe(async {
        let response = next.run(request).await;
        debug!(status = response.status().as_u16(), ms = start.elapsed().as_millis() as u64, "answered");
        response
    })
    .catch_unwind()
    .instrument(span.clone());
    let mut response = match answer.await {
        Ok(response) => response,
        Err(_) => span.in_scope(|| ApiError::internal("a handler panicked").into_response()),
    };
    let id = HeaderValue::try_from(id).expect("hexadecimal digits make a header");
    response.headers_mut().insert("x-request-id", id);
    let method = if KNOWN_METHODS.contains(&method.as_str()) { method } else { "other".to_owned() };
    gateway.metrics.answered(Answered { method, route, status: response.status().as_u16() }, start.elapsed());
    response
}

/// Anyone may invent methods; a label may not grow with them.
const KNOWN_METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];
