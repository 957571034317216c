use crate::fixture::{DAY_MS, Fixture, NOON_MS, ROOMY, admission, failed, tenant, used, video};
use control_plane::*;
use std::collections::HashSet;

fn exceeded(result: ControlResult<Admitted>) -> (QuotaKind, u64, Option<u64>) {
    match result {
        Err(ControlError::QuotaExceeded { which, used, retry_after_ms, .. }) => (which, used, retry_after_ms),
        other => panic!("not over a quota: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_requests_at_once_exactly_as_many_are_admitted_as_fit() {
    let fixture = Fixture::new().await;
    fixture.store.set_quotas(&tenant("acme"), Quotas { gpu_ms_per_day: 700, ..ROOMY }).await.unwrap();
    let tasks: Vec<_> = (0..32)
        .map(|_| {
            let store = fixture.store.clone();
            tokio::spawn(async move { store.admit(admission("acme", 100)).await })
        })
        .collect();
    let mut admitted = HashSet::new();
    let mut refused = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(a) => assert!(admitted.insert(a.job.id)),
            Err(ControlError::QuotaExceeded { which: QuotaKind::GpuMsPerDay, limit: 700, .. }) => refused += 1,
            Err(e) => panic!("{e:?}"),
        }
    }
    assert_eq!((admitted.len(), refused), (7, 25));
    assert_eq!(fixture.store.queue_stats().await.unwrap().reserved_gpu_ms, 700);
}

#[tokio::test]
async fn two_requests_for_the_last_place_in_the_queue_do_not_both_get_it() {
    let fixture = Fixture::new().await;
    fixture.store.set_quotas(&tenant("acme"), Quotas { jobs_queued_max: 1, ..ROOMY }).await.unwrap();
    let (a, b) = tokio::join!(fixture.store.admit(admission("acme", 1)), fixture.store.admit(admission("acme", 1)),);
    assert_eq!(usize::from(a.is_ok()) + usize::from(b.is_ok()), 1);
    let (which, used, retry) = exceeded(if a.is_err() { a } else { b });
    assert_eq!((which, used), (QuotaKind::JobsQueued, 1));
    assert!(retry.is_some());
    // Once it runs, its place in the queue is free.
    fixture.claim().await.unwrap();
    fixture.store.admit(admission("acme", 1)).await.unwrap();
}

#[tokio::test]
async fn a_reservation_becomes_what_was_really_used() {
    let fixture = Fixture::new().await;
    fixture.store.set_quotas(&tenant("acme"), Quotas { gpu_ms_per_day: 1000, ..ROOMY }).await.unwrap();
    fixture.store.admit(admission("acme", 900)).await.unwrap();
    assert_eq!(exceeded(fixture.store.admit(admission("acme", 200)).await).1, 900);
    let claimed = fixture.claim().await.unwrap();
    assert_eq!(claimed.reserved_gpu_ms, 900);
    fixture.store.settle(&claimed.lease, failed("internal"), &used(350)).await.unwrap();
    fixture.store.admit(admission("acme", 650)).await.unwrap();
    assert_eq!(exceeded(fixture.store.admit(admission("acme", 1)).await).1, 1000);
}

#[tokio::test]
async fn a_new_day_brings_a_new_budget_and_the_refusal_says_when() {
    let fixture = Fixture::new().await;
    fixture.store.set_quotas(&tenant("acme"), Quotas { gpu_ms_per_day: 100, ..ROOMY }).await.unwrap();
    fixture.admit("acme").await;
    let claimed = fixture.claim().await.unwrap();
    fixture.store.settle(&claimed.lease, failed("internal"), &used(100)).await.unwrap();
    let (_, _, retry) = exceeded(fixture.store.admit(admission("acme", 100)).await);
    assert_eq!(retry, Some(DAY_MS - NOON_MS % DAY_MS));
    fixture.clock.advance_ms(retry.unwrap() - 1);
    exceeded(fixture.store.admit(admission("acme", 100)).await);
    fixture.clock.advance_ms(1);
    fixture.store.admit(admission("acme", 100)).await.unwrap();
}

#[tokio::test]
async fn more_than_the_whole_quota_is_refused_without_a_time_to_come_back() {
    let fixture = Fixture::new().await;
    let (which, _, retry) = exceeded(fixture.store.admit(admission("acme", 1_000_001)).await);
    assert_eq!((which, retry), (QuotaKind::GpuMsPerDay, None));
    exceeded(fixture.store.admit(admission("acme", u64::MAX)).await);
}

#[tokio::test]
async fn stored_bytes_count_until_the_job_is_deleted() {
    let fixture = Fixture::new().await;
    fixture.store.set_quotas(&tenant("acme"), Quotas { stored_bytes_max: 100, ..ROOMY }).await.unwrap();
    let mut with_picture = admission("acme", 1);
    with_picture.input_bytes = 40;
    let job = fixture.store.admit(with_picture.clone()).await.unwrap().job.id;
    let claimed = fixture.claim().await.unwrap();
    fixture.store.settle(&claimed.lease, JobOutcome::Completed(video("a", 50)), &used(1)).await.unwrap();
    assert_eq!(exceeded(fixture.store.admit(with_picture.clone()).await), (QuotaKind::StoredBytes, 90, None));
    fixture.store.delete(&tenant("acme"), &job).await.unwrap();
    fixture.store.admit(with_picture).await.unwrap();
}

#[tokio::test]
async fn one_tenants_quota_is_not_anothers() {
    let fixture = Fixture::new().await;
    fixture.store.set_quotas(&tenant("acme"), Quotas { jobs_queued_max: 0, ..ROOMY }).await.unwrap();
    exceeded(fixture.store.admit(admission("acme", 1)).await);
    fixture.store.admit(admission("other", 1)).await.unwrap();
    let nobody = fixture.store.admit(admission("nobody", 1)).await;
    assert!(matches!(nobody, Err(ControlError::NotFound { kind: "tenant", .. })));
}
