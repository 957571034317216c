//! A platform on a temporary folder, and requests straight into its router.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use control_plane::{ClaimedJob, FunctionKind, JobOutcome, JobStore, Quotas, Role, UsageSegment, WorkerName};
use pipeline::{Digest, FrameSize, StoredVideo, SystemClock, TenantId, Usage};
use serde_json::{Value, json};
use server::{Config, Platform, http};
use std::sync::Arc;
use tempfile::TempDir;
use tower::Service;
use video_model::devices::{CpuDevice, Device};

pub(crate) struct Api {
    pub(crate) platform: Arc<Platform>,
    router: Router,
    pub(crate) operator: String,
    pub(crate) alice: String,
    pub(crate) bob: String,
    _folder: TempDir,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.bytes));
        self.json()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// Message and code of the error envelope.
    pub(crate) fn error(&self) -> (String, String) {
        let body = self.json();
        let text = |field: &str| body["error"][field].as_str().unwrap_or_default().to_owned();
        (text("message"), text("code"))
    }
}

pub(crate) const JSON: (&str, &str) = ("content-type", "application/json");
pub(crate) const WASM: (&str, &str) = ("content-type", "application/wasm");

impl Api {
    /// With an operator's key and the keys of two tenants.
    pub(crate) async fn new() -> Self {
        Self::on(Arc::new(CpuDevice::new(None).unwrap())).await
    }

    /// The same with models on this device.
    pub(crate) async fn on(device: Arc<dyn Device>) -> Self {
        let folder = TempDir::new().unwrap();
        let config = Config::in_folder(folder.path());
        let platform = Platform::open_with(config, Arc::new(SystemClock), vec![device]).await.unwrap();
        let operator = platform.jobs.ensure_operator_key().await.unwrap().unwrap().expose().to_owned();
        let mut keys = Vec::new();
        for name in ["alice", "bob"] {
            let id = tenant(name);
            platform.jobs.create_tenant(&id, Quotas::default()).await.unwrap();
            keys.push(platform.jobs.create_key(&id, Role::Tenant, "").await.unwrap().1.expose().to_owned());
        }
        let [alice, bob] = <[String; 2]>::try_from(keys).unwrap();
        Self { router: http::router(platform.clone()), platform, operator, alice, bob, _folder: folder }
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        key: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !key.is_empty() {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router.clone().call(request.body(body.into()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Answer { status: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    pub(crate) async fn get(&self, path: &str, key: &str) -> Answer {
        self.send("GET", path, key, &[], Body::empty()).await
    }

    pub(crate) async fn post(&self, path: &str, key: &str, body: &Value) -> Answer {
        self.send("POST", path, key, &[JSON], body.to_string()).await
    }

    /// A job of alice's that waits.
    pub(crate) async fn queued(&self) -> String {
        let job = self.post("/v1/videos", &self.alice, &json!({ "prompt": "a red star", "seed": 7 })).await.expect(200);
        job["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn claim(&self) -> ClaimedJob {
        let worker: WorkerName = "test".parse().unwrap();
        self.platform.jobs.claim(&worker, 60_000).await.unwrap().unwrap()
    }

    /// Ends the running job as a worker would, with these bytes as its video.
    pub(crate) async fn complete(&self, claimed: &ClaimedJob, mp4: &[u8]) {
        let prefix = format!("{}/{}", claimed.tenant, claimed.lease.job).parse().unwrap();
        let put = async |bytes: &[u8], extension| {
            self.platform.objects.put(&prefix, bytes.to_vec(), extension).await.unwrap()
        };
        let stored = StoredVideo {
            video: put(mp4, "mp4").await,
            thumbnail: put(b"RIFF", "webp").await,
            spritesheet: put(&[0xff, 0xd8], "jpg").await,
            stored_bytes: mp4.len() as u64 + 6,
            size: FrameSize { width: 64, height: 48 },
            frame_count: 8,
            duration_ms: 1000,
        };
        let usage = Usage { diffuse_gpu_ms: 40, encode_cpu_ms: 5, ..Default::default() };
        let segment = UsageSegment { model: "default".into(), device: "cpu".into(), usage };
        self.platform.jobs.settle(&claimed.lease, JobOutcome::Completed(stored), &[segment]).await.unwrap();
    }

    /// A job of alice's that has its video.
    pub(crate) async fn completed(&self, mp4: &[u8]) -> String {
        let id = self.queued().await;
        let claimed = self.claim().await;
        assert_eq!(claimed.lease.job.as_str(), id);
        self.complete(&claimed, mp4).await;
        id
    }

    /// A function of alice's, known by name: nothing runs it here.
    pub(crate) async fn deploy(&self, name: &str, kind: FunctionKind) {
        let digest = Digest::new([kind as u8 + 1; 32]);
        let alice = tenant("alice");
        self.platform.jobs.publish_function(&alice, &name.parse().unwrap(), kind, digest, 100).await.unwrap();
    }

    /// Nothing of alice's was queued, stored or billed.
    pub(crate) async fn assert_nothing_happened(&self) {
        assert_eq!(self.get("/v1/videos", &self.alice).await.expect(200)["data"], json!([]));
        assert_eq!(self.get("/v1/functions", &self.alice).await.expect(200)["data"], json!([]));
        assert_eq!(self.get("/v1/usage", &self.operator).await.expect(200)["data"], json!([]));
        assert_eq!(self.platform.jobs.queue_stats().await.unwrap().reserved_gpu_ms, 0);
    }
}

pub(crate) fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

/// A form of texts and at most one file.
pub(crate) fn form(texts: &[(&str, &str)], file: Option<(&str, &[u8])>) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, text) in texts {
        body.extend(format!("--XX\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n").bytes());
    }
    if let Some((name, bytes)) = file {
        let head = format!("--XX\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"a.png\"\r\n\r\n");
        body.extend(head.bytes());
        body.extend(bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--XX--\r\n");
    body
}

pub(crate) const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=XX");

/// A small real picture.
pub(crate) fn png() -> Vec<u8> {
    let size = FrameSize { width: 16, height: 16 };
    media::encode_png(&pipeline::Frame::new(size, vec![9; size.rgb_bytes()]).unwrap()).unwrap()
}
