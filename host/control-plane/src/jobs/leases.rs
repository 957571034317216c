//! The worker's side: claim, heartbeat, settle, recover.

use super::{
    CODE_CANCELLED, CODE_WORKER_LOST, ClaimedJob, Continue, GivenBack, JobOutcome, Lease, Recovered, WorkerName, row,
};
use crate::error::{ControlError, ControlResult};
use crate::ledger::{self, UsageSegment};
use crate::store::{SqliteStore, int, parsed, uint};
use pipeline::{JobId, Lane, Stage, StoredVideo};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

pub(super) async fn claim(
    store: &SqliteStore,
    worker: &WorkerName,
    lease_ms: u64,
) -> ControlResult<Option<ClaimedJob>> {
    let mut tx = store.begin().await?;
    let Some((lane, seq)) = next_in_turn(&mut tx).await? else { return Ok(None) };
    sqlx::query("UPDATE tenants SET last_claim_seq = 1 + (SELECT MAX(last_claim_seq) FROM tenants) WHERE lane = ?")
        .bind(lane)
        .execute(&mut *tx)
        .await?;
    let now_ms = store.now_ms();
    let row = sqlx::query(
        "UPDATE jobs SET state = 'running', worker = ?1, lease_epoch = lease_epoch + 1, lease_expires_ms = ?2,
         attempt = attempt + 1, started_ms = COALESCE(started_ms, ?3), stage = ?4, progress_permille = 0
         WHERE seq = ?5 RETURNING *",
    )
    .bind(worker.as_str())
    .bind(int(now_ms.saturating_add(lease_ms)))
    .bind(int(now_ms))
    .bind(Stage::Plan.name())
    .bind(seq)
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    claimed(&row, lane).map(Some)
}

/// Lane and job of whoever's turn it is. The oldest job of each tenant that may run one more; fewest running first,
/// then longest not served, so that a tenant with ten thousand jobs takes turns with one that has a single job.
async fn next_in_turn(tx: &mut SqliteConnection) -> ControlResult<Option<(i64, i64)>> {
    Ok(sqlx::query_as(
        "SELECT lane, head FROM (
           SELECT t.lane, t.last_claim_seq, t.jobs_running_max,
             (SELECT MIN(seq) FROM jobs WHERE tenant = t.id AND state = 'queued') AS head,
             (SELECT COUNT(*) FROM jobs WHERE tenant = t.id AND state = 'running') AS running
           FROM tenants t)
         WHERE head IS NOT NULL AND running < jobs_running_max
         ORDER BY running, last_claim_seq, head LIMIT 1",
    )
    .fetch_optional(tx)
    .await?)
}

fn claimed(row: &SqliteRow, lane: i64) -> ControlResult<ClaimedJob> {
    Ok(ClaimedJob {
        lease: Lease { job: parsed(row, "id")?, epoch: uint(row, "lease_epoch")?, attempt: row.try_get("attempt")? },
        tenant: parsed(row, "tenant")?,
        lane: Lane(lane.unsigned_abs()),
        spec: row::job_spec(row)?,
        reserved_gpu_ms: uint(row, "reserved_gpu_ms")?,
    })
}

pub(super) async fn heartbeat(
    store: &SqliteStore,
    lease: &Lease,
    stage: Stage,
    progress_permille: u16,
    lease_ms: u64,
) -> ControlResult<Continue> {
    let mut tx = store.begin().await?;
    // Progress never runs backwards before the client's eyes, whatever order the reports arrive in.
    let cancelled: Option<bool> = sqlx::query_scalar(
        "UPDATE jobs SET stage = ?, progress_permille = MAX(progress_permille, ?), lease_expires_ms = ?
         WHERE id = ? AND lease_epoch = ? AND state = 'running' RETURNING cancel_requested",
    )
    .bind(stage.name())
    .bind(progress_permille.min(1000))
    .bind(int(store.now_ms().saturating_add(lease_ms)))
    .bind(lease.job.as_str())
    .bind(int(lease.epoch))
    .fetch_optional(&mut *tx)
    .await?;
    tx.commit().await?;
    match cancelled {
        None => Err(stale(lease)),
        Some(true) => Ok(Continue::Cancelled),
        Some(false) => Ok(Continue::Yes),
    }
}

pub(super) async fn settle(
    store: &SqliteStore,
    lease: &Lease,
    outcome: JobOutcome,
    usage: &[UsageSegment],
) -> ControlResult<()> {
    let mut tx = store.begin().await?;
    let now_ms = store.now_ms();
    let expires_ms = int(now_ms.saturating_add(store.inner.config.retention_ms));
    let row =
        match &outcome {
            JobOutcome::Completed(video) => complete(&mut tx, lease, video, now_ms, expires_ms).await?,
            JobOutcome::Failed(failure) => sqlx::query(
                "UPDATE jobs SET state = 'failed', error_code = ?, error_message = ?, completed_ms = ?, expires_ms = ?,
             stage = 'record', worker = NULL, lease_expires_ms = NULL
             WHERE id = ? AND lease_epoch = ? AND state = 'running' RETURNING seq, tenant",
            )
            .bind(&failure.code)
            .bind(&failure.message)
            .bind(int(now_ms))
            .bind(expires_ms)
            .bind(lease.job.as_str())
            .bind(int(lease.epoch))
            .fetch_optional(&mut *tx)
            .await?,
        };
    let row = row.ok_or_else(|| stale(lease))?;
    ledger::append(&mut tx, row.try_get("tenant")?, lease, usage, now_ms).await?;
    tx.commit().await?;
    store.announce();
    Ok(())
}

pub(super) async fn give_back(store: &SqliteStore, lease: &Lease, counts: bool) -> ControlResult<GivenBack> {
    let mut tx = store.begin().await?;
    let requeued: Option<i64> = sqlx::query_scalar(
        "UPDATE jobs SET state = 'queued', stage = ?3, progress_permille = 0, worker = NULL, lease_expires_ms = NULL,
         attempt = attempt - CASE WHEN ?4 THEN 0 ELSE 1 END
         WHERE id = ?1 AND lease_epoch = ?2 AND state = 'running' AND cancel_requested = 0
           AND (NOT ?4 OR attempt < ?5) RETURNING seq",
    )
    .bind(lease.job.as_str())
    .bind(int(lease.epoch))
    .bind(Stage::Admit.name())
    .bind(counts)
    .bind(store.inner.config.attempts_max)
    .fetch_optional(&mut *tx)
    .await?;
    if requeued.is_some() {
        tx.commit().await?;
        store.announce();
        return Ok(GivenBack::Queued);
    }
    let held: Option<i64> =
        sqlx::query_scalar("SELECT seq FROM jobs WHERE id = ? AND lease_epoch = ? AND state = 'running'")
            .bind(lease.job.as_str())
            .bind(int(lease.epoch))
            .fetch_optional(&mut *tx)
            .await?;
    held.map(|_| GivenBack::Refused).ok_or_else(|| stale(lease))
}

async fn complete(
    tx: &mut SqliteConnection,
    lease: &Lease,
    video: &StoredVideo,
    now_ms: u64,
    expires_ms: i64,
) -> ControlResult<Option<SqliteRow>> {
    let result = serde_json::to_string(video).map_err(|e| ControlError::corrupt("job result", e))?;
    let row = sqlx::query(
        "UPDATE jobs SET state = 'completed', result = ?, stored_bytes = stored_bytes + ?, completed_ms = ?,
         expires_ms = ?, stage = 'record', progress_permille = 1000, worker = NULL, lease_expires_ms = NULL
         WHERE id = ? AND lease_epoch = ? AND state = 'running' RETURNING seq, tenant",
    )
    .bind(result)
    .bind(int(video.stored_bytes))
    .bind(int(now_ms))
    .bind(expires_ms)
    .bind(lease.job.as_str())
    .bind(int(lease.epoch))
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(row) = &row {
        row::keep_objects(tx, row.try_get("seq")?, &[&video.video, &video.thumbnail, &video.spritesheet]).await?;
    }
    Ok(row)
}

fn stale(lease: &Lease) -> ControlError {
    ControlError::StaleLease { job: lease.job.clone(), epoch: lease.epoch }
}

pub(super) async fn recover(store: &SqliteStore, worker: Option<&WorkerName>) -> ControlResult<Recovered> {
    let mut tx = store.begin().await?;
    let now_ms = store.now_ms();
    let worker = worker.map_or("", WorkerName::as_str);
    let attempts_max = store.inner.config.attempts_max;
    let failed = sqlx::query_scalar(
        "UPDATE jobs SET state = 'failed', completed_ms = ?1, expires_ms = ?2, stage = 'record',
         error_code = CASE cancel_requested WHEN 1 THEN ?3 ELSE ?4 END,
         error_message = CASE cancel_requested WHEN 1 THEN 'the job was cancelled'
           ELSE 'the workers that ran this job were lost, ' || attempt || ' times; nothing was billed for it' END,
         worker = NULL, lease_expires_ms = NULL
         WHERE state = 'running' AND (lease_expires_ms <= ?1 OR worker = ?5)
           AND (cancel_requested = 1 OR attempt >= ?6) RETURNING id",
    )
    .bind(int(now_ms))
    .bind(int(now_ms.saturating_add(store.inner.config.retention_ms)))
    .bind(CODE_CANCELLED)
    .bind(CODE_WORKER_LOST)
    .bind(worker)
    .bind(attempts_max)
    .fetch_all(&mut *tx)
    .await?;
    let requeued = sqlx::query_scalar(
        "UPDATE jobs SET state = 'queued', stage = ?3, progress_permille = 0, worker = NULL, lease_expires_ms = NULL
         WHERE state = 'running' AND (lease_expires_ms <= ?1 OR worker = ?2) RETURNING id",
    )
    .bind(int(now_ms))
    .bind(worker)
    .bind(Stage::Admit.name())
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    let recovered = Recovered { requeued: job_ids(requeued)?, failed: job_ids(failed)? };
    if recovered != Recovered::default() {
        store.announce();
    }
    Ok(recovered)
}

fn job_ids(texts: Vec<String>) -> ControlResult<Vec<JobId>> {
    texts.into_iter().map(|t| t.parse().map_err(|e| ControlError::corrupt("job id", e))).collect()
}
