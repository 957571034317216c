//! The SQLite file: how it is opened, and the helpers that every part uses.

use crate::error::{ControlError, ControlResult};
use crate::tenants::Quotas;
use pipeline::Clock;
use rand::TryRngCore;
use rand::rngs::OsRng;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Row, Sqlite, Transaction};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long a writer waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const READERS_MAX: u32 = 4;

/// The rules that a store applies.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Runs of one job before it is given up as `worker_lost`.
    pub attempts_max: u32,
    /// How long a finished job and its files are kept.
    pub retention_ms: u64,
    /// How long an idempotency key is remembered.
    pub idempotency_ms: u64,
    /// What the first tenant gets.
    pub default_quotas: Quotas,
}

impl Default for StoreConfig {
    fn default() -> Self {
        const DAY_MS: u64 = 24 * 60 * 60 * 1000;
        Self { attempts_max: 3, retention_ms: 7 * DAY_MS, idempotency_ms: DAY_MS, default_quotas: Quotas::default() }
    }
}

/// The control plane in one SQLite file. Cheap to clone.
#[derive(Clone)]
pub struct SqliteStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    // One connection writes: transactions queue up here, in order, instead of failing as busy.
    write: SqlitePool,
    read: SqlitePool,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: StoreConfig,
    pub(crate) changes: watch::Sender<u64>,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqliteStore(..)")
    }
}

impl SqliteStore {
    /// Opens or makes the file and brings its schema up to date. A write is on the disk when its call returns.
    pub async fn open(file: &Path, clock: Arc<dyn Clock>, config: StoreConfig) -> ControlResult<Self> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let write = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        sqlx::migrate!("./migrations").run(&write).await?;
        let read = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .connect_with(options.pragma("query_only", "on"))
            .await?;
        let (changes, _) = watch::channel(0);
        Ok(Self { inner: Arc::new(Inner { write, read, clock, config, changes }) })
    }

    /// Waits for open transactions and closes the file.
    pub async fn close(&self) {
        self.inner.read.close().await;
        self.inner.write.close().await;
    }

    /// A transaction that holds the write lock from its start: it never has to be repeated because it read first.
    pub(crate) async fn begin(&self) -> ControlResult<Transaction<'static, Sqlite>> {
        Ok(self.inner.write.begin_with("BEGIN IMMEDIATE").await?)
    }

    pub(crate) fn read(&self) -> &SqlitePool {
        &self.inner.read
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.inner.clock.now_ms()
    }

    /// Wakes whoever waits for work or for a job's end.
    pub(crate) fn announce(&self) {
        self.inner.changes.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// SQLite's integers are signed: what does not fit is as good as unlimited.
pub(crate) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Reads a column that never holds a negative number.
pub(crate) fn uint(row: &SqliteRow, column: &'static str) -> ControlResult<u64> {
    let value: i64 = row.try_get(column)?;
    u64::try_from(value).map_err(|_| ControlError::corrupt(column, "negative"))
}

pub(crate) fn uint_or_null(row: &SqliteRow, column: &'static str) -> ControlResult<Option<u64>> {
    let value: Option<i64> = row.try_get(column)?;
    value.map(|v| u64::try_from(v).map_err(|_| ControlError::corrupt(column, "negative"))).transpose()
}

/// Reads a column through its type's own check.
pub(crate) fn parsed<T>(row: &SqliteRow, column: &'static str) -> ControlResult<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    let text: String = row.try_get(column)?;
    text.parse().map_err(|e| ControlError::corrupt(column, e))
}

pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Without randomness no key and no id may be made; there is nothing sensible to go on with.
    OsRng.try_fill_bytes(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeline::ManualClock;

    #[tokio::test]
    async fn a_write_is_on_the_disk_when_it_returns_and_references_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(0));
        let store = SqliteStore::open(&folder.path().join("db"), clock, StoreConfig::default()).await.unwrap();
        let mut tx = store.begin().await.unwrap();
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *tx).await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut *tx).await.unwrap();
        let foreign_keys: i64 = sqlx::query_scalar("PRAGMA foreign_keys").fetch_one(&mut *tx).await.unwrap();
        const FULL: i64 = 2;
        assert_eq!((journal.as_str(), synchronous, foreign_keys), ("wal", FULL, 1));
    }

    #[tokio::test]
    async fn the_reading_connections_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(0));
        let store = SqliteStore::open(&folder.path().join("db"), clock, StoreConfig::default()).await.unwrap();
        assert!(sqlx::query("DELETE FROM jobs").execute(store.read()).await.is_err());
    }
}
