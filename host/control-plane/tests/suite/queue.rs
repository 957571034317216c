use crate::fixture::{Fixture, LEASE_MS, ROOMY, admission, failed, spec, tenant, used, video, worker};
use control_plane::jobs::{CODE_CANCELLED, CODE_WORKER_LOST};
use control_plane::*;
use pipeline::{Clock, Digest, GivenImage, JobId, KeyFramePosition, Stage};

fn is_stale<T>(result: ControlResult<T>) -> bool {
    matches!(result, Err(ControlError::StaleLease { .. }))
}

fn failure_code(state: &JobState) -> &str {
    match state {
        JobState::Failed(failure) => &failure.code,
        other => panic!("not failed: {other:?}"),
    }
}

#[tokio::test]
async fn a_job_lives_from_admission_to_its_video() {
    let fixture = Fixture::new().await;
    let id = fixture.admit("acme").await;
    assert_eq!(fixture.state("acme", &id).await, JobState::Queued);
    fixture.clock.advance_ms(5);
    let claimed = fixture.claim().await.unwrap();
    assert_eq!((&claimed.lease.job, claimed.lease.attempt, &claimed.spec), (&id, 1, &spec("a red star")));
    let beat = fixture.store.heartbeat(&claimed.lease, Stage::Diffuse, 300, LEASE_MS).await.unwrap();
    assert_eq!(beat, Continue::Yes);
    let job = fixture.store.get(&tenant("acme"), &id).await.unwrap().unwrap();
    assert_eq!((job.state, job.stage, job.progress_permille), (JobState::Running, Stage::Diffuse, 300));
    let result = video("a", 10);
    fixture.store.settle(&claimed.lease, JobOutcome::Completed(result.clone()), &used(50)).await.unwrap();
    let job = fixture.store.get(&tenant("acme"), &id).await.unwrap().unwrap();
    let now_ms = fixture.clock.now_ms();
    assert_eq!((job.state, job.progress_permille), (JobState::Completed(result), 1000));
    assert_eq!((job.created_ms + 5, job.started_ms, job.completed_ms), (now_ms, Some(now_ms), Some(now_ms)));
}

#[tokio::test]
async fn progress_never_runs_backwards() {
    let fixture = Fixture::new().await;
    let id = fixture.admit("acme").await;
    let lease = fixture.claim().await.unwrap().lease;
    for permille in [200, 700, 400, 5000] {
        let _ = fixture.store.heartbeat(&lease, Stage::Diffuse, permille, LEASE_MS).await.unwrap();
        let job = fixture.store.get(&tenant("acme"), &id).await.unwrap().unwrap();
        assert_eq!(
            job.progress_permille,
            if permille == 200 {
                200
            } else if permille > 1000 {
                1000
            } else {
                700
            }
        );
    }
}

#[tokio::test]
async fn a_second_settlement_is_refused_and_not_billed() {
    let fixture = Fixture::new().await;
    let id = fixture.admit("acme").await;
    let lease = fixture.claim().await.unwrap().lease;
    fixture.store.settle(&lease, JobOutcome::Completed(video("a", 10)), &used(50)).await.unwrap();
    assert!(is_stale(fixture.store.settle(&lease, failed("internal"), &used(50)).await));
    assert!(is_stale(fixture.store.heartbeat(&lease, Stage::Store, 1, LEASE_MS).await));
    assert!(matches!(fixture.state("acme", &id).await, JobState::Completed(_)));
    assert_eq!(fixture.store.queue_stats().await.unwrap().recorded_gpu_ms, 50);
}

#[tokio::test]
async fn a_worker_that_was_too_slow_cannot_overwrite_its_successor() {
    let fixture = Fixture::new().await;
    let id = fixture.admit("acme").await;
    let slow = fixture.claim().await.unwrap().lease;
    fixture.clock.advance_ms(LEASE_MS);
    assert_eq!(fixture.store.recover(None).await.unwrap().requeued, std::slice::from_ref(&id));
    assert!(is_stale(fixture.store.settle(&slow, failed("internal"), &used(1)).await), "while it waits");
    let quick = fixture.store.claim(&worker("w2"), LEASE_MS).await.unwrap().unwrap().lease;
    assert!(quick.epoch > slow.epoch && quick.attempt == 2);
    assert!(is_stale(fixture.store.settle(&slow, failed("internal"), &used(1)).await), "while another runs it");
    fixture.store.settle(&quick, JobOutcome::Completed(video("a", 1)), &used(20)).await.unwrap();
    assert_eq!(fixture.store.queue_stats().await.unwrap().recorded_gpu_ms, 20);
}

#[tokio::test]
async fn a_heartbeat_keeps_the_lease() {
    let fixture = Fixture::new().await;
    fixture.admit("acme").await;
    let lease = fixture.claim().await.unwrap().lease;
    for _ in 0..5 {
        fixture.clock.advance_ms(LEASE_MS - 1);
        let _ = fixture.store.heartbeat(&lease, Stage::Diffuse, 1, LEASE_MS).await.unwrap();
        assert_eq!(fixture.store.recover(None).await.unwrap(), Recovered::default());
    }
}

#[tokio::test]
async fn a_killed_process_finds_its_jobs_again_and_gives_them_up_after_three_runs() {
    let mut fixture = Fixture::new().await;
    let id = fixture.admit("acme").await;
    let waiting = fixture.admit("acme").await;
    for attempt in 1..=3 {
        let claimed = fixture.claim().await.unwrap();
        assert_eq!((&claimed.lease.job, claimed.lease.attempt), (&id, attempt));
        fixture.crash_and_reopen().await;
        let recovered = fixture.store.recover(Some(&worker("w1"))).await.unwrap();
        let (requeued, given_up) = if attempt < 3 { (vec![id.clone()], vec![]) } else { (vec![], vec![id.clone()]) };
        assert_eq!((recovered.requeued, recovered.failed), (requeued, given_up));
    }
    assert_eq!(failure_code(&fixture.state("acme", &id).await), CODE_WORKER_LOST);
    assert_eq!(fixture.claim().await.unwrap().lease.job, waiting, "the next job is not held up");
    assert_eq!(fixture.store.queue_stats().await.unwrap().recorded_gpu_ms, 0, "lost runs are not billed");
}

#[tokio::test]
async fn a_job_that_is_given_back_waits_again_unbilled_until_its_attempts_are_spent() {
    let fixture = Fixture::new().await;
    let id = fixture.admit("acme").await;
    let first = fixture.claim().await.unwrap().lease;
    assert_eq!(fixture.store.give_back(&first, true).await.unwrap(), GivenBack::Queued);
    assert_eq!(fixture.state("acme", &id).await, JobState::Queued);
    assert!(is_stale(fixture.store.settle(&first, failed("x"), &used(5)).await), "the run is nobody's any more");
    assert!(is_stale(fixture.store.give_back(&first, true).await));
    for _ in 0..5 {
        let lease = fixture.claim().await.unwrap().lease;
        assert_eq!(lease.attempt, 2, "runs that do not count leave the number as it was");
        assert_eq!(fixture.store.give_back(&lease, false).await.unwrap(), GivenBack::Queued);
    }
    let second = fixture.claim().await.unwrap().lease;
    assert_eq!(fixture.store.give_back(&second, true).await.unwrap(), GivenBack::Queued);
    let third = fixture.claim().await.unwrap().lease;
    assert_eq!(third.attempt, 3);
    assert_eq!(fixture.store.give_back(&third, true).await.unwrap(), GivenBack::Refused);
    fixture.store.settle(&third, failed("device_failed"), &used(0)).await.unwrap();
    assert_eq!(failure_code(&fixture.state("acme", &id).await), "device_failed");
    let stats = fixture.store.queue_stats().await.unwrap();
    assert_eq!((stats.recorded_gpu_ms, stats.reserved_gpu_ms), (0, 0));
}

#[tokio::test]
async fn a_cancelled_job_cannot_be_given_back() {
    let fixture = Fixture::new().await;
    let id = fixture.admit("acme").await;
    let lease = fixture.claim().await.unwrap().lease;
    fixture.store.cancel(&tenant("acme"), &id).await.unwrap();
    assert_eq!(fixture.store.give_back(&lease, false).await.unwrap(), GivenBack::Refused);
    assert_eq!(fixture.state("acme", &id).await, JobState::Running);
}

#[tokio::test]
async fn a_restart_leaves_the_jobs_of_other_workers_alone() {
    let mut fixture = Fixture::new().await;
    fixture.admit("acme").await;
    let theirs = fixture.store.claim(&worker("w2"), LEASE_MS).await.unwrap().unwrap().lease;
    fixture.crash_and_reopen().await;
    assert_eq!(fixture.store.recover(Some(&worker("w1"))).await.unwrap(), Recovered::default());
    fixture.store.settle(&theirs, JobOutcome::Completed(video("a", 1)), &used(1)).await.unwrap();
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_at_once_and_costs_nothing() {
    let fixture = Fixture::new().await;
    let id = fixture.admit("acme").await;
    let job = fixture.store.cancel(&tenant("acme"), &id).await.unwrap();
    assert_eq!(failure_code(&job.state), CODE_CANCELLED);
    assert!(fixture.claim().await.is_none());
    let stats = fixture.store.queue_stats().await.unwrap();
    assert_eq!((stats.failed, stats.reserved_gpu_ms, stats.recorded_gpu_ms), (1, 0, 0));
}

#[tokio::test]
async fn a_running_job_learns_of_its_cancellation_with_the_next_heartbeat() {
    let fixture = Fixture::new().await;
    let id = fixture.admit("acme").await;
    let lease = fixture.claim().await.unwrap().lease;
    let job = fixture.store.cancel(&tenant("acme"), &id).await.unwrap();
    assert!(job.state == JobState::Running && job.cancel_requested);
    let beat = fixture.store.heartbeat(&lease, Stage::Diffuse, 1, LEASE_MS).await.unwrap();
    assert_eq!(beat, Continue::Cancelled);
    fixture.store.settle(&lease, failed(CODE_CANCELLED), &used(9)).await.unwrap();
    assert_eq!(fixture.store.queue_stats().await.unwrap().recorded_gpu_ms, 9, "the time used is billed");
}

#[tokio::test]
async fn a_cancelled_job_does_not_come_back_after_a_crash() {
    let fixture = Fixture::new().await;
    let id = fixture.admit("acme").await;
    fixture.claim().await.unwrap();
    fixture.store.cancel(&tenant("acme"), &id).await.unwrap();
    assert_eq!(fixture.store.recover(Some(&worker("w1"))).await.unwrap().failed, std::slice::from_ref(&id));
    assert_eq!(failure_code(&fixture.state("acme", &id).await), CODE_CANCELLED);
}

#[tokio::test]
async fn cancelling_a_finished_job_changes_nothing() {
    let fixture = Fixture::new().await;
    let id = fixture.admit("acme").await;
    let lease = fixture.claim().await.unwrap().lease;
    fixture.store.settle(&lease, JobOutcome::Completed(video("a", 1)), &used(1)).await.unwrap();
    let before = fixture.store.get(&tenant("acme"), &id).await.unwrap().unwrap();
    assert_eq!(fixture.store.cancel(&tenant("acme"), &id).await.unwrap(), before);
}

#[tokio::test]
async fn a_flood_of_one_tenant_takes_turns_with_anothers_single_job() {
    let fixture = Fixture::new().await;
    for _ in 0..50 {
        fixture.admit("acme").await;
    }
    let light = [fixture.admit("other").await, fixture.admit("other").await];
    let mut order = Vec::new();
    while let Some(claimed) = fixture.claim().await {
        fixture.store.settle(&claimed.lease, failed("internal"), &[]).await.unwrap();
        order.push(claimed.lease.job);
    }
    let turn = |id: &JobId| order.iter().position(|o| o == id).unwrap();
    assert_eq!(order.len(), 52);
    assert!(turn(&light[0]) <= 1 && turn(&light[1]) <= 3, "{} {}", turn(&light[0]), turn(&light[1]));
}

#[tokio::test]
async fn a_tenant_at_its_running_limit_waits_while_others_run() {
    let fixture = Fixture::new().await;
    fixture.store.set_quotas(&tenant("acme"), Quotas { jobs_running_max: 1, ..ROOMY }).await.unwrap();
    let (first, second) = (fixture.admit("acme").await, fixture.admit("acme").await);
    let others = fixture.admit("other").await;
    let running = fixture.claim().await.unwrap().lease;
    assert_eq!(running.job, first);
    assert_eq!(fixture.claim().await.unwrap().lease.job, others);
    assert!(fixture.claim().await.is_none());
    fixture.store.settle(&running, failed("internal"), &[]).await.unwrap();
    assert_eq!(fixture.claim().await.unwrap().lease.job, second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_job_is_given_to_two_workers() {
    let fixture = Fixture::new().await;
    let mut admitted = Vec::new();
    for _ in 0..40 {
        admitted.push(fixture.admit("acme").await);
    }
    let workers: Vec<_> = (0..8)
        .map(|n| {
            let store = fixture.store.clone();
            tokio::spawn(async move {
                let mut got = Vec::new();
                while let Some(claimed) = store.claim(&worker(&format!("w{n}")), LEASE_MS).await.unwrap() {
                    got.push(claimed.lease.job);
                }
                got
            })
        })
        .collect();
    let mut claimed = Vec::new();
    for task in workers {
        claimed.extend(task.await.unwrap());
    }
    claimed.sort();
    admitted.sort();
    assert_eq!(claimed, admitted);
}

#[tokio::test]
async fn the_same_idempotency_key_is_the_same_job_for_a_day() {
    let mut fixture = Fixture::new().await;
    let keyed = |name: &str, body: u8| {
        let mut admission = admission(name, 100);
        admission.idempotency = Some(Idempotency { key: "k".into(), body: Digest::new([body; 32]) });
        admission
    };
    let first = fixture.store.admit(keyed("acme", 1)).await.unwrap();
    fixture.crash_and_reopen().await;
    let again = fixture.store.admit(keyed("acme", 1)).await.unwrap();
    assert_eq!((first.replayed, again.replayed, &again.job.id), (false, true, &first.job.id));
    assert_eq!(fixture.store.queue_stats().await.unwrap().queued, 1);
    let other_body = fixture.store.admit(keyed("acme", 2)).await;
    assert!(matches!(other_body, Err(ControlError::IdempotencyMismatch)));
    assert!(!fixture.store.admit(keyed("other", 2)).await.unwrap().replayed, "keys are the tenant's own");
    fixture.clock.advance_ms(StoreConfig::default().idempotency_ms + 1);
    assert!(!fixture.store.admit(keyed("acme", 2)).await.unwrap().replayed);
}

#[tokio::test]
async fn another_tenants_job_does_not_exist() {
    let fixture = Fixture::new().await;
    let id = fixture.admit("acme").await;
    let other = tenant("other");
    let hidden = |e: ControlError| matches!(e, ControlError::NotFound { .. });
    assert!(fixture.store.get(&other, &id).await.unwrap().is_none());
    assert!(hidden(fixture.store.cancel(&other, &id).await.unwrap_err()));
    assert!(hidden(fixture.store.delete(&other, &id).await.unwrap_err()));
    let page = PageRequest { after: Some(id.clone()), limit: 10, order: ListOrder::Descending };
    assert!(hidden(fixture.store.list(&other, &page).await.unwrap_err()));
    let page = PageRequest { after: None, ..page };
    assert!(fixture.store.list(&other, &page).await.unwrap().jobs.is_empty());
    assert_eq!(fixture.state("acme", &id).await, JobState::Queued, "nothing happened to it");
}

#[tokio::test]
async fn pages_cover_a_list_exactly_once_in_both_orders() {
    let fixture = Fixture::new().await;
    let mut ids = Vec::new();
    for n in 0..7 {
        ids.push(fixture.admit("acme").await);
        fixture.admit(if n % 2 == 0 { "other" } else { "acme" }).await;
    }
    for order in [ListOrder::Ascending, ListOrder::Descending] {
        let mut seen = Vec::new();
        let mut page = PageRequest { after: None, limit: 3, order };
        loop {
            let part = fixture.store.list(&tenant("acme"), &page).await.unwrap();
            seen.extend(part.jobs.into_iter().map(|j| j.id));
            page.after = seen.last().cloned();
            if !part.has_more {
                break;
            }
        }
        assert_eq!(seen.len(), 10);
        if order == ListOrder::Descending {
            seen.reverse();
        }
        seen.retain(|id| ids.contains(id));
        assert_eq!(seen, ids);
    }
}

#[tokio::test]
async fn an_unfinished_job_cannot_be_deleted() {
    let fixture = Fixture::new().await;
    let id = fixture.admit("acme").await;
    assert!(matches!(fixture.store.delete(&tenant("acme"), &id).await, Err(ControlError::NotFinished(_))));
    fixture.claim().await.unwrap();
    assert!(matches!(fixture.store.delete(&tenant("acme"), &id).await, Err(ControlError::NotFinished(_))));
}

#[tokio::test]
async fn deletion_names_only_objects_that_no_other_job_needs() {
    let fixture = Fixture::new().await;
    let picture = |name: &str| GivenImage {
        position: KeyFramePosition::First,
        object: format!("acme/{name}.png").parse().unwrap(),
    };
    let mut ids = Vec::new();
    for own in ["one", "two"] {
        let mut admission = admission("acme", 1);
        admission.spec.images = vec![picture("shared"), picture(own)];
        ids.push(fixture.store.admit(admission).await.unwrap().job.id);
        let lease = fixture.claim().await.unwrap().lease;
        // The same seed and prompt made the same file.
        fixture.store.settle(&lease, JobOutcome::Completed(video("same", 1)), &[]).await.unwrap();
    }
    let deleted = async |id| {
        let objects = fixture.store.delete(&tenant("acme"), id).await.unwrap();
        let mut names: Vec<_> = objects.into_iter().map(String::from).collect();
        names.sort();
        names
    };
    assert_eq!(deleted(&ids[0]).await, ["acme/one.png"]);
    let rest = ["acme/same.jpg", "acme/same.mp4", "acme/same.webp", "acme/shared.png", "acme/two.png"];
    assert_eq!(deleted(&ids[1]).await, rest);
    assert!(fixture.store.get(&tenant("acme"), &ids[0]).await.unwrap().is_none());
}

#[tokio::test]
async fn finished_jobs_expire_and_waiting_ones_do_not() {
    let fixture = Fixture::new().await;
    let done = fixture.admit("acme").await;
    let lease = fixture.claim().await.unwrap().lease;
    fixture.store.settle(&lease, JobOutcome::Completed(video("a", 1)), &used(5)).await.unwrap();
    let waiting = fixture.admit("acme").await;
    fixture.clock.advance_ms(StoreConfig::default().retention_ms - 1);
    assert!(fixture.store.expire(10).await.unwrap().is_empty());
    fixture.clock.advance_ms(1);
    assert_eq!(fixture.store.expire(10).await.unwrap().len(), 3);
    assert!(fixture.store.get(&tenant("acme"), &done).await.unwrap().is_none());
    assert_eq!(fixture.state("acme", &waiting).await, JobState::Queued);
    assert_eq!(fixture.store.queue_stats().await.unwrap().recorded_gpu_ms, 5);
}

#[tokio::test]
async fn whoever_waits_hears_of_new_work_and_of_an_end() {
    let fixture = Fixture::new().await;
    let mut changes = fixture.store.changes();
    assert!(!changes.has_changed().unwrap());
    fixture.admit("acme").await;
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    let lease = fixture.claim().await.unwrap().lease;
    fixture.store.settle(&lease, failed("internal"), &[]).await.unwrap();
    assert!(changes.has_changed().unwrap());
}

#[tokio::test]
async fn statistics_tell_how_long_the_oldest_job_has_waited() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.store.queue_stats().await.unwrap(), QueueStats::default());
    fixture.admit("acme").await;
    fixture.clock.advance_ms(70);
    fixture.admit("other").await;
    let stats = fixture.store.queue_stats().await.unwrap();
    assert_eq!((stats.queued, stats.oldest_queued_age_ms, stats.reserved_gpu_ms), (2, 70, 200));
}
