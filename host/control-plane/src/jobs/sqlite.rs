//! [`JobStore`] over SQLite: each method is in the module of its subject.

use super::{
    Admission, Admitted, ClaimedJob, Continue, GivenBack, JobOutcome, JobPage, JobRecord, JobStore, Lease, PageRequest,
    QueueStats, Recovered, WorkerName, admission, leases, queries, removal,
};
use crate::error::ControlResult;
use crate::ledger::UsageSegment;
use crate::store::SqliteStore;
use async_trait::async_trait;
use pipeline::{JobId, ObjectKey, Stage, TenantId};
use tokio::sync::watch;

#[async_trait]
impl JobStore for SqliteStore {
    async fn admit(&self, admission: Admission) -> ControlResult<Admitted> {
        admission::admit(self, admission).await
    }

    async fn claim(&self, worker: &WorkerName, lease_ms: u64) -> ControlResult<Option<ClaimedJob>> {
        leases::claim(self, worker, lease_ms).await
    }

    async fn heartbeat(
        &self,
        lease: &Lease,
        stage: Stage,
        progress_permille: u16,
        lease_ms: u64,
    ) -> ControlResult<Continue> {
        leases::heartbeat(self, lease, stage, progress_permille, lease_ms).await
    }

    async fn settle(&self, lease: &Lease, outcome: JobOutcome, usage: &[UsageSegment]) -> ControlResult<()> {
        leases::settle(self, lease, outcome, usage).await
    }

    async fn give_back(&self, lease: &Lease, counts: bool) -> ControlResult<GivenBack> {
        leases::give_back(self, lease, counts).await
    }

    async fn cancel(&self, tenant: &TenantId, id: &JobId) -> ControlResult<JobRecord> {
        removal::cancel(self, tenant, id).await
    }

    async fn recover(&self, worker: Option<&WorkerName>) -> ControlResult<Recovered> {
        leases::recover(self, worker).await
    }

    async fn get(&self, tenant: &TenantId, id: &JobId) -> ControlResult<Option<JobRecord>> {
        queries::get(self, tenant, id).await
    }

    async fn list(&self, tenant: &TenantId, page: &PageRequest) -> ControlResult<JobPage> {
        queries::list(self, tenant, page).await
    }

    async fn delete(&self, tenant: &TenantId, id: &JobId) -> ControlResult<Vec<ObjectKey>> {
        removal::delete(self, tenant, id).await
    }

    async fn expire(&self, limit: u32) -> ControlResult<Vec<ObjectKey>> {
        removal::expire(self, limit).await
    }

    async fn queue_stats(&self) -> ControlResult<QueueStats> {
        queries::queue_stats(self).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }
}
