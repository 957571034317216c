//! The ledger: what was used, once, for ever. Rows are appended by the settlement of a job and by nothing else; the
//! database itself refuses to change or delete one.

use crate::error::ControlResult;
use crate::jobs::Lease;
use crate::store::{SqliteStore, int, parsed, uint};
use pipeline::{JobId, TenantId, Usage};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

/// What a part of one attempt used, on one model and device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageSegment {
    /// The model that ran.
    pub model: String,
    /// The device that it ran on.
    pub device: String,
    /// How much.
    pub usage: Usage,
}

/// One row of the ledger. `(job, attempt, segment)` is unique.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsageRecord {
    /// Its place in the ledger; grows in the order of commits.
    pub seq: u64,
    /// Who pays.
    pub tenant: TenantId,
    /// For which job.
    pub job: JobId,
    /// Which run of the job.
    pub attempt: u32,
    /// Which part of the run.
    pub segment: u32,
    /// When it was recorded.
    pub at_ms: u64,
    /// The model that ran.
    pub model: String,
    /// The device that it ran on.
    pub device: String,
    /// How much.
    pub usage: Usage,
}

/// Which rows to sum: from `from_ms`, before `to_ms`.
#[derive(Debug, Clone, Default)]
pub struct UsageFilter {
    /// Only this tenant's; none means everyone's.
    pub tenant: Option<TenantId>,
    /// Earliest time.
    pub from_ms: u64,
    /// End of the time, itself not included; none means now.
    pub to_ms: Option<u64>,
}

/// What to sum by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageGroup {
    /// One sum.
    Total,
    /// One for each tenant.
    Tenant,
    /// One for each UTC day, as `YYYY-MM-DD`.
    Day,
    /// One for each model.
    Model,
}

/// One sum of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsageTotal {
    /// The tenant, day or model; `total` for one sum.
    pub key: String,
    /// Jobs that it covers.
    pub jobs: u64,
    /// The sum.
    pub usage: Usage,
}

/// A piece of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsagePage {
    /// Rows in the ledger's order.
    pub records: Vec<UsageRecord>,
    /// Where the next piece starts. Given again, it gives the same rows again, for ever.
    pub next_cursor: u64,
    /// Whether there is more already.
    pub has_more: bool,
}

impl SqliteStore {
    /// Sums of the ledger, in the order of their keys. No rows, no sums.
    pub async fn usage_report(&self, filter: &UsageFilter, group: UsageGroup) -> ControlResult<Vec<UsageTotal>> {
        let key = match group {
            UsageGroup::Total => "'total'",
            UsageGroup::Tenant => "tenant",
            UsageGroup::Day => "strftime('%Y-%m-%d', at_ms / 1000, 'unixepoch')",
            UsageGroup::Model => "model",
        };
        // The only text put into the statement is one of the four above.
        let sql = format!(
            "SELECT {key} AS key, COUNT(DISTINCT job) AS jobs, SUM(plan_cpu_ms) AS plan_cpu_ms,
             SUM(condition_gpu_ms) AS condition_gpu_ms, SUM(diffuse_gpu_ms) AS diffuse_gpu_ms,
             SUM(interpolate_gpu_ms) AS interpolate_gpu_ms, SUM(effects_cpu_ms) AS effects_cpu_ms,
             SUM(encode_cpu_ms) AS encode_cpu_ms, SUM(stored_bytes) AS stored_bytes
             FROM usage WHERE (?1 IS NULL OR tenant = ?1) AND at_ms >= ?2 AND at_ms < ?3 GROUP BY 1 ORDER BY 1"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(filter.tenant.as_ref().map(TenantId::as_str))
            .bind(int(filter.from_ms))
            .bind(int(filter.to_ms.unwrap_or(u64::MAX)))
            .fetch_all(self.read())
            .await?;
        let total = |r: &SqliteRow| Ok(UsageTotal { key: r.try_get("key")?, jobs: uint(r, "jobs")?, usage: usage(r)? });
        rows.iter().map(total).collect()
    }

    /// Up to `limit` rows after `cursor` (0: from the start), of one tenant or of all.
    pub async fn export_usage(&self, tenant: Option<&TenantId>, cursor: u64, limit: u32) -> ControlResult<UsagePage> {
        let rows =
            sqlx::query("SELECT * FROM usage WHERE seq > ?2 AND (?1 IS NULL OR tenant = ?1) ORDER BY seq LIMIT ?3")
                .bind(tenant.map(TenantId::as_str))
                .bind(int(cursor))
                .bind(i64::from(limit) + 1)
                .fetch_all(self.read())
                .await?;
        let has_more = rows.len() > limit as usize;
        let records = rows.iter().take(limit as usize).map(usage_record).collect::<ControlResult<Vec<_>>>()?;
        let next_cursor = records.last().map_or(cursor, |r| r.seq);
        Ok(UsagePage { records, next_cursor, has_more })
    }

    /// What one job used, attempt by attempt; empty for another tenant's.
    pub async fn usage_of_job(&self, tenant: &TenantId, job: &JobId) -> ControlResult<Vec<UsageRecord>> {
        let rows = sqlx::query("SELECT * FROM usage WHERE job = ? AND tenant = ? ORDER BY seq")
            .bind(job.as_str())
            .bind(tenant.as_str())
            .fetch_all(self.read())
            .await?;
        rows.iter().map(usage_record).collect()
    }
}

/// Appends what an attempt used. Part of the settlement's transaction.
pub(crate) async fn append(
    tx: &mut SqliteConnection,
    tenant: &str,
    lease: &Lease,
    segments: &[UsageSegment],
    now_ms: u64,
) -> ControlResult<()> {
    for (index, segment) in (0_u32..).zip(segments) {
        let usage = &segment.usage;
        sqlx::query(
            "INSERT INTO usage (tenant, job, attempt, segment, at_ms, model, device, plan_cpu_ms, condition_gpu_ms,
             diffuse_gpu_ms, interpolate_gpu_ms, effects_cpu_ms, encode_cpu_ms, stored_bytes)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(tenant)
        .bind(lease.job.as_str())
        .bind(lease.attempt)
        .bind(index)
        .bind(int(now_ms))
        .bind(&segment.model)
        .bind(&segment.device)
        .bind(int(usage.plan_cpu_ms))
        .bind(int(usage.condition_gpu_ms))
        .bind(int(usage.diffuse_gpu_ms))
        .bind(int(usage.interpolate_gpu_ms))
        .bind(int(usage.effects_cpu_ms))
        .bind(int(usage.encode_cpu_ms))
        .bind(int(usage.stored_bytes))
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

fn usage_record(row: &SqliteRow) -> ControlResult<UsageRecord> {
    Ok(UsageRecord {
        seq: uint(row, "seq")?,
        tenant: parsed(row, "tenant")?,
        job: parsed(row, "job")?,
        attempt: row.try_get("attempt")?,
        segment: row.try_get("segment")?,
        at_ms: uint(row, "at_ms")?,
        model: row.try_get("model")?,
        device: row.try_get("device")?,
        usage: usage(row)?,
    })
}

fn usage(row: &SqliteRow) -> ControlResult<Usage> {
    Ok(Usage {
        plan_cpu_ms: uint(row, "plan_cpu_ms")?,
        condition_gpu_ms: uint(row, "condition_gpu_ms")?,
        diffuse_gpu_ms: uint(row, "diffuse_gpu_ms")?,
        interpolate_gpu_ms: uint(row, "interpolate_gpu_ms")?,
        effects_cpu_ms: uint(row, "effects_cpu_ms")?,
        encode_cpu_ms: uint(row, "encode_cpu_ms")?,
        stored_bytes: uint(row, "stored_bytes")?,
    })
}
