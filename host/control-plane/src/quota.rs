//! How much of its quotas a tenant uses, asked inside the transaction that wants more.
//!
//! There are no counters that could drift: what is used is summed over the rows themselves. A reservation lives as
//! long as its job is unfinished: reserved by `admit`, ended by `settle`, `cancel` or `recover`.

use crate::error::{ControlError, ControlResult, QuotaKind};
use crate::store::int;
use pipeline::TenantId;
use sqlx::SqliteConnection;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// The queue moves at the pace of whole videos: asking again sooner is of no use.
const QUEUE_RETRY_MS: u64 = 10_000;

/// Refuses what would go over `limit`.
pub(crate) fn check(which: QuotaKind, limit: u64, used: u64, asked: u64, retry: Option<u64>) -> ControlResult<()> {
    if used.saturating_add(asked) <= limit {
        return Ok(());
    }
    // More than the whole quota never fits, however long one waits.
    let retry_after_ms = retry.filter(|_| asked <= limit);
    Err(ControlError::QuotaExceeded { which, limit, used, asked, retry_after_ms })
}

/// Room for one more job in the queue.
pub(crate) async fn check_queue(tx: &mut SqliteConnection, tenant: &TenantId, limit: u64) -> ControlResult<()> {
    let queued = sum(tx, "SELECT COUNT(*) FROM jobs WHERE tenant = ? AND state = 'queued'", tenant).await?;
    check(QuotaKind::JobsQueued, limit, queued, 1, Some(QUEUE_RETRY_MS))
}

/// Room for `asked` more device milliseconds today. Today's use is the ledger's plus what is reserved.
pub(crate) async fn check_gpu_ms(
    tx: &mut SqliteConnection,
    tenant: &TenantId,
    limit: u64,
    asked: u64,
    now_ms: u64,
) -> ControlResult<()> {
    let day_start_ms = now_ms - now_ms % DAY_MS;
    let spent: i64 = sqlx::query_scalar(
        "SELECT COALESCE(SUM(condition_gpu_ms + diffuse_gpu_ms + interpolate_gpu_ms), 0) FROM usage
         WHERE tenant = ? AND at_ms >= ?",
    )
    .bind(tenant.as_str())
    .bind(int(day_start_ms))
    .fetch_one(&mut *tx)
    .await?;
    let reserved = sum(
        tx,
        "SELECT COALESCE(SUM(reserved_gpu_ms), 0) FROM jobs WHERE tenant = ? AND state IN ('queued', 'running')",
        tenant,
    )
    .await?;
    let used = spent.max(0).unsigned_abs().saturating_add(reserved);
    check(QuotaKind::GpuMsPerDay, limit, used, asked, Some(day_start_ms + DAY_MS - now_ms))
}

/// Room for `asked` more stored bytes. A component counts once however many versions name it.
pub(crate) async fn check_stored_bytes(
    tx: &mut SqliteConnection,
    tenant: &TenantId,
    limit: u64,
    asked: u64,
) -> ControlResult<()> {
    let jobs = sum(tx, "SELECT COALESCE(SUM(stored_bytes), 0) FROM jobs WHERE tenant = ?", tenant).await?;
    let components = sum(
        tx,
        "SELECT COALESCE(SUM(size_bytes), 0) FROM
         (SELECT DISTINCT digest, size_bytes FROM function_versions WHERE tenant = ?)",
        tenant,
    )
    .await?;
    check(QuotaKind::StoredBytes, limit, jobs.saturating_add(components), asked, None)
}

async fn sum(tx: &mut SqliteConnection, sql: &'static str, tenant: &TenantId) -> ControlResult<u64> {
    let value: i64 = sqlx::query_scalar(sql).bind(tenant.as_str()).fetch_one(tx).await?;
    Ok(value.max(0).unsigned_abs())
}
