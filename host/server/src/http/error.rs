//! The one place where an error becomes an HTTP status. Each domain error is mapped without a wildcard arm, so a new
//! variant does not compile until someone decides what a client sees.

use crate::functions::PublishError;
use crate::submission::SubmitError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use control_plane::ControlError;
use media::ObjectError;
use pipeline::{StageError, limits};
use serde_json::json;
use tracing::error;
use wasm_runtime::ValidationError;

/// A refusal or failure as a client sees it. None of them is a success.
#[derive(Debug)]
pub(super) enum ApiError {
    /// A field, parameter or body is wrong.
    Invalid { param: Option<String>, code: &'static str, message: String },
    /// No key, or not a valid one.
    Unauthenticated,
    /// The key does not cover this.
    Forbidden(String),
    /// Not there, or another tenant's.
    NotFound { kind: &'static str, id: String },
    /// The route has no such method.
    MethodNotAllowed,
    /// The body did not arrive in time.
    BodyTimeout,
    /// The state of things does not allow it.
    Conflict { code: &'static str, message: String },
    /// The body is larger than the route takes.
    TooLarge { bytes_max: usize },
    /// The body is of a type that the route does not take.
    UnsupportedMedia(String),
    /// The wanted bytes lie behind the end.
    RangeNotSatisfiable { bytes: u64 },
    /// Over a quota.
    QuotaExceeded { message: String, retry_after_ms: Option<u64> },
    /// The host's own fault: logged, not told.
    Internal(String),
    /// Not at the moment.
    Unavailable(String),
}

/// Waiting longer than this inside a client library helps nobody.
const RETRY_MS_MAX: u64 = 60_000;

impl ApiError {
    pub(super) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::Invalid { param: Some(param.to_owned()), code: "invalid_argument", message: message.into() }
    }

    pub(super) fn not_found(kind: &'static str, id: impl Into<String>) -> Self {
        Self::NotFound { kind, id: id.into() }
    }

    pub(super) fn internal(reason: impl std::fmt::Display) -> Self {
        Self::Internal(reason.to_string())
    }

    /// Status, OpenAI error type and machine-readable code.
    fn class(&self) -> (StatusCode, &'static str, &'static str) {
        const REQUEST: &str = "invalid_request_error";
        match self {
            Self::Invalid { code, .. } => (StatusCode::BAD_REQUEST, REQUEST, code),
            Self::Unauthenticated => (StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "permission_error", "forbidden"),
            Self::NotFound { .. } => (StatusCode::NOT_FOUND, REQUEST, "not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, REQUEST, "method_not_allowed"),
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, REQUEST, "request_timeout"),
            Self::Conflict { code, .. } => (StatusCode::CONFLICT, REQUEST, code),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, "too_large"),
            Self::UnsupportedMedia(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, REQUEST, "unsupported_media_type"),
            Self::RangeNotSatisfiable { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, REQUEST, "range_not_satisfiable"),
            Self::QuotaExceeded { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "quota_exceeded"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "server_error", "unavailable"),
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Unauthenticated => "send a valid API key as `Authorization: Bearer zt_…`".to_owned(),
            Self::NotFound { kind, id } => format!("there is no {kind} `{id}`"),
            Self::MethodNotAllowed => "this address does not take this method".to_owned(),
            Self::BodyTimeout => "the body did not arrive in time; send it again".to_owned(),
            Self::TooLarge { bytes_max } => format!("the body is too large: at most {bytes_max} bytes are taken here"),
            Self::RangeNotSatisfiable { bytes } => format!("the range lies outside of the file's {bytes} bytes"),
            Self::Internal(_) => {
                "the server failed; the operator finds the reason in the log under this request's id".to_owned()
            }
            Self::Invalid { message, .. }
            | Self::Forbidden(message)
            | Self::Conflict { message, .. }
            | Self::UnsupportedMedia(message)
            | Self::QuotaExceeded { message, .. }
            | Self::Unavailable(message) => message.clone(),
        }
    }

    fn add_headers(&self, response: &mut Response) {
        let headers = response.headers_mut();
        match self {
            Self::QuotaExceeded { retry_after_ms: Some(ms), .. } => {
                headers.insert("retry-after-ms", HeaderValue::from(*ms));
                headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
                if *ms > RETRY_MS_MAX {
                    headers.insert("x-should-retry", HeaderValue::from_static("false"));
                }
            }
            // Client libraries retry these by themselves unless told that it is of no use.
            Self::QuotaExceeded { retry_after_ms: None, .. } | Self::Conflict { .. } => {
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
            }
            Self::RangeNotSatisfiable { bytes } => {
                let range = HeaderValue::try_from(format!("bytes */{bytes}")).expect("digits make a header");
                headers.insert(header::CONTENT_RANGE, range);
            }
            Self::Unauthenticated => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Invalid { .. }
            | Self::Forbidden(_)
            | Self::NotFound { .. }
            | Self::MethodNotAllowed
            | Self::BodyTimeout
            | Self::TooLarge { .. }
            | Self::UnsupportedMedia(_)
            | Self::Internal(_)
            | Self::Unavailable(_) => {}
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Self::Internal(reason) = &self {
            error!(reason, "the request failed by the host's own fault");
        }
        let (status, kind, code) = self.class();
        let param = match &self {
            Self::Invalid { param, .. } => param.as_deref(),
            _ => None,
        };
        let body = json!({ "error": { "message": self.message(), "type": kind, "param": param, "code": code } });
        let mut response = (status, Json(body)).into_response();
        self.add_headers(&mut response);
        response
    }
}

impl From<StageError> for ApiError {
    fn from(error: StageError) -> Self {
        let message = error.to_string();
        match error {
            StageError::InvalidArgument { field, .. } => Self::invalid(field, message),
            StageError::Denied(_) => Self::Forbidden(message),
            StageError::BudgetExhausted { .. } => Self::QuotaExceeded { message, retry_after_ms: None },
            StageError::Cancelled => Self::Conflict { code: "cancelled", message },
            StageError::Unavailable(_) | StageError::DeviceFailed { .. } => Self::Unavailable(message),
            StageError::Function { .. } => Self::Invalid { param: None, code: "function_failed", message },
            StageError::Internal(reason) => Self::Internal(reason),
        }
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let message = error.to_string();
        match error {
            ControlError::NotFound { kind, id } => Self::NotFound { kind, id },
            ControlError::AlreadyExists { .. } => Self::Conflict { code: "already_exists", message },
            ControlError::QuotaExceeded { retry_after_ms, .. } => Self::QuotaExceeded { message, retry_after_ms },
            ControlError::IdempotencyMismatch => Self::Conflict { code: "idempotency_mismatch", message },
            ControlError::NotFinished(_) => Self::Conflict { code: "not_finished", message },
            ControlError::StaleLease { .. } => Self::Internal(message),
            ControlError::Database(source) => Self::Internal(format!("{message}: {source}")),
            ControlError::Migration(source) => Self::Internal(format!("{message}: {source}")),
            ControlError::Corrupt { .. } => Self::Internal(message),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::Request(error) => error.into(),
            SubmitError::UnknownFunction { field, .. } => {
                Self::Invalid { param: Some(field.to_owned()), code: "unknown_function", message }
            }
            SubmitError::WrongKind { field, .. } => {
                Self::Invalid { param: Some(field.to_owned()), code: "wrong_function_kind", message }
            }
            SubmitError::Control(error) => error.into(),
            SubmitError::Objects(error) => error.into(),
        }
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Component(error) => error.into(),
            PublishError::Control(error) => error.into(),
            PublishError::Objects(error) => error.into(),
        }
    }
}

impl From<ValidationError> for ApiError {
    fn from(error: ValidationError) -> Self {
        let message = error.to_string();
        match error {
            ValidationError::TooLarge { .. } => Self::TooLarge { bytes_max: limits::COMPONENT_BYTES_MAX },
            ValidationError::NotWasm(_)
            | ValidationError::CoreModule
            | ValidationError::Precompiled
            | ValidationError::Broken(_)
            | ValidationError::TooComplex { .. }
            | ValidationError::CompileTime { .. }
            | ValidationError::NoKnownExport { .. }
            | ValidationError::SeveralKinds { .. }
            | ValidationError::NotGranted { .. }
            | ValidationError::WrongType { .. } => Self::Invalid { param: None, code: "invalid_component", message },
            ValidationError::Busy => Self::Unavailable(message),
            ValidationError::Internal(reason) => Self::Internal(reason),
        }
    }
}

impl From<ObjectError> for ApiError {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::Range { len, .. } => Self::RangeNotSatisfiable { bytes: len },
            // The control plane named the object: that it is not there is the host's fault.
            ObjectError::NotFound(_) | ObjectError::Name { .. } | ObjectError::Io(_) => Self::internal(error),
        }
    }
}
