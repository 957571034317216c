//! Runs jobs: claim, run, and always `record`.
//!
//! A job is one task. Beside it runs its heartbeat, which keeps the lease and brings back a cancellation. Whatever the
//! run returned, and also when it panicked, the outcome and what was used are settled in one transaction.

use crate::platform::Platform;
use control_plane::{
    ClaimedJob, Continue, ControlError, GivenBack, JobFailure, JobOutcome, JobStore, Lease, UsageSegment, WorkerName,
};
use futures::FutureExt;
use media::JobStorage;
use pipeline::life::{self, Stages};
use pipeline::{
    CancelToken, DeviceSlot, ObjectKey, Progress, Stage, StageContext, StageError, StageResult, StoredVideo, UsageMeter,
};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{Instrument, error, info, warn};

/// How long a worker may be silent before its job is given to another.
const LEASE_MS: u64 = 30_000;
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Other processes' jobs do not show as changes here; they are found by looking.
const POLL: Duration = Duration::from_secs(2);
/// One job prepares or encodes while the other's steps keep the device at work.
const JOBS_PER_DEVICE: usize = 2;
const EXPIRE_BATCH: u32 = 100;

/// Runs the jobs of one process.
pub struct Worker {
    platform: Arc<Platform>,
    name: WorkerName,
    observer: Arc<dyn Progress>,
}

impl Worker {
    /// A worker; `observer` hears of every job's progress besides the job's own record.
    pub fn new(platform: Arc<Platform>, observer: Arc<dyn Progress>) -> Self {
        // One process owns a data folder, so its name may be fixed: that is how it finds what it left behind.
        let name = "local".parse().expect("a fixed name is valid");
        Self { platform, name, observer }
    }

    /// Takes back what an earlier process left, then runs jobs until `stop` turns true; those that run then are
    /// cancelled at their next step and stay queued for the next start.
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> Result<(), ControlError> {
        let recovered = self.platform.jobs.recover(Some(&self.name)).await?;
        if !recovered.requeued.is_empty() || !recovered.failed.is_empty() {
            info!(requeued = recovered.requeued.len(), failed = recovered.failed.len(), "took back unfinished jobs");
        }
        let mut changes = self.platform.jobs.changes();
        let mut tasks = JoinSet::new();
        while !*stop.borrow() {
            if let Err(failure) = self.start_jobs(&mut tasks, &stop).await {
                error!(%failure, "the job queue cannot be read; trying again");
            }
            tokio::select! {
                _ = changes.changed() => {}
                _ = tasks.join_next(), if !tasks.is_empty() => {}
                _ = stop.changed() => {}
                () = tokio::time::sleep(POLL) => self.housekeeping().await,
            }
        }
        while tasks.join_next().await.is_some() {}
        Ok(())
    }

    async fn start_jobs(&self, tasks: &mut JoinSet<()>, stop: &watch::Receiver<bool>) -> Result<(), ControlError> {
        let platform = &self.platform;
        let jobs_default = platform.engine.device_count() * JOBS_PER_DEVICE;
        let jobs_max = platform.config.jobs_parallel_max.map_or(jobs_default, |max| max as usize);
        while tasks.len() < jobs_max && platform.engine.has_working_device() {
            let Some(claimed) = self.platform.jobs.claim(&self.name, LEASE_MS).await? else { break };
            let span = tracing::info_span!("job", job = %claimed.lease.job, tenant = %claimed.tenant, attempt = claimed.lease.attempt);
            let run = run_claimed(self.platform.clone(), claimed, self.observer.clone(), stop.clone());
            tasks.spawn(run.instrument(span));
        }
        Ok(())
    }

    async fn housekeeping(&self) {
        if let Err(failure) = self.platform.jobs.recover(None).await {
            error!(%failure, "expired leases cannot be taken back");
        }
        match self.platform.jobs.expire(EXPIRE_BATCH).await {
            Ok(objects) => self.platform.remove_objects(&objects).await,
            Err(failure) => error!(%failure, "expired jobs cannot be removed"),
        }
    }
}

impl Platform {
    /// Removes objects that no job needs any more. A failure leaves garbage, never a dangling reference.
    pub async fn remove_objects(&self, objects: &[ObjectKey]) {
        for object in objects {
            if let Err(failure) = self.objects.delete(object).await {
                warn!(%object, %failure, "an object could not be removed");
            }
        }
    }
}

async fn run_claimed(
    platform: Arc<Platform>,
    claimed: ClaimedJob,
    observer: Arc<dyn Progress>,
    stop: watch::Receiver<bool>,
) {
    let progress = Arc::new(JobProgress { observer, state: AtomicU32::new(0) });
    let cx = StageContext {
        lane: claimed.lane,
        cancel: CancelToken::default(),
        meter: Arc::new(UsageMeter::default()),
        progress: progress.clone(),
        gpu_budget_ms: claimed.reserved_gpu_ms,
        device: DeviceSlot::default(),
    };
    info!("started");
    let outcome = tokio::select! {
        outcome = run_stages(&platform, &cx, &claimed) => Some(outcome),
        () = keep_lease(&platform, &claimed.lease, &cx.cancel, &progress, stop) => None,
    };
    match outcome {
        Some(Err(StageError::DeviceFailed { own_step }))
            if is_given_back(&platform, &claimed.lease, own_step).await =>
        {
            info!(own_step, "the device failed; the job runs again and nothing of this run is billed");
        }
        Some(outcome) => record(&platform, &claimed, &cx, outcome).await,
        // Stopped without an outcome: the lease is lost, or this process ends and the next one takes the job up again.
        None => info!("given up without a result"),
    }
}

async fn run_stages(platform: &Platform, cx: &StageContext, claimed: &ClaimedJob) -> StageResult<StoredVideo> {
    let prefix = format!("{}/{}", claimed.tenant, claimed.lease.job);
    let prefix: ObjectKey = prefix.parse().map_err(|e| StageError::Internal(format!("object prefix: {e}")))?;
    let store = JobStorage::new(platform.objects.clone(), prefix);
    let stages: &Stages = &platform.stages;
    let run = AssertUnwindSafe(life::run(stages, &store, cx, &claimed.spec)).catch_unwind();
    run.await.unwrap_or_else(|_| Err(StageError::Internal("a stage panicked".to_owned())))
}

/// Returns only when the job must be dropped: its lease is no longer ours, or the process stops.
async fn keep_lease(
    platform: &Platform,
    lease: &Lease,
    cancel: &CancelToken,
    progress: &JobProgress,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(HEARTBEAT) => {}
            _ = stop.wait_for(|stop| *stop) => {
                cancel.cancel();
                return;
            }
        }
        let (stage, permille) = progress.read();
        match platform.jobs.heartbeat(lease, stage, permille, LEASE_MS).await {
            Ok(Continue::Yes) => {}
            Ok(Continue::Cancelled) => cancel.cancel(),
            Err(ControlError::StaleLease { .. }) => {
                warn!("the lease went to another worker");
                cancel.cancel();
                return;
            }
            // The lease outlives a few missed beats; if the database stays away the job is taken back then.
            Err(failure) => error!(%failure, "heartbeat failed"),
        }
    }
}

/// Puts a job back into the queue after its device failed. A run that broke the device by its own step counts as an attempt: a
/// job that always does so ends, and takes nobody with it who was only beside it.
async fn is_given_back(platform: &Platform, lease: &Lease, own_step: bool) -> bool {
    match platform.jobs.give_back(lease, own_step).await {
        Ok(GivenBack::Queued) => true,
        Ok(GivenBack::Refused) => false,
        Err(failure) => {
            error!(%failure, "the job could not be given back; it is settled as failed");
            false
        }
    }
}

/// `record`: settles the reservation and appends the usage, whatever the outcome was.
async fn record(platform: &Platform, claimed: &ClaimedJob, cx: &StageContext, outcome: StageResult<StoredVideo>) {
    let usage = cx.meter.snapshot();
    let outcome = match outcome {
        Ok(video) => {
            info!(gpu_ms = usage.gpu_ms(), cpu_ms = usage.cpu_ms(), stored_bytes = usage.stored_bytes, "completed");
            JobOutcome::Completed(video)
        }
        Err(failure) => {
            if let StageError::Internal(reason) = &failure {
                error!(reason, "failed by the host's own fault");
            } else {
                info!(%failure, "failed");
            }
            JobOutcome::Failed(JobFailure { code: failure.code().to_owned(), message: public_message(&failure) })
        }
    };
    let model = claimed.spec.request.model.clone().unwrap_or_else(|| platform.engine.default_model().to_owned());
    let segment = UsageSegment { model, device: platform.engine.device_name(cx).to_owned(), usage };
    if let Err(failure) = platform.jobs.settle(&claimed.lease, outcome, &[segment]).await {
        error!(%failure, "the outcome could not be recorded; the job will run again");
    }
}

/// What the tenant reads. The host's own faults stay in the log.
fn public_message(error: &StageError) -> String {
    match error {
        StageError::Internal(_) => "the host failed; the operator's log has the details".to_owned(),
        other => other.to_string(),
    }
}

/// Progress of one job: kept for its record, passed on to an observer.
struct JobProgress {
    observer: Arc<dyn Progress>,
    /// Stage number in the upper half, permille of the whole job in the lower.
    state: AtomicU32,
}

impl JobProgress {
    fn read(&self) -> (Stage, u16) {
        let state = self.state.load(Ordering::Relaxed);
        let stage = Stage::ALL.get((state >> 16) as usize).copied().unwrap_or(Stage::Admit);
        (stage, (state & 0xffff) as u16)
    }
}

impl Progress for JobProgress {
    fn report(&self, stage: Stage, done: u32, total: u32) {
        let index = Stage::ALL.iter().position(|s| *s == stage).unwrap_or(0) as u32;
        // A director may diffuse several times: the job's progress only grows.
        let permille = overall_permille(stage, done, total).max(self.read().1);
        self.state.store(index << 16 | u32::from(permille), Ordering::Relaxed);
        self.observer.report(stage, done, total);
    }

    fn finished(&self, stage: Stage, wall_ms: u64) {
        self.observer.finished(stage, wall_ms);
    }
}

/// Where a stage stands in the whole job, by the share of time that stages usually take.
fn overall_permille(stage: Stage, done: u32, total: u32) -> u16 {
    let (start, end) = match stage {
        Stage::Admit => (0, 0),
        Stage::Plan => (0, 10),
        Stage::Condition => (10, 30),
        Stage::Diffuse => (30, 700),
        Stage::Interpolate => (700, 900),
        Stage::ApplyEffects => (900, 940),
        Stage::EncodeVideo => (940, 990),
        Stage::Store => (990, 1000),
        Stage::Record => (1000, 1000),
    };
    let within = u64::from(end - start) * u64::from(done.min(total)) / u64::from(total.max(1));
    start + within as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_never_runs_backwards_over_a_job() {
        let mut last = 0;
        for stage in Stage::ALL {
            for done in 0..=10 {
                let now = overall_permille(stage, done, 10);
                assert!(now >= last && now <= 1000, "{stage} {done}: {now} after {last}");
                last = now;
            }
        }
        assert_eq!(last, 1000);
        assert_eq!(overall_permille(Stage::Diffuse, 5, 0), 30, "a stage without units is at its start");
    }
}
