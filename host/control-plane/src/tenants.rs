//! Tenants and what they may use.

use crate::error::{ControlError, ControlResult};
use crate::store::{SqliteStore, int, parsed, uint};
use pipeline::TenantId;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;

/// What a tenant may use. Zero forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quotas {
    /// Device milliseconds in one UTC day.
    pub gpu_ms_per_day: u64,
    /// Jobs that run at the same time; more wait in the queue.
    pub jobs_running_max: u64,
    /// Jobs that wait in the queue.
    pub jobs_queued_max: u64,
    /// Bytes of results, given pictures and components.
    pub stored_bytes_max: u64,
}

impl Default for Quotas {
    /// Enough for a laptop that works all day on the CPU engine.
    fn default() -> Self {
        Self {
            gpu_ms_per_day: 24 * 60 * 60 * 1000,
            jobs_running_max: 4,
            jobs_queued_max: 1000,
            stored_bytes_max: 64 * 1024 * 1024 * 1024,
        }
    }
}

/// A customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tenant {
    /// Its name.
    pub id: TenantId,
    /// When it was made.
    pub created_ms: u64,
    /// What it may use.
    pub quotas: Quotas,
}

const COLUMNS: &str = "id, created_ms, gpu_ms_per_day, jobs_running_max, jobs_queued_max, stored_bytes_max";

impl SqliteStore {
    /// Makes a tenant; `AlreadyExists` when the name is taken.
    pub async fn create_tenant(&self, id: &TenantId, quotas: Quotas) -> ControlResult<Tenant> {
        let mut tx = self.begin().await?;
        let created_ms = self.now_ms();
        if !insert_if_absent(&mut tx, id, quotas, created_ms).await? {
            return Err(ControlError::AlreadyExists { kind: "tenant", id: id.to_string() });
        }
        tx.commit().await?;
        Ok(Tenant { id: id.clone(), created_ms, quotas })
    }

    /// The tenant of that name.
    pub async fn tenant(&self, id: &TenantId) -> ControlResult<Option<Tenant>> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM tenants WHERE id = ?")))
            .bind(id.as_str())
            .fetch_optional(self.read())
            .await?;
        row.as_ref().map(tenant).transpose()
    }

    /// Up to `limit` tenants by name, after `after`.
    pub async fn tenants(&self, after: Option<&TenantId>, limit: u32) -> ControlResult<Vec<Tenant>> {
        let sql = format!("SELECT {COLUMNS} FROM tenants WHERE id > ? ORDER BY id LIMIT ?");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(after.map_or("", TenantId::as_str))
            .bind(limit)
            .fetch_all(self.read())
            .await?;
        rows.iter().map(tenant).collect()
    }

    /// Changes what a tenant may use from now on; jobs already admitted keep their reservation.
    pub async fn set_quotas(&self, id: &TenantId, quotas: Quotas) -> ControlResult<Tenant> {
        let mut tx = self.begin().await?;
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "UPDATE tenants SET gpu_ms_per_day = ?, jobs_running_max = ?, jobs_queued_max = ?, stored_bytes_max = ?
             WHERE id = ? RETURNING {COLUMNS}"
        )))
        .bind(int(quotas.gpu_ms_per_day))
        .bind(int(quotas.jobs_running_max))
        .bind(int(quotas.jobs_queued_max))
        .bind(int(quotas.stored_bytes_max))
        .bind(id.as_str())
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        // More may run now than before.
        self.announce();
        row.as_ref().map(tenant).transpose()?.ok_or_else(|| ControlError::not_found("tenant", id))
    }
}

/// False when the tenant was there already.
pub(crate) async fn insert_if_absent(
    tx: &mut sqlx::SqliteConnection,
    id: &TenantId,
    quotas: Quotas,
    now_ms: u64,
) -> ControlResult<bool> {
    let done = sqlx::query(
        "INSERT INTO tenants (id, created_ms, gpu_ms_per_day, jobs_running_max, jobs_queued_max, stored_bytes_max)
         VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
    )
    .bind(id.as_str())
    .bind(int(now_ms))
    .bind(int(quotas.gpu_ms_per_day))
    .bind(int(quotas.jobs_running_max))
    .bind(int(quotas.jobs_queued_max))
    .bind(int(quotas.stored_bytes_max))
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The quotas as they stand inside a transaction.
pub(crate) async fn quotas_of(tx: &mut sqlx::SqliteConnection, id: &TenantId) -> ControlResult<Quotas> {
    let row = sqlx::query(
        "SELECT gpu_ms_per_day, jobs_running_max, jobs_queued_max, stored_bytes_max FROM tenants WHERE id = ?",
    )
    .bind(id.as_str())
    .fetch_optional(tx)
    .await?;
    quotas(&row.ok_or_else(|| ControlError::not_found("tenant", id))?)
}

fn tenant(row: &SqliteRow) -> ControlResult<Tenant> {
    Ok(Tenant { id: parsed(row, "id")?, created_ms: uint(row, "created_ms")?, quotas: quotas(row)? })
}

fn quotas(row: &SqliteRow) -> ControlResult<Quotas> {
    Ok(Quotas {
        gpu_ms_per_day: uint(row, "gpu_ms_per_day")?,
        jobs_running_max: uint(row, "jobs_running_max")?,
        jobs_queued_max: uint(row, "jobs_queued_max")?,
        stored_bytes_max: uint(row, "stored_bytes_max")?,
    })
}
