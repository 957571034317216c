//! `admit`: quotas, reservation, idempotency and the queue in one transaction.

use super::{Admission, Admitted, Idempotency, JobRecord, row};
use crate::error::{ControlError, ControlResult};
use crate::store::{SqliteStore, int, parsed, random_bytes};
use crate::{quota, tenants};
use pipeline::{JobId, Stage, TenantId};
use sqlx::{Row, SqliteConnection};

pub(super) async fn admit(store: &SqliteStore, admission: Admission) -> ControlResult<Admitted> {
    let mut tx = store.begin().await?;
    let now_ms = store.now_ms();
    if let Some(idempotency) = &admission.idempotency {
        let remembered_since_ms = now_ms.saturating_sub(store.inner.config.idempotency_ms);
        if let Some(job) = replay(&mut tx, &admission.tenant, idempotency, remembered_since_ms).await? {
            return Ok(Admitted { job, replayed: true });
        }
    }
    check_quotas(&mut tx, &admission, now_ms).await?;
    let job = enqueue(&mut tx, &admission, now_ms).await?;
    tx.commit().await?;
    store.announce();
    Ok(Admitted { job, replayed: false })
}

/// The job that an earlier request with this key made.
async fn replay(
    tx: &mut SqliteConnection,
    tenant: &TenantId,
    idempotency: &Idempotency,
    remembered_since_ms: u64,
) -> ControlResult<Option<JobRecord>> {
    let row = sqlx::query(
        "SELECT k.body_sha256, j.id FROM idempotency_keys k JOIN jobs j ON j.seq = k.job_seq
         WHERE k.tenant = ? AND k.key = ? AND k.created_ms >= ?",
    )
    .bind(tenant.as_str())
    .bind(&idempotency.key)
    .bind(int(remembered_since_ms))
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else { return Ok(None) };
    if row.try_get::<&str, _>("body_sha256")? != idempotency.body.to_hex() {
        return Err(ControlError::IdempotencyMismatch);
    }
    row::fetch(tx, tenant, &parsed(&row, "id")?).await
}

async fn check_quotas(tx: &mut SqliteConnection, admission: &Admission, now_ms: u64) -> ControlResult<()> {
    let tenant = &admission.tenant;
    let quotas = tenants::quotas_of(tx, tenant).await?;
    quota::check_queue(tx, tenant, quotas.jobs_queued_max).await?;
    quota::check_gpu_ms(tx, tenant, quotas.gpu_ms_per_day, admission.reserve_gpu_ms, now_ms).await?;
    quota::check_stored_bytes(tx, tenant, quotas.stored_bytes_max, admission.input_bytes).await
}

async fn enqueue(tx: &mut SqliteConnection, admission: &Admission, now_ms: u64) -> ControlResult<JobRecord> {
    let spec = serde_json::to_string(&admission.spec).map_err(|e| ControlError::corrupt("job description", e))?;
    let row = sqlx::query(
        "INSERT INTO jobs (id, tenant, state, spec, remixed_from, stage, reserved_gpu_ms, stored_bytes, created_ms)
         VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?) RETURNING *",
    )
    .bind(JobId::from_random(random_bytes()).as_str())
    .bind(admission.tenant.as_str())
    .bind(spec)
    .bind(admission.remixed_from.as_ref().map(JobId::as_str))
    .bind(Stage::Admit.name())
    .bind(int(admission.reserve_gpu_ms))
    .bind(int(admission.input_bytes))
    .bind(int(now_ms))
    .fetch_one(&mut *tx)
    .await?;
    let seq: i64 = row.try_get("seq")?;
    let given: Vec<_> = admission.spec.images.iter().map(|i| &i.object).collect();
    row::keep_objects(tx, seq, &given).await?;
    if let Some(idempotency) = &admission.idempotency {
        remember(tx, &admission.tenant, idempotency, seq, now_ms).await?;
    }
    row::job_record(&row)
}

async fn remember(
    tx: &mut SqliteConnection,
    tenant: &TenantId,
    idempotency: &Idempotency,
    job_seq: i64,
    now_ms: u64,
) -> ControlResult<()> {
    // A row of the same key can only be one that is too old to count.
    sqlx::query(
        "INSERT OR REPLACE INTO idempotency_keys (tenant, key, body_sha256, job_seq, created_ms)
         VALUES (?, ?, ?, ?, ?)",
    )
    .bind(tenant.as_str())
    .bind(&idempotency.key)
    .bind(idempotency.body.to_hex())
    .bind(job_seq)
    .bind(int(now_ms))
    .execute(tx)
    .await?;
    Ok(())
}
