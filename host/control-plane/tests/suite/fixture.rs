//! A store in a temporary folder, and the jobs that the tests put into it.

use control_plane::*;
use pipeline::*;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

/// 2026-01-01T12:00:00Z: noon, so that a test that moves the clock by minutes stays within the day.
pub(crate) const NOON_MS: u64 = 1_767_268_800_000;
pub(crate) const DAY_MS: u64 = 86_400_000;
pub(crate) const LEASE_MS: u64 = 30_000;

pub(crate) const ROOMY: Quotas =
    Quotas { gpu_ms_per_day: 1_000_000, jobs_running_max: 100, jobs_queued_max: 1000, stored_bytes_max: 1_000_000 };

pub(crate) struct Fixture {
    folder: TempDir,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: SqliteStore,
}

impl Fixture {
    /// A store with the tenants `acme` and `other`, both with [`ROOMY`] quotas.
    pub(crate) async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let clock = Arc::new(ManualClock::at(NOON_MS));
        let store = open(&folder, &clock).await;
        for name in ["acme", "other"] {
            store.create_tenant(&tenant(name), ROOMY).await.unwrap();
        }
        Self { folder, clock, store }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("control.db")
    }

    /// What a process that is killed leaves behind, opened again: nothing is closed properly.
    pub(crate) async fn crash_and_reopen(&mut self) {
        self.store = open(&self.folder, &self.clock).await;
    }

    pub(crate) async fn admit(&self, tenant_name: &str) -> JobId {
        self.store.admit(admission(tenant_name, 100)).await.unwrap().job.id
    }

    pub(crate) async fn claim(&self) -> Option<ClaimedJob> {
        self.store.claim(&worker("w1"), LEASE_MS).await.unwrap()
    }

    pub(crate) async fn state(&self, tenant_name: &str, id: &JobId) -> JobState {
        self.store.get(&tenant(tenant_name), id).await.unwrap().unwrap().state
    }
}

async fn open(folder: &TempDir, clock: &Arc<ManualClock>) -> SqliteStore {
    SqliteStore::open(&folder.path().join("control.db"), clock.clone(), StoreConfig::default()).await.unwrap()
}

pub(crate) fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

pub(crate) fn worker(name: &str) -> WorkerName {
    name.parse().unwrap()
}

pub(crate) fn spec(prompt: &str) -> JobSpec {
    JobSpec {
        request: GenerationRequest { prompt: prompt.into(), seed: Some(7), ..Default::default() },
        images: Vec::new(),
        flow: Flow::Staged { prompt_hook: None },
        effects: Vec::new(),
    }
}

pub(crate) fn admission(tenant_name: &str, reserve_gpu_ms: u64) -> Admission {
    Admission {
        tenant: tenant(tenant_name),
        spec: spec("a red star"),
        reserve_gpu_ms,
        input_bytes: 0,
        remixed_from: None,
        idempotency: None,
    }
}

pub(crate) fn video(name: &str, stored_bytes: u64) -> StoredVideo {
    StoredVideo {
        video: format!("acme/{name}.mp4").parse().unwrap(),
        thumbnail: format!("acme/{name}.webp").parse().unwrap(),
        spritesheet: format!("acme/{name}.jpg").parse().unwrap(),
        stored_bytes,
        size: FrameSize { width: 64, height: 64 },
        frame_count: 48,
        duration_ms: 2000,
    }
}

pub(crate) fn failed(code: &str) -> JobOutcome {
    JobOutcome::Failed(JobFailure { code: code.into(), message: "it broke".into() })
}

pub(crate) fn used(diffuse_gpu_ms: u64) -> Vec<UsageSegment> {
    let usage = Usage { diffuse_gpu_ms, encode_cpu_ms: 3, stored_bytes: 10, ..Default::default() };
    vec![UsageSegment { model: "default".into(), device: "cpu".into(), usage }]
}
