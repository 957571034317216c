//! API keys: `zt_` and 32 random bytes in hexadecimal. Only their SHA-256 is stored.

use crate::error::{ControlError, ControlResult};
use crate::store::{SqliteStore, int, parsed, random_bytes, uint, uint_or_null};
use crate::tenants;
use pipeline::TenantId;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use std::fmt;
use std::str::FromStr;
use subtle::ConstantTimeEq;

const KEY_START: &str = "zt_";
/// `zt_` and eight digits: enough to tell keys apart, far too little to guess the rest.
const PREFIX_CHARS: usize = 11;
const KEY_CHARS: usize = KEY_START.len() + 64;
/// Requests write to the database for this only once in a while.
const LAST_USED_GRAIN_MS: u64 = 60_000;
/// The tenant of whoever runs the platform.
const FIRST_TENANT: &str = "default";

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything that a tenant may, and tenants, keys, quotas and everyone's usage.
    Operator,
    /// Its own tenant's videos, functions and usage.
    Tenant,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Tenant => "tenant",
        }
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "operator" => Ok(Self::Operator),
            "tenant" => Ok(Self::Tenant),
            _ => Err(format!("no role is called `{text}`")),
        }
    }
}

/// Names a key without being one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiKeyId(String);

impl fmt::Display for ApiKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ApiKeyId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("key_").unwrap_or_default();
        let valid = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        if valid { Ok(Self(text.to_owned())) } else { Err("a key id is `key_` and 16 hexadecimal digits".to_owned()) }
    }
}

/// A key in clear. It exists only between its making and its showing; `Debug` hides it.
#[derive(Clone)]
pub struct ApiKeySecret(String);

impl ApiKeySecret {
    /// The key itself, to be shown once.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKeySecret(..)")
    }
}

/// A key as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiKey {
    /// Its name.
    pub id: ApiKeyId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What it may do.
    pub role: Role,
    /// What its owner calls it.
    pub label: String,
    /// Its first characters.
    pub prefix: String,
    /// When it was made.
    pub created_ms: u64,
    /// When it was last used, to the minute.
    pub last_used_ms: Option<u64>,
    /// Since when it is not accepted any more.
    pub revoked_ms: Option<u64>,
}

/// Who is asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The tenant on whose behalf everything happens.
    pub tenant: TenantId,
    /// What the key may do.
    pub role: Role,
    /// Which key it was.
    pub key: ApiKeyId,
}

impl SqliteStore {
    /// At the first start: makes the tenant `default` and an operator key for it, and returns the key this once.
    /// None when there is a valid operator key already.
    pub async fn ensure_operator_key(&self) -> ControlResult<Option<ApiKeySecret>> {
        let mut tx = self.begin().await?;
        let exists: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM api_keys WHERE role = 'operator' AND revoked_ms IS NULL)")
                .fetch_one(&mut *tx)
                .await?;
        if exists {
            return Ok(None);
        }
        let tenant: TenantId = FIRST_TENANT.parse().map_err(|e| ControlError::corrupt("tenant", e))?;
        let now_ms = self.now_ms();
        tenants::insert_if_absent(&mut tx, &tenant, self.inner.config.default_quotas, now_ms).await?;
        let (_, secret) = insert(&mut tx, &tenant, Role::Operator, "made at the first start", now_ms).await?;
        tx.commit().await?;
        Ok(Some(secret))
    }

    /// Makes a key. The secret cannot be had again.
    pub async fn create_key(
        &self,
        tenant: &TenantId,
        role: Role,
        label: &str,
    ) -> ControlResult<(ApiKey, ApiKeySecret)> {
        let mut tx = self.begin().await?;
        tenants::quotas_of(&mut tx, tenant).await?;
        let made = insert(&mut tx, tenant, role, label, self.now_ms()).await?;
        tx.commit().await?;
        Ok(made)
    }

    /// A tenant's keys, oldest first, revoked ones too.
    pub async fn keys(&self, tenant: &TenantId) -> ControlResult<Vec<ApiKey>> {
        let rows = sqlx::query("SELECT * FROM api_keys WHERE tenant = ? ORDER BY created_ms, id")
            .bind(tenant.as_str())
            .fetch_all(self.read())
            .await?;
        rows.iter().map(api_key).collect()
    }

    /// Ends a key at once. Revoking it again changes nothing.
    pub async fn revoke_key(&self, tenant: &TenantId, id: &ApiKeyId) -> ControlResult<ApiKey> {
        let mut tx = self.begin().await?;
        let row = sqlx::query(
            "UPDATE api_keys SET revoked_ms = COALESCE(revoked_ms, ?) WHERE tenant = ? AND id = ? RETURNING *",
        )
        .bind(int(self.now_ms()))
        .bind(tenant.as_str())
        .bind(&id.0)
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        row.as_ref().map(api_key).transpose()?.ok_or_else(|| ControlError::not_found("API key", id))
    }

    /// Whose key this is; none when nobody's, or revoked. The hash is compared in constant time.
    pub async fn authenticate(&self, key: &str) -> ControlResult<Option<Principal>> {
        if key.len() != KEY_CHARS || !key.is_ascii() || !key.starts_with(KEY_START) {
            return Ok(None);
        }
        let rows = sqlx::query("SELECT * FROM api_keys WHERE prefix = ? AND revoked_ms IS NULL")
            .bind(&key[..PREFIX_CHARS])
            .fetch_all(self.read())
            .await?;
        let hash = Sha256::digest(key.as_bytes());
        for row in &rows {
            let stored: &[u8] = row.try_get("sha256")?;
            if bool::from(stored.ct_eq(&hash)) {
                let key = api_key(row)?;
                self.note_use(&key).await?;
                return Ok(Some(Principal { tenant: key.tenant, role: key.role, key: key.id }));
            }
        }
        Ok(None)
    }

    async fn note_use(&self, key: &ApiKey) -> ControlResult<()> {
        let now_ms = self.now_ms();
        if key.last_used_ms.is_some_and(|last| now_ms < last.saturating_add(LAST_USED_GRAIN_MS)) {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        sqlx::query("UPDATE api_keys SET last_used_ms = ? WHERE id = ?")
            .bind(int(now_ms))
            .bind(&key.id.0)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}

async fn insert(
    tx: &mut sqlx::SqliteConnection,
    tenant: &TenantId,
    role: Role,
    label: &str,
    now_ms: u64,
) -> ControlResult<(ApiKey, ApiKeySecret)> {
    let secret = ApiKeySecret(format!("{KEY_START}{}", hex::encode(random_bytes::<32>())));
    let row = sqlx::query(
        "INSERT INTO api_keys (id, tenant, role, label, prefix, sha256, created_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING *",
    )
    .bind(format!("key_{}", hex::encode(random_bytes::<8>())))
    .bind(tenant.as_str())
    .bind(role.name())
    .bind(label)
    .bind(&secret.0[..PREFIX_CHARS])
    .bind(Sha256::digest(secret.0.as_bytes()).to_vec())
    .bind(int(now_ms))
    .fetch_one(tx)
    .await?;
    Ok((api_key(&row)?, secret))
}

fn api_key(row: &SqliteRow) -> ControlResult<ApiKey> {
    Ok(ApiKey {
        id: parsed(row, "id")?,
        tenant: parsed(row, "tenant")?,
        role: parsed(row, "role")?,
        label: row.try_get("label")?,
        prefix: row.try_get("prefix")?,
        created_ms: uint(row, "created_ms")?,
        last_used_ms: uint_or_null(row, "last_used_ms")?,
        revoked_ms: uint_or_null(row, "revoked_ms")?,
    })
}
