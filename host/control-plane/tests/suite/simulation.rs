//! Random lives of many jobs, with crashes, lost workers, cancelled calls and repeated ones, against a plain model of
//! what must hold. A failure prints its seed; `ZOETROPE_SIMULATION_SEEDS` sets how many seeds run.

use crate::fixture::{Fixture, LEASE_MS, admission, failed, tenant, used, video, worker};
use control_plane::jobs::{CODE_CANCELLED, CODE_WORKER_LOST};
use control_plane::*;
use pipeline::{Digest, JobId, Stage};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::task::Poll;

const OPERATIONS: usize = 250;
const WORKERS: [&str; 3] = ["w1", "w2", "w3"];
const TENANTS: [&str; 2] = ["acme", "other"];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Expected {
    Queued,
    Running { epoch: u64 },
    Finished,
}

#[derive(Debug)]
struct Job {
    tenant: &'static str,
    expected: Expected,
    reserved_gpu_ms: u64,
    runs: u32,
    cancelled: bool,
}

/// A lease as a worker remembers it: perhaps long out of date.
#[derive(Debug, Clone)]
struct Held {
    lease: Lease,
    worker: &'static str,
    expires_ms: u64,
}

struct Simulation {
    fixture: Fixture,
    random: StdRng,
    jobs: BTreeMap<JobId, Job>,
    held: Vec<Held>,
    settled_gpu_ms: u64,
    admissions: u64,
    now_ms: u64,
}

/// Polls a call a few times and then drops it, as a server does with a request whose client hung up.
async fn hang_up_after<F: Future>(polls: u32, call: F) -> Option<F::Output> {
    let mut call = pin!(call);
    let mut left = polls;
    std::future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        call.as_mut().poll(context).map(Some)
    })
    .await
}

impl Simulation {
    async fn new(seed: u64) -> Self {
        Self {
            fixture: Fixture::new().await,
            random: StdRng::seed_from_u64(seed),
            jobs: BTreeMap::new(),
            held: Vec::new(),
            settled_gpu_ms: 0,
            admissions: 0,
            now_ms: 0,
        }
    }

    fn any_job(&mut self) -> Option<JobId> {
        let count = self.jobs.len();
        (count > 0).then(|| self.jobs.keys().nth(self.random.random_range(0..count)).unwrap().clone())
    }

    fn any_lease(&mut self) -> Option<Held> {
        let count = self.held.len();
        (count > 0).then(|| self.held[self.random.random_range(0..count)].clone())
    }

    fn is_current(&self, lease: &Lease) -> bool {
        self.jobs.get(&lease.job).is_some_and(|j| j.expected == Expected::Running { epoch: lease.epoch })
    }

    async fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..25 => self.admit().await,
            25..45 => self.claim().await,
            45..60 => self.heartbeat().await,
            60..73 => self.settle().await,
            73..78 => self.give_back().await,
            78..84 => self.cancel().await,
            84..88 => self.lose_a_worker().await,
            88..91 => self.crash().await,
            91..96 => self.pass_time().await,
            _ => self.delete().await,
        }
    }

    /// The client may hang up in the middle; it then asks again with the same key, and there is one job.
    async fn admit(&mut self) {
        let tenant_name = TENANTS[self.random.random_range(0..2)];
        let mut admission = admission(tenant_name, self.random.random_range(0..5000));
        self.admissions += 1;
        admission.idempotency = Some(Idempotency { key: self.admissions.to_string(), body: Digest::new([1; 32]) });
        if self.random.random_bool(0.3) {
            let polls = self.random.random_range(1..12);
            hang_up_after(polls, self.fixture.store.admit(admission.clone())).await;
        }
        let job = self.fixture.store.admit(admission).await.unwrap().job;
        let job_model = Job {
            tenant: tenant_name,
            expected: Expected::Queued,
            reserved_gpu_ms: job.reserved_gpu_ms,
            runs: 0,
            cancelled: false,
        };
        assert!(self.jobs.insert(job.id, job_model).is_none(), "a new request is a new job");
    }

    async fn claim(&mut self) {
        let name = WORKERS[self.random.random_range(0..3)];
        let claimed = self.fixture.store.claim(&worker(name), LEASE_MS).await.unwrap();
        let waiting = self.jobs.values().any(|j| j.expected == Expected::Queued);
        assert_eq!(claimed.is_some(), waiting, "a waiting job is handed out, and nothing else");
        let Some(claimed) = claimed else { return };
        let job = self.jobs.get_mut(&claimed.lease.job).unwrap();
        assert_eq!(job.expected, Expected::Queued, "only waiting jobs are handed out");
        job.runs += 1;
        assert_eq!(claimed.lease.attempt, job.runs);
        job.expected = Expected::Running { epoch: claimed.lease.epoch };
        self.held.push(Held { lease: claimed.lease, worker: name, expires_ms: self.now_ms + LEASE_MS });
    }

    async fn heartbeat(&mut self) {
        let Some(held) = self.any_lease() else { return };
        let permille = self.random.random_range(0..1001);
        let beat = self.fixture.store.heartbeat(&held.lease, Stage::Diffuse, permille, LEASE_MS).await;
        match beat {
            Ok(beat) => {
                assert!(self.is_current(&held.lease));
                assert_eq!(beat == Continue::Cancelled, self.jobs[&held.lease.job].cancelled);
                let expires_ms = self.now_ms + LEASE_MS;
                self.held.iter_mut().filter(|h| h.lease == held.lease).for_each(|h| h.expires_ms = expires_ms);
            }
            Err(ControlError::StaleLease { .. }) => assert!(!self.is_current(&held.lease)),
            Err(e) => panic!("{e:?}"),
        }
    }

    /// The worker may not hear the answer and settle again: the bill stays the same.
    async fn settle(&mut self) {
        let Some(held) = self.any_lease() else { return };
        let gpu_ms = self.random.random_range(0..5000);
        let outcome = if self.random.random_bool(0.7) {
            JobOutcome::Completed(video(held.lease.job.as_str(), gpu_ms))
        } else {
            failed("function_failed")
        };
        let current = self.is_current(&held.lease);
        let usage = used(gpu_ms);
        let mut unheard = false;
        if self.random.random_bool(0.3) {
            let polls = self.random.random_range(1..12);
            hang_up_after(polls, self.fixture.store.settle(&held.lease, outcome.clone(), &usage)).await;
            unheard = true;
        }
        match self.fixture.store.settle(&held.lease, outcome, &usage).await {
            Ok(()) => assert!(current, "a stale worker was believed"),
            Err(ControlError::StaleLease { .. }) => assert!(!current || unheard),
            Err(e) => panic!("{e:?}"),
        }
        if current {
            self.jobs.get_mut(&held.lease.job).unwrap().expected = Expected::Finished;
            self.settled_gpu_ms += gpu_ms;
        }
    }

    /// The device failed under the run: it is as if it had not been, or one of three.
    async fn give_back(&mut self) {
        let Some(held) = self.any_lease() else { return };
        let counts = self.random.random_bool(0.5);
        let current = self.is_current(&held.lease);
        match self.fixture.store.give_back(&held.lease, counts).await {
            Ok(given_back) => {
                assert!(current, "a stale worker was believed");
                let job = self.jobs.get_mut(&held.lease.job).unwrap();
                let refused = job.cancelled || counts && job.runs >= 3;
                assert_eq!(given_back == GivenBack::Refused, refused);
                if !refused {
                    job.expected = Expected::Queued;
                    job.runs -= u32::from(!counts);
                }
            }
            Err(ControlError::StaleLease { .. }) => assert!(!current),
            Err(e) => panic!("{e:?}"),
        }
    }

    async fn cancel(&mut self) {
        let Some(id) = self.any_job() else { return };
        let job = self.jobs.get_mut(&id).unwrap();
        self.fixture.store.cancel(&tenant(job.tenant), &id).await.unwrap();
        match job.expected {
            Expected::Queued => job.expected = Expected::Finished,
            Expected::Running { .. } => job.cancelled = true,
            Expected::Finished => {}
        }
    }

    async fn lose_a_worker(&mut self) {
        let name = WORKERS[self.random.random_range(0..3)];
        let recovered = self.fixture.store.recover(Some(&worker(name))).await.unwrap();
        let now_ms = self.now_ms;
        self.take_back(recovered, |held| held.worker == name || held.expires_ms <= now_ms);
    }

    async fn crash(&mut self) {
        self.fixture.crash_and_reopen().await;
        self.lose_a_worker().await;
    }

    async fn pass_time(&mut self) {
        let by_ms = self.random.random_range(0..LEASE_MS);
        self.fixture.clock.advance_ms(by_ms);
        self.now_ms += by_ms;
        let recovered = self.fixture.store.recover(None).await.unwrap();
        let now_ms = self.now_ms;
        self.take_back(recovered, |held| held.expires_ms <= now_ms);
    }

    fn take_back(&mut self, recovered: Recovered, lost: impl Fn(&Held) -> bool) {
        let mut expected = Recovered::default();
        for held in self.held.iter().filter(|h| lost(h) && self.is_current(&h.lease)) {
            let job = &self.jobs[&held.lease.job];
            let list = if job.cancelled || job.runs >= 3 { &mut expected.failed } else { &mut expected.requeued };
            list.push(held.lease.job.clone());
        }
        let sorted = |mut r: Recovered| {
            r.requeued.sort();
            r.failed.sort();
            r
        };
        let (recovered, expected) = (sorted(recovered), sorted(expected));
        assert_eq!(recovered, expected);
        recovered.requeued.iter().for_each(|id| self.jobs.get_mut(id).unwrap().expected = Expected::Queued);
        recovered.failed.iter().for_each(|id| self.jobs.get_mut(id).unwrap().expected = Expected::Finished);
    }

    async fn delete(&mut self) {
        let Some(id) = self.any_job() else { return };
        let job = &self.jobs[&id];
        match self.fixture.store.delete(&tenant(job.tenant), &id).await {
            Ok(_) => {
                assert_eq!(job.expected, Expected::Finished);
                self.jobs.remove(&id);
            }
            Err(ControlError::NotFinished(_)) => assert_ne!(job.expected, Expected::Finished),
            Err(e) => panic!("{e:?}"),
        }
    }

    /// No job lost, no reservation lost or left over, the ledger exactly what was settled.
    async fn check(&self) {
        for (id, job) in &self.jobs {
            let stored = self.fixture.store.get(&tenant(job.tenant), id).await.unwrap().expect("no job is lost");
            match (&stored.state, job.expected) {
                (JobState::Queued, Expected::Queued) | (JobState::Running, Expected::Running { .. }) => {}
                (JobState::Completed(_), Expected::Finished) => {}
                (JobState::Failed(f), Expected::Finished) => {
                    assert!(f.code != CODE_WORKER_LOST || job.runs == 3);
                    assert!(f.code != CODE_CANCELLED || stored.cancel_requested);
                }
                (state, expected) => panic!("{id}: {state:?} instead of {expected:?}"),
            }
        }
        let stats = self.fixture.store.queue_stats().await.unwrap();
        let unfinished = self.jobs.values().filter(|j| j.expected != Expected::Finished);
        assert_eq!(stats.reserved_gpu_ms, unfinished.map(|j| j.reserved_gpu_ms).sum::<u64>());
        assert_eq!(stats.recorded_gpu_ms, self.settled_gpu_ms);
    }

    /// Runs what is left: everything ends, and nothing stays reserved.
    async fn drain(&mut self) {
        for name in WORKERS {
            let recovered = self.fixture.store.recover(Some(&worker(name))).await.unwrap();
            let now_ms = self.now_ms;
            self.take_back(recovered, |held| held.worker == name || held.expires_ms <= now_ms);
        }
        while let Some(claimed) = self.fixture.claim().await {
            self.fixture.store.settle(&claimed.lease, failed("internal"), &used(1)).await.unwrap();
            self.jobs.get_mut(&claimed.lease.job).unwrap().expected = Expected::Finished;
            self.settled_gpu_ms += 1;
        }
        self.check().await;
        assert_eq!(self.fixture.store.queue_stats().await.unwrap().reserved_gpu_ms, 0);
    }
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "captured unless the test fails; then the last line names the seed")]
async fn whatever_happens_no_job_is_lost_and_nothing_is_billed_twice() {
    let seeds = std::env::var("ZOETROPE_SIMULATION_SEEDS").map_or(12, |n| n.parse().expect("a number of seeds"));
    for seed in 0..seeds {
        println!("seed {seed}");
        let mut simulation = Simulation::new(seed).await;
        for operation in 0..OPERATIONS {
            simulation.step().await;
            if operation % 10 == 0 {
                simulation.check().await;
            }
        }
        simulation.drain().await;
    }
}
