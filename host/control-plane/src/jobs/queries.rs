//! Looking without touching: get, list, statistics.

use super::{JobPage, JobRecord, ListOrder, PageRequest, QueueStats, row};
use crate::error::{ControlError, ControlResult};
use crate::store::{SqliteStore, int, uint, uint_or_null};
use pipeline::{JobId, TenantId};

pub(super) async fn get(store: &SqliteStore, tenant: &TenantId, id: &JobId) -> ControlResult<Option<JobRecord>> {
    let mut connection = store.read().acquire().await?;
    row::fetch(&mut connection, tenant, id).await
}

pub(super) async fn list(store: &SqliteStore, tenant: &TenantId, page: &PageRequest) -> ControlResult<JobPage> {
    let sql = match page.order {
        ListOrder::Ascending => "SELECT * FROM jobs WHERE tenant = ? AND seq > ? ORDER BY seq LIMIT ?",
        ListOrder::Descending => "SELECT * FROM jobs WHERE tenant = ? AND seq < ? ORDER BY seq DESC LIMIT ?",
    };
    let start = match (&page.after, page.order) {
        (Some(id), _) => int(place_of(store, tenant, id).await?),
        (None, ListOrder::Ascending) => 0,
        (None, ListOrder::Descending) => i64::MAX,
    };
    let rows = sqlx::query(sql)
        .bind(tenant.as_str())
        .bind(start)
        .bind(i64::from(page.limit) + 1)
        .fetch_all(store.read())
        .await?;
    let has_more = rows.len() > page.limit as usize;
    let jobs = rows.iter().take(page.limit as usize).map(row::job_record).collect::<ControlResult<Vec<_>>>()?;
    Ok(JobPage { jobs, has_more })
}

async fn place_of(store: &SqliteStore, tenant: &TenantId, id: &JobId) -> ControlResult<u64> {
    let row = sqlx::query("SELECT seq FROM jobs WHERE id = ? AND tenant = ?")
        .bind(id.as_str())
        .bind(tenant.as_str())
        .fetch_optional(store.read())
        .await?;
    uint(&row.ok_or_else(|| ControlError::not_found("job", id))?, "seq")
}

pub(super) async fn queue_stats(store: &SqliteStore) -> ControlResult<QueueStats> {
    let row = sqlx::query(
        "SELECT COUNT(*) FILTER (WHERE state = 'queued') AS queued,
           COUNT(*) FILTER (WHERE state = 'running') AS running,
           COUNT(*) FILTER (WHERE state = 'completed') AS completed,
           COUNT(*) FILTER (WHERE state = 'failed') AS failed,
           MIN(created_ms) FILTER (WHERE state = 'queued') AS oldest_ms,
           COALESCE(SUM(reserved_gpu_ms) FILTER (WHERE state IN ('queued', 'running')), 0) AS reserved,
           (SELECT COALESCE(SUM(condition_gpu_ms + diffuse_gpu_ms + interpolate_gpu_ms), 0) FROM usage) AS recorded
         FROM jobs",
    )
    .fetch_one(store.read())
    .await?;
    let now_ms = store.now_ms();
    Ok(QueueStats {
        queued: uint(&row, "queued")?,
        running: uint(&row, "running")?,
        completed: uint(&row, "completed")?,
        failed: uint(&row, "failed")?,
        oldest_queued_age_ms: uint_or_null(&row, "oldest_ms")?.map_or(0, |oldest| now_ms.saturating_sub(oldest)),
        reserved_gpu_ms: uint(&row, "reserved")?,
        recorded_gpu_ms: uint(&row, "recorded")?,
    })
}
