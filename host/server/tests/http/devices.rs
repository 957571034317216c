//! Jobs on a device that fails: the worker, the ledger and the figures.

use crate::harness::{Api, tenant};
use control_plane::{JobState, JobStore};
use pipeline::{JobId, NoProgress};
use serde_json::json;
use server::worker::Worker;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use video_model::devices::{CpuDevice, Device, DeviceFault, DeviceId, Timed};

/// The CPU engine, with so many faults to come.
struct Flaky {
    cpu: CpuDevice,
    faults: AtomicU64,
    /// Good steps before each of them.
    good_steps: u64,
    steps: AtomicU64,
    can_be_reset: bool,
}

impl Flaky {
    fn new(faults: u64, good_steps: u64) -> Self {
        let cpu = CpuDevice::new(None).unwrap();
        Self { cpu, faults: faults.into(), good_steps, steps: 0.into(), can_be_reset: true }
    }
}

impl Device for Flaky {
    fn id(&self) -> DeviceId {
        DeviceId::Cuda(0)
    }
    fn name(&self) -> &str {
        "flaky"
    }
    fn timed(&self, step: &mut (dyn FnMut() + Send)) -> Timed {
        let timed = self.cpu.timed(step);
        let breaks = self.steps.fetch_add(1, Ordering::SeqCst) == self.good_steps
            && self.faults.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |faults| faults.checked_sub(1)).is_ok();
        Timed { fault: breaks.then(|| DeviceFault("broken on purpose".to_owned())), ..timed }
    }
    fn scope(&self, work: &mut (dyn FnMut() + Send)) {
        self.cpu.scope(work);
    }
    fn free_bytes(&self) -> Option<u64> {
        self.cpu.free_bytes()
    }
    fn peak_bytes(&self) -> usize {
        self.cpu.peak_bytes()
    }
    fn scrub(&self) -> Result<(), DeviceFault> {
        Ok(())
    }
    fn trim(&self) {}
    fn reset(&self) -> Result<(), DeviceFault> {
        self.steps.store(0, Ordering::SeqCst);
        if self.can_be_reset { Ok(()) } else { Err(DeviceFault("it is gone".to_owned())) }
    }
}

/// Runs the worker until the job is over.
async fn finished(api: &Api, id: &str) -> JobState {
    let (stop, stopped) = watch::channel(false);
    let worker = tokio::spawn(Worker::new(api.platform.clone(), Arc::new(NoProgress)).run(stopped));
    let (id, alice): (JobId, _) = (id.parse().unwrap(), tenant("alice"));
    let job = tokio::time::timeout(Duration::from_secs(300), api.platform.wait(&alice, &id));
    let state = job.await.unwrap().unwrap().state;
    stop.send_replace(true);
    worker.await.unwrap().unwrap();
    state
}

/// The value of a figure without labels' values.
fn figure(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find(|line| line.starts_with(&format!("zoetrope_{name}{{device=\"cuda:0\"")));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
}

async fn short_job(api: &Api) -> String {
    let body = json!({ "prompt": "a red star", "seed": 7, "steps": 1 });
    api.post("/v1/videos", &api.alice, &body).await.expect(200)["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_job_whose_device_failed_runs_again_and_only_the_good_run_is_billed() {
    let api = Api::on(Arc::new(Flaky::new(2, 4))).await;
    let id = short_job(&api).await;
    assert!(matches!(finished(&api, &id).await, JobState::Completed(_)));
    let export = api.get("/v1/usage/export", &api.operator).await.expect(200);
    let rows = export["data"].as_array().unwrap();
    assert_eq!((rows.len(), &rows[0]["attempt"], &rows[0]["device"]), (1, &json!(3), &json!("flaky")));
    let usage = &rows[0]["usage"];
    let on_ledger: u64 =
        ["condition_gpu_ms", "diffuse_gpu_ms", "interpolate_gpu_ms"].map(|f| usage[f].as_u64().unwrap()).iter().sum();
    let metrics = String::from_utf8(api.get("/metrics", "").await.bytes).unwrap();
    assert_eq!(figure(&metrics, "device_billed_ms"), on_ledger);
    let (billed, refunded) = (figure(&metrics, "device_billed_ms"), figure(&metrics, "device_refunded_ms"));
    assert_eq!(billed + refunded, figure(&metrics, "device_busy_ms"));
    assert_eq!(figure(&metrics, "device_faults"), 2);
    assert!(refunded > 0);
}

#[tokio::test]
async fn a_job_that_breaks_the_device_each_time_ends_after_three_attempts_and_pays_no_device_time() {
    let api = Api::on(Arc::new(Flaky::new(u64::MAX, 4))).await;
    let id = short_job(&api).await;
    let JobState::Failed(failure) = finished(&api, &id).await else { panic!("it ran") };
    assert_eq!(failure.code, "device_failed");
    assert!(failure.message.contains("nothing is billed"), "{}", failure.message);
    let stats = api.platform.jobs.queue_stats().await.unwrap();
    assert_eq!((stats.recorded_gpu_ms, stats.reserved_gpu_ms), (0, 0));
    let metrics = String::from_utf8(api.get("/metrics", "").await.bytes).unwrap();
    assert_eq!((figure(&metrics, "device_faults"), figure(&metrics, "device_billed_ms")), (3, 0));
}

#[tokio::test]
async fn a_process_without_a_working_device_is_not_ready_and_leaves_its_jobs_queued() {
    let api = Api::on(Arc::new(Flaky { can_be_reset: false, ..Flaky::new(1, 0) })).await;
    api.get("/readyz", "").await.expect(200);
    let id = short_job(&api).await;
    let (stop, stopped) = watch::channel(false);
    let worker = tokio::spawn(Worker::new(api.platform.clone(), Arc::new(NoProgress)).run(stopped));
    while api.get("/readyz", "").await.status == 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.send_replace(true);
    worker.await.unwrap().unwrap();
    let id: JobId = id.parse().unwrap();
    let job = api.platform.jobs.get(&tenant("alice"), &id).await.unwrap().unwrap();
    assert_eq!(job.state, JobState::Queued, "another process may have a device");
    let metrics = String::from_utf8(api.get("/metrics", "").await.bytes).unwrap();
    assert_eq!(figure(&metrics, "device_out_of_order"), 1);
}
