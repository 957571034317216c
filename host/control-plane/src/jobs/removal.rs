//! Ending and forgetting jobs: cancel, delete, expire.

use super::{CODE_CANCELLED, JobRecord, row};
use crate::error::{ControlError, ControlResult};
use crate::store::{SqliteStore, int, parsed};
use pipeline::{JobId, ObjectKey, TenantId};
use sqlx::SqliteConnection;

pub(super) async fn cancel(store: &SqliteStore, tenant: &TenantId, id: &JobId) -> ControlResult<JobRecord> {
    let mut tx = store.begin().await?;
    let now_ms = store.now_ms();
    sqlx::query(
        "UPDATE jobs SET state = 'failed', cancel_requested = 1, completed_ms = ?1, expires_ms = ?2,
         stage = 'record', error_code = ?3, error_message = 'the job was cancelled'
         WHERE id = ?4 AND tenant = ?5 AND state = 'queued'",
    )
    .bind(int(now_ms))
    .bind(int(now_ms.saturating_add(store.inner.config.retention_ms)))
    .bind(CODE_CANCELLED)
    .bind(id.as_str())
    .bind(tenant.as_str())
    .execute(&mut *tx)
    .await?;
    sqlx::query("UPDATE jobs SET cancel_requested = 1 WHERE id = ? AND tenant = ? AND state = 'running'")
        .bind(id.as_str())
        .bind(tenant.as_str())
        .execute(&mut *tx)
        .await?;
    let job = row::fetch(&mut tx, tenant, id).await?.ok_or_else(|| ControlError::not_found("job", id))?;
    tx.commit().await?;
    store.announce();
    Ok(job)
}

pub(super) async fn delete(store: &SqliteStore, tenant: &TenantId, id: &JobId) -> ControlResult<Vec<ObjectKey>> {
    let mut tx = store.begin().await?;
    let job = row::fetch(&mut tx, tenant, id).await?.ok_or_else(|| ControlError::not_found("job", id))?;
    if !job.state.is_finished() {
        return Err(ControlError::NotFinished(job.id));
    }
    let objects = forget(&mut tx, id).await?;
    tx.commit().await?;
    Ok(objects)
}

pub(super) async fn expire(store: &SqliteStore, limit: u32) -> ControlResult<Vec<ObjectKey>> {
    let mut tx = store.begin().await?;
    let now_ms = store.now_ms();
    sqlx::query("DELETE FROM idempotency_keys WHERE created_ms < ?")
        .bind(int(now_ms.saturating_sub(store.inner.config.idempotency_ms)))
        .execute(&mut *tx)
        .await?;
    let rows = sqlx::query("SELECT id FROM jobs WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?")
        .bind(int(now_ms))
        .bind(limit)
        .fetch_all(&mut *tx)
        .await?;
    let mut objects = Vec::new();
    for row in &rows {
        objects.extend(forget(&mut tx, &parsed(row, "id")?).await?);
    }
    tx.commit().await?;
    Ok(objects)
}

/// Removes the job's row; what it used stays on the ledger. Returns the objects that only this job needed.
async fn forget(tx: &mut SqliteConnection, id: &JobId) -> ControlResult<Vec<ObjectKey>> {
    let rows = sqlx::query(
        "SELECT object FROM job_objects o JOIN jobs j ON j.seq = o.job_seq WHERE j.id = ? AND NOT EXISTS
         (SELECT 1 FROM job_objects other WHERE other.object = o.object AND other.job_seq <> o.job_seq)",
    )
    .bind(id.as_str())
    .fetch_all(&mut *tx)
    .await?;
    sqlx::query("DELETE FROM jobs WHERE id = ?").bind(id.as_str()).execute(tx).await?;
    rows.iter().map(|r| parsed(r, "object")).collect()
}
