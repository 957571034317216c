//! A simulated device: each step moves a manual clock by the step's cost.

use super::scheduler::Scheduler;
use super::session::task;
use super::*;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::executor::block_on;
use pipeline::{CancelToken, Lane, NoProgress, Progress, Stage, UsageMeter};
use proptest::prelude::*;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;

#[derive(Default)]
struct ManualTicks(AtomicU64);

impl Ticks for ManualTicks {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// `steps` steps of `step_ns` simulated time; returns the simulated time of its end.
struct Simulated {
    ticks: Arc<ManualTicks>,
    steps: u32,
    done: u32,
    step_ns: u64,
    on_step: Box<dyn FnMut(u32) + Send>,
}

impl Simulated {
    fn new(ticks: &Arc<ManualTicks>, steps: u32, step_ns: u64) -> Self {
        Self { ticks: Arc::clone(ticks), steps, done: 0, step_ns, on_step: Box::new(|_| ()) }
    }
}

impl Session for Simulated {
    type Output = u64;
    fn steps(&self) -> u32 {
        self.steps
    }
    fn cost_class(&self) -> u64 {
        self.step_ns
    }
    fn step(&mut self) -> StageResult<Option<u64>> {
        self.ticks.0.fetch_add(self.step_ns, Ordering::SeqCst);
        self.done += 1;
        (self.on_step)(self.done);
        Ok((self.done == self.steps).then(|| self.ticks.now_ns()))
    }
}

type Outcome = oneshot::Receiver<StageResult<u64>>;

/// A scheduler without its thread, so that every interleaving is the scheduler's own choice.
struct Bench {
    ticks: Arc<ManualTicks>,
    scheduler: Scheduler,
}

impl Bench {
    fn new() -> Self {
        let ticks = Arc::new(ManualTicks::default());
        Self { scheduler: Scheduler::new(Arc::clone(&ticks) as Arc<dyn Ticks>), ticks }
    }

    fn admit(&mut self, cx: &StageContext, steps: u32, step_ns: u64) -> Outcome {
        let session = Simulated::new(&self.ticks, steps, step_ns);
        let (task, outcome) = task(cx.clone(), Bill::DIFFUSE, session, self.ticks.now_ns());
        self.scheduler.admit(task);
        outcome
    }

    fn turn(&mut self) {
        self.scheduler.run_one(|step| step()).into_iter().for_each(session::Finished::answer);
    }

    fn run_all(&mut self) {
        while !self.scheduler.is_empty() {
            self.turn();
        }
    }
}

fn lane(n: u64) -> StageContext {
    StageContext::unmetered(Lane(n))
}

fn diffuse_ms(cx: &StageContext) -> u64 {
    cx.meter.snapshot().diffuse_gpu_ms
}

const MS: u64 = 1_000_000;

#[test]
fn a_lane_with_a_hundred_sessions_does_not_hold_up_nine_light_lanes() {
    let mut bench = Bench::new();
    let heavy = lane(0);
    let _outcomes: Vec<_> = (0..100).map(|_| bench.admit(&heavy, 20, 100 * MS)).collect();
    (0..50).for_each(|_| bench.turn());
    let started_ns = bench.ticks.now_ns();
    let light: Vec<_> = (1..=9).map(|n| bench.admit(&lane(n), 20, 100 * MS)).collect();
    bench.run_all();
    for outcome in light {
        let end_ns = outcome.now_or_never().unwrap().unwrap().unwrap();
        // Ten equal lanes: 20 steps of 100 ms take ten times their 2 s, plus one round for joining; 100 sessions alone
        // would have taken 200 s.
        let took_ms = (end_ns - started_ns) / MS;
        assert!(took_ms <= 21_000, "took {took_ms} ms");
    }
}

#[test]
fn lanes_get_equal_time_whatever_the_size_of_their_steps() {
    let mut bench = Bench::new();
    let lanes: Vec<_> = (0..10).map(lane).collect();
    let _outcomes: Vec<_> =
        lanes.iter().enumerate().map(|(i, cx)| bench.admit(cx, 10_000, (10 + 37 * i as u64) * MS)).collect();
    while bench.ticks.now_ns() < 300_000 * MS {
        bench.turn();
    }
    let shares: Vec<f64> = lanes.iter().map(|cx| diffuse_ms(cx) as f64).collect();
    let (sum, squares) = (shares.iter().sum::<f64>(), shares.iter().map(|s| s * s).sum::<f64>());
    let jain = sum * sum / (shares.len() as f64 * squares);
    assert!(jain > 0.999, "Jain's index {jain}, shares {shares:?}");
}

#[test]
fn sessions_of_one_lane_finish_in_the_order_of_their_arrival() {
    let mut bench = Bench::new();
    let cx = lane(0);
    let outcomes: Vec<_> = (0..3).map(|_| bench.admit(&cx, 2, 5 * MS)).collect();
    bench.run_all();
    let ends: Vec<_> = outcomes.into_iter().map(|o| o.now_or_never().unwrap().unwrap().unwrap() / MS).collect();
    assert_eq!(ends, [10, 20, 30]);
}

#[test]
fn cancel_takes_effect_before_the_next_step_and_bills_only_steps_run() {
    let mut bench = Bench::new();
    let cx = lane(0);
    let outcome = bench.admit(&cx, 10, 7 * MS);
    (0..3).for_each(|_| bench.turn());
    cx.cancel.cancel();
    bench.run_all();
    assert_eq!(outcome.now_or_never().unwrap().unwrap(), Err(StageError::Cancelled));
    assert_eq!((diffuse_ms(&cx), bench.ticks.now_ns()), (21, 21 * MS));
}

#[test]
fn a_cancelled_session_leaves_the_queue_without_waiting_for_its_turn() {
    let mut bench = Bench::new();
    let _running = bench.admit(&lane(0), 100, MS);
    let waiting = StageContext { cancel: CancelToken::default(), ..lane(0) };
    let outcome = bench.admit(&waiting, 1, MS);
    waiting.cancel.cancel();
    bench.turn();
    assert_eq!(outcome.now_or_never().unwrap().unwrap(), Err(StageError::Cancelled));
    assert_eq!(bench.scheduler.len(), 1);
}

#[test]
fn a_spent_budget_stops_the_session_and_what_was_used_stays_billed() {
    let mut bench = Bench::new();
    let cx = StageContext { gpu_budget_ms: 25, ..lane(0) };
    let outcome = bench.admit(&cx, 10, 10 * MS);
    bench.run_all();
    assert_eq!(outcome.now_or_never().unwrap().unwrap(), Err(StageError::BudgetExhausted { budget_ms: 25 }));
    assert_eq!(diffuse_ms(&cx), 30, "the step that crosses the line is paid");
}

#[test]
fn a_dropped_future_ends_its_session_before_the_next_step() {
    let mut bench = Bench::new();
    let cx = lane(0);
    let outcome = bench.admit(&cx, 10, 4 * MS);
    bench.turn();
    drop(outcome);
    bench.run_all();
    assert_eq!(diffuse_ms(&cx), 4);
}

proptest! {
    #[test]
    fn every_busy_millisecond_is_billed_exactly_once(
        sessions in prop::collection::vec((0u64..6, 1u32..12, 1u64..9_000_000, 0u64..60, any::<bool>()), 1..30)
    ) {
        let mut bench = Bench::new();
        let mut jobs = Vec::new();
        for (lane_id, steps, step_ns, budget_ms, cancelled) in sessions {
            let cx = StageContext {
                gpu_budget_ms: if budget_ms < 50 { budget_ms } else { u64::MAX },
                ..StageContext::unmetered(Lane(lane_id))
            };
            jobs.push((bench.admit(&cx, steps, step_ns), cx.clone()));
            bench.turn();
            if cancelled {
                cx.cancel.cancel();
            }
        }
        bench.run_all();
        let billed: u64 = jobs.iter().map(|(_, cx)| diffuse_ms(cx)).sum();
        let stats = bench.scheduler.stats();
        prop_assert_eq!(billed, bench.ticks.now_ns() / MS, "the device was busy with steps and nothing else");
        prop_assert_eq!((stats.busy_ms, stats.billed_ms), (billed, billed));
        prop_assert!(jobs.into_iter().all(|(outcome, _)| outcome.now_or_never().is_some()), "every caller is told");
    }
}

fn queue(sessions_max: usize) -> (DeviceQueue, Arc<ManualTicks>) {
    let ticks = Arc::new(ManualTicks::default());
    let limits = QueueLimits { sessions_max, threads: 1 };
    (DeviceQueue::with_ticks(limits, Arc::clone(&ticks) as Arc<dyn Ticks>).unwrap(), ticks)
}

/// A session whose first step waits until the sender is used or dropped.
fn gated(ticks: &Arc<ManualTicks>, steps: u32) -> (Simulated, mpsc::Sender<()>) {
    let (open, gate) = mpsc::channel::<()>();
    let mut session = Simulated::new(ticks, steps, MS);
    session.on_step = Box::new(move |done| {
        if done == 1 {
            let _ = gate.recv();
        }
    });
    (session, open)
}

#[test]
fn a_full_queue_refuses_at_once_and_serves_again_afterwards() {
    let (queue, ticks) = queue(2);
    let (first, open) = gated(&ticks, 1);
    let cx = lane(0);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| block_on(queue.run(&cx, Bill::DIFFUSE, first)));
        while queue.shared.lock().held < 1 {
            std::thread::yield_now();
        }
        let waiting = scope.spawn(|| block_on(queue.run(&cx, Bill::DIFFUSE, Simulated::new(&ticks, 1, MS))));
        while queue.shared.lock().held < 2 {
            std::thread::yield_now();
        }
        let refused = block_on(queue.run(&cx, Bill::DIFFUSE, Simulated::new(&ticks, 1, MS)));
        assert!(matches!(refused, Err(StageError::Unavailable(_))), "{refused:?}");
        drop(open);
        assert!(running.join().unwrap().is_ok() && waiting.join().unwrap().is_ok());
    });
    assert!(block_on(queue.run(&cx, Bill::DIFFUSE, Simulated::new(&ticks, 1, MS))).is_ok());
    let stats = queue.stats();
    assert_eq!((stats.steps, stats.busy_ms, stats.billed_ms, stats.waiting + stats.active), (3, 3, 3, 0));
}

#[test]
fn a_panicking_step_fails_its_own_session_is_billed_and_the_thread_lives_on() {
    let (queue, ticks) = queue(8);
    let cx = lane(0);
    let mut broken = Simulated::new(&ticks, 3, 5 * MS);
    broken.on_step = Box::new(|done| assert!(done < 2, "broken on purpose"));
    let outcome = block_on(queue.run(&cx, Bill::DIFFUSE, broken));
    assert!(matches!(&outcome, Err(StageError::Internal(m)) if m.contains("broken on purpose")), "{outcome:?}");
    assert_eq!(diffuse_ms(&cx), 10);
    assert!(block_on(queue.run(&cx, Bill::INTERPOLATE, Simulated::new(&ticks, 2, MS))).is_ok());
    assert_eq!(cx.meter.snapshot().interpolate_gpu_ms, 2);
}

#[test]
fn dropping_the_queue_fails_what_waits_and_ends_the_thread() {
    let (queue, ticks) = queue(8);
    let (first, open) = gated(&ticks, 100);
    let cx = lane(0);
    let mut running = Box::pin(queue.run(&cx, Bill::DIFFUSE, first));
    let (tasked, waiting) = task(lane(1), Bill::DIFFUSE, Simulated::new(&ticks, 1, MS), 0);
    assert!((&mut running).now_or_never().is_none());
    drop(running);
    queue.submit(tasked).unwrap();
    drop(open);
    drop(queue);
    // Either the thread had time for its single step, or it was told that the engine goes down.
    let outcome = waiting.now_or_never().unwrap().unwrap();
    assert!(matches!(outcome, Ok(_) | Err(StageError::Unavailable(_))), "{outcome:?}");
}

#[test]
fn progress_counts_every_step_up_to_the_total() {
    #[derive(Default)]
    struct Heard(AtomicU32);
    impl Progress for Heard {
        fn report(&self, stage: Stage, done: u32, total: u32) {
            assert_eq!((stage, total), (Stage::Diffuse, 5));
            assert_eq!(self.0.swap(done, Ordering::SeqCst), done - 1);
        }
    }
    let (queue, ticks) = queue(1);
    let heard = Arc::new(Heard::default());
    let cx = StageContext { progress: Arc::clone(&heard) as Arc<dyn Progress>, ..lane(0) };
    block_on(queue.run(&cx, Bill::DIFFUSE, Simulated::new(&ticks, 5, MS))).unwrap();
    assert_eq!(heard.0.load(Ordering::SeqCst), 5);
}

#[test]
fn waiting_and_active_sessions_are_told_apart() {
    let (queue, ticks) = queue(8);
    let (first, open) = gated(&ticks, 3);
    let cx = StageContext { meter: Arc::new(UsageMeter::default()), progress: Arc::new(NoProgress), ..lane(0) };
    std::thread::scope(|scope| {
        let running = scope.spawn(|| block_on(queue.run(&cx, Bill::DIFFUSE, first)));
        while ticks.now_ns() < MS {
            std::thread::yield_now();
        }
        let (tasked, outcome) = task(lane(1), Bill::DIFFUSE, Simulated::new(&ticks, 1, MS), ticks.now_ns());
        queue.submit(tasked).unwrap();
        ticks.0.fetch_add(250 * MS, Ordering::SeqCst);
        let stats = queue.stats();
        assert!(stats.waiting >= 1 && stats.oldest_wait_ms >= 250, "{stats:?}");
        drop(open);
        running.join().unwrap().unwrap();
        block_on(outcome).unwrap().unwrap();
    });
}
