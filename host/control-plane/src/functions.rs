//! Tenants' functions: a name and its immutable versions, each a component known by its digest.

use crate::error::{ControlError, ControlResult};
use crate::store::{SqliteStore, int, parsed, uint};
use crate::{quota, tenants};
use pipeline::{Digest, FunctionName, TenantId};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use std::fmt;
use std::str::FromStr;

/// Which world of the `zoetrope:video` package a component implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FunctionKind {
    /// Rewrites a request before it is planned.
    PromptHook,
    /// Changes one frame at a time, as a list of bytes.
    SimpleEffect,
    /// Changes frames through handles.
    FrameEffect,
    /// Makes the whole video itself.
    Director,
}

impl FunctionKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::PromptHook, Self::SimpleEffect, Self::FrameEffect, Self::Director];

    /// The kind's name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PromptHook => "prompt_hook",
            Self::SimpleEffect => "simple_effect",
            Self::FrameEffect => "frame_effect",
            Self::Director => "director",
        }
    }
}

impl fmt::Display for FunctionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FunctionKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|k| k.name() == text).ok_or_else(|| format!("no kind is called `{text}`"))
    }
}

/// One version of a function. It never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FunctionVersion {
    /// Its name, unique within the tenant.
    pub name: FunctionName,
    /// From 1; the highest is what a call by name runs.
    pub version: u32,
    /// What it is.
    pub kind: FunctionKind,
    /// SHA-256 of the component.
    pub digest: Digest,
    /// The component's size.
    pub size_bytes: u64,
    /// When it was published.
    pub created_ms: u64,
}

/// A published version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The version that a call by name runs from now on.
    pub version: FunctionVersion,
    /// False when the same component was the latest version already.
    pub is_new: bool,
}

impl SqliteStore {
    /// Adds a version. The same component twice in a row is one version, so that a repeated upload changes nothing.
    pub async fn publish_function(
        &self,
        tenant: &TenantId,
        name: &FunctionName,
        kind: FunctionKind,
        digest: Digest,
        size_bytes: u64,
    ) -> ControlResult<Published> {
        let mut tx = self.begin().await?;
        let latest = latest(&mut tx, tenant, name).await?;
        if let Some(version) = latest.as_ref().filter(|v| v.digest == digest && v.kind == kind) {
            return Ok(Published { version: version.clone(), is_new: false });
        }
        let limit = tenants::quotas_of(&mut tx, tenant).await?.stored_bytes_max;
        quota::check_stored_bytes(&mut tx, tenant, limit, size_bytes).await?;
        let version = FunctionVersion {
            name: name.clone(),
            version: latest.map_or(1, |v| v.version + 1),
            kind,
            digest,
            size_bytes,
            created_ms: self.now_ms(),
        };
        insert(&mut tx, tenant, &version).await?;
        tx.commit().await?;
        Ok(Published { version, is_new: true })
    }

    /// A version; without a number, the latest.
    pub async fn function(
        &self,
        tenant: &TenantId,
        name: &FunctionName,
        version: Option<u32>,
    ) -> ControlResult<Option<FunctionVersion>> {
        let row = sqlx::query(
            "SELECT * FROM function_versions WHERE tenant = ? AND name = ? AND version = COALESCE(?, version)
             ORDER BY version DESC LIMIT 1",
        )
        .bind(tenant.as_str())
        .bind(name.as_str())
        .bind(version)
        .fetch_optional(self.read())
        .await?;
        row.as_ref().map(function_version).transpose()
    }

    /// All versions of a function, latest first; empty when there is no such function.
    pub async fn function_versions(
        &self,
        tenant: &TenantId,
        name: &FunctionName,
    ) -> ControlResult<Vec<FunctionVersion>> {
        let rows = sqlx::query("SELECT * FROM function_versions WHERE tenant = ? AND name = ? ORDER BY version DESC")
            .bind(tenant.as_str())
            .bind(name.as_str())
            .fetch_all(self.read())
            .await?;
        rows.iter().map(function_version).collect()
    }

    /// The latest version of up to `limit` functions by name, after `after`.
    pub async fn functions(
        &self,
        tenant: &TenantId,
        after: Option<&FunctionName>,
        limit: u32,
    ) -> ControlResult<Vec<FunctionVersion>> {
        let rows = sqlx::query(
            "SELECT * FROM function_versions f WHERE tenant = ?1 AND name > ?2 AND version =
             (SELECT MAX(version) FROM function_versions WHERE tenant = ?1 AND name = f.name) ORDER BY name LIMIT ?3",
        )
        .bind(tenant.as_str())
        .bind(after.map_or("", FunctionName::as_str))
        .bind(limit)
        .fetch_all(self.read())
        .await?;
        rows.iter().map(function_version).collect()
    }

    /// Removes a function with all its versions. Jobs already admitted still run. Returns the components that nothing
    /// needs any more: no version of anyone's function and no unfinished job.
    pub async fn delete_function(&self, tenant: &TenantId, name: &FunctionName) -> ControlResult<Vec<Digest>> {
        let mut tx = self.begin().await?;
        let rows = sqlx::query("DELETE FROM function_versions WHERE tenant = ? AND name = ? RETURNING digest")
            .bind(tenant.as_str())
            .bind(name.as_str())
            .fetch_all(&mut *tx)
            .await?;
        if rows.is_empty() {
            return Err(ControlError::not_found("function", name));
        }
        let mut digests = rows.iter().map(|r| parsed(r, "digest")).collect::<ControlResult<Vec<Digest>>>()?;
        digests.sort_unstable();
        digests.dedup();
        let mut unused = Vec::new();
        for digest in digests {
            if !is_needed(&mut tx, &digest).await? {
                unused.push(digest);
            }
        }
        tx.commit().await?;
        Ok(unused)
    }
}

async fn latest(
    tx: &mut SqliteConnection,
    tenant: &TenantId,
    name: &FunctionName,
) -> ControlResult<Option<FunctionVersion>> {
    let row =
        sqlx::query("SELECT * FROM function_versions WHERE tenant = ? AND name = ? ORDER BY version DESC LIMIT 1")
            .bind(tenant.as_str())
            .bind(name.as_str())
            .fetch_optional(tx)
            .await?;
    row.as_ref().map(function_version).transpose()
}

async fn insert(tx: &mut SqliteConnection, tenant: &TenantId, version: &FunctionVersion) -> ControlResult<()> {
    sqlx::query(
        "INSERT INTO function_versions (tenant, name, version, kind, digest, size_bytes, created_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(tenant.as_str())
    .bind(version.name.as_str())
    .bind(version.version)
    .bind(version.kind.name())
    .bind(version.digest.to_hex())
    .bind(int(version.size_bytes))
    .bind(int(version.created_ms))
    .execute(tx)
    .await?;
    Ok(())
}

async fn is_needed(tx: &mut SqliteConnection, digest: &Digest) -> ControlResult<bool> {
    // A stored job names its components by digest; 64 hexadecimal digits do not occur by chance.
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM function_versions WHERE digest = ?1)
         OR EXISTS (SELECT 1 FROM jobs WHERE state IN ('queued', 'running') AND instr(spec, ?1) > 0)",
    )
    .bind(digest.to_hex())
    .fetch_one(tx)
    .await?)
}

fn function_version(row: &SqliteRow) -> ControlResult<FunctionVersion> {
    Ok(FunctionVersion {
        name: parsed(row, "name")?,
        version: row.try_get("version")?,
        kind: parsed(row, "kind")?,
        digest: parsed(row, "digest")?,
        size_bytes: uint(row, "size_bytes")?,
        created_ms: uint(row, "created_ms")?,
    })
}
