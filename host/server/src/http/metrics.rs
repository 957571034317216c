//! `/metrics`: what an operator's monitoring reads, in the Prometheus text format. No tenant is named here.

use super::device_metrics;
use super::error::ApiError;
use crate::platform::Platform;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use control_plane::{JobStore, QueueStats};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use video_model::engine::PromptCacheStats;

/// From an answer out of memory to an invocation that waits for its video.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0];

/// One route's outcome. The route is the pattern, never the address: labels must not grow with what clients send.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Answered {
    pub(super) method: String,
    pub(super) route: String,
    pub(super) status: u16,
}

impl EncodeLabelSet for Answered {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        use prometheus_client::encoding::EncodeLabel;
        ("method", self.method.as_str()).encode(encoder.encode_label())?;
        ("route", self.route.as_str()).encode(encoder.encode_label())?;
        ("status", u64::from(self.status)).encode(encoder.encode_label())
    }
}

/// What this process counts itself. Everything else is read from the store when asked.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    request_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("zoetrope");
        let requests = Family::<Answered, Counter>::default();
        let request_seconds = Histogram::new(SECONDS);
        registry.register("http_requests", "Answered requests", requests.clone());
        registry.register("http_request_seconds", "Time until the answer's head", request_seconds.clone());
        Self { registry, requests, request_seconds }
    }
}

impl Metrics {
    pub(super) fn answered(&self, answered: Answered, took: Duration) {
        self.requests.get_or_create(&answered).inc();
        self.request_seconds.observe(took.as_secs_f64());
    }
}

pub(super) async fn scrape(
    State(platform): State<Arc<Platform>>,
    State(metrics): State<Arc<Metrics>>,
) -> Result<Response, ApiError> {
    let stats = platform.jobs.queue_stats().await?;
    let mut text = String::new();
    let engine = &platform.engine;
    let mut figures = figures(&stats, &engine.prompt_cache_stats());
    device_metrics::register(&mut figures, &engine.devices());
    encode(&mut text, &figures).map_err(ApiError::internal)?;
    // Two registries make one exposition: only the last one ends it.
    let mut text = text.trim_end_matches("# EOF\n").to_owned();
    encode(&mut text, &metrics.registry).map_err(ApiError::internal)?;
    Ok(([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response())
}

/// The figures of the job queue and the prompt cache as they stand.
fn figures(stats: &QueueStats, prompts: &PromptCacheStats) -> Registry {
    let mut registry = Registry::with_prefix("zoetrope");
    let mut by = |name: &str, help: &str, label: &'static str, values: &[(&'static str, u64)]| {
        let family = Family::<[(&'static str, &'static str); 1], Gauge>::default();
        for (value, count) in values {
            family.get_or_create(&[(label, *value)]).set(gauge(*count));
        }
        registry.register(name, help, family);
    };
    let states = [
        ("queued", stats.queued),
        ("running", stats.running),
        ("completed", stats.completed),
        ("failed", stats.failed),
    ];
    by("jobs", "Jobs that are stored, by state", "state", &states);
    let found = [("ram", prompts.ram_hits), ("disk", prompts.disk_hits), ("nowhere", prompts.misses)];
    let lookups = "Encoded prompts looked for since this process started, by where they were found";
    by("prompt_cache_lookups", lookups, "found", &found);
    let held = [("ram", prompts.ram_bytes), ("disk", prompts.disk_bytes)];
    by("prompt_cache_bytes", "Bytes of encoded prompts, by where they are kept", "place", &held);
    let mut one = |name: &str, help: &str, value: u64| {
        let metric = Gauge::<i64>::default();
        metric.set(gauge(value));
        registry.register(name, help, metric);
    };
    one("queue_oldest_age_ms", "How long the oldest waiting job has waited", stats.oldest_queued_age_ms);
    one("gpu_reserved_ms", "Device time reserved by unfinished jobs", stats.reserved_gpu_ms);
    one("gpu_recorded_ms", "Device time on the ledger", stats.recorded_gpu_ms);
    registry
}

pub(super) fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
