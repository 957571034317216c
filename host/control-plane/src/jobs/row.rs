//! A row of the table `jobs` as a [`JobRecord`].

use super::{JobFailure, JobRecord, JobState};
use crate::error::{ControlError, ControlResult};
use crate::store::{parsed, uint, uint_or_null};
use pipeline::{JobId, JobSpec, ObjectKey, StoredVideo};
use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

pub(super) fn job_record(row: &SqliteRow) -> ControlResult<JobRecord> {
    let progress: u64 = uint(row, "progress_permille")?;
    let remixed_from: Option<String> = row.try_get("remixed_from")?;
    Ok(JobRecord {
        id: parsed(row, "id")?,
        tenant: parsed(row, "tenant")?,
        state: job_state(row)?,
        spec: job_spec(row)?,
        remixed_from: remixed_from.map(job_id).transpose()?,
        stage: parsed(row, "stage")?,
        progress_permille: progress.min(1000) as u16,
        attempt: row.try_get("attempt")?,
        reserved_gpu_ms: uint(row, "reserved_gpu_ms")?,
        cancel_requested: row.try_get("cancel_requested")?,
        created_ms: uint(row, "created_ms")?,
        started_ms: uint_or_null(row, "started_ms")?,
        completed_ms: uint_or_null(row, "completed_ms")?,
        expires_ms: uint_or_null(row, "expires_ms")?,
    })
}

pub(super) fn job_spec(row: &SqliteRow) -> ControlResult<JobSpec> {
    json(row.try_get("spec")?, "job description")
}

fn job_state(row: &SqliteRow) -> ControlResult<JobState> {
    match row.try_get::<&str, _>("state")? {
        "queued" => Ok(JobState::Queued),
        "running" => Ok(JobState::Running),
        "completed" => Ok(JobState::Completed(json::<StoredVideo>(row.try_get("result")?, "job result")?)),
        "failed" => Ok(JobState::Failed(JobFailure {
            code: row.try_get("error_code")?,
            message: row.try_get("error_message")?,
        })),
        other => Err(ControlError::corrupt("job state", other)),
    }
}

fn job_id(text: String) -> ControlResult<JobId> {
    text.parse().map_err(|e| ControlError::corrupt("remixed_from", e))
}

fn json<T: DeserializeOwned>(text: &str, what: &'static str) -> ControlResult<T> {
    serde_json::from_str(text).map_err(|e| ControlError::corrupt(what, e))
}

/// The tenant's job as it stands inside a transaction.
pub(super) async fn fetch(
    tx: &mut SqliteConnection,
    tenant: &pipeline::TenantId,
    id: &JobId,
) -> ControlResult<Option<JobRecord>> {
    let row = sqlx::query("SELECT * FROM jobs WHERE id = ? AND tenant = ?")
        .bind(id.as_str())
        .bind(tenant.as_str())
        .fetch_optional(tx)
        .await?;
    row.as_ref().map(job_record).transpose()
}

/// Notes that the job `job_seq` needs these objects.
pub(super) async fn keep_objects(tx: &mut SqliteConnection, job_seq: i64, objects: &[&ObjectKey]) -> ControlResult<()> {
    for object in objects {
        sqlx::query("INSERT INTO job_objects (job_seq, object) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(job_seq)
            .bind(object.as_str())
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}
