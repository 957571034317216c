//! A simulated device: each step moves a manual clock by the step's cost, and fails when it is told to.

use super::scheduler::Scheduler;
use super::session::task;
use super::*;
use crate::devices::{DeviceFault, DeviceId, Timed};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::executor::block_on;
use pipeline::{CancelToken, Lane, NoProgress, Progress, Stage, UsageMeter};
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;

#[derive(Default)]
struct ManualTicks(AtomicU64);

impl Ticks for ManualTicks {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Its time is the manual clock's.
#[derive(Default)]
struct SimulatedDevice {
    ticks: ManualTicks,
    /// The next step ends with the device broken.
    breaks: AtomicBool,
    resets: AtomicU32,
    cannot_be_reset: AtomicBool,
}

impl SimulatedDevice {
    fn now_ns(&self) -> u64 {
        self.ticks.now_ns()
    }

    fn pass_ns(&self, ns: u64) {
        self.ticks.0.fetch_add(ns, Ordering::SeqCst);
    }
}

impl Ticks for SimulatedDevice {
    fn now_ns(&self) -> u64 {
        self.ticks.now_ns()
    }
}

impl Device for SimulatedDevice {
    fn id(&self) -> DeviceId {
        DeviceId::Cuda(0)
    }
    fn name(&self) -> &str {
        "simulated"
    }
    fn timed(&self, step: &mut (dyn FnMut() + Send)) -> Timed {
        let started_ns = self.now_ns();
        step();
        let fault = self.breaks.swap(false, Ordering::SeqCst).then(|| DeviceFault("broken on purpose".to_owned()));
        Timed { busy_ns: self.now_ns() - started_ns, fault }
    }
    fn scope(&self, work: &mut (dyn FnMut() + Send)) {
        work();
    }
    fn free_bytes(&self) -> Option<u64> {
        None
    }
    fn peak_bytes(&self) -> usize {
        0
    }
    fn scrub(&self) -> Result<(), DeviceFault> {
        Ok(())
    }
    fn trim(&self) {}
    fn reset(&self) -> Result<(), DeviceFault> {
        self.resets.fetch_add(1, Ordering::SeqCst);
        match self.cannot_be_reset.load(Ordering::SeqCst) {
            true => Err(DeviceFault("it is gone".to_owned())),
            false => Ok(()),
        }
    }
}

/// `steps` steps of `step_ns` simulated time; returns the simulated time of its end.
struct Simulated {
    device: Arc<SimulatedDevice>,
    steps: u32,
    done: u32,
    step_ns: u64,
    on_step: Box<dyn FnMut(u32) + Send>,
}

impl Simulated {
    fn new(device: &Arc<SimulatedDevice>, steps: u32, step_ns: u64) -> Self {
        Self { device: Arc::clone(device), steps, done: 0, step_ns, on_step: Box::new(|_| ()) }
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
        self.device.pass_ns(self.step_ns);
        self.done += 1;
        (self.on_step)(self.done);
        Ok((self.done == self.steps).then(|| self.device.now_ns()))
    }
}

type Outcome = oneshot::Receiver<StageResult<u64>>;

/// A scheduler without its thread, so that every interleaving is the scheduler's own choice.
struct Bench {
    device: Arc<SimulatedDevice>,
    scheduler: Scheduler,
}

impl Bench {
    fn new() -> Self {
        Self { scheduler: Scheduler::default(), device: Arc::default() }
    }

    fn admit(&mut self, cx: &StageContext, steps: u32, step_ns: u64) -> Outcome {
        let session = Simulated::new(&self.device, steps, step_ns);
        let (task, outcome) = task(cx.clone(), Life::default(), Bill::DIFFUSE, session, self.device.now_ns());
        self.scheduler.admit(task);
        outcome
    }

    fn turn(&mut self) {
        let Ran { mut over, fault } = self.scheduler.run_one(&*self.device);
        if fault.is_some() {
            over.extend(self.scheduler.give_up_all());
        }
        over.into_iter().for_each(Finished::answer);
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
    let started_ns = bench.device.now_ns();
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
    while bench.device.now_ns() < 300_000 * MS {
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
    assert_eq!((diffuse_ms(&cx), bench.device.now_ns()), (21, 21 * MS));
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
        prop_assert_eq!(billed, bench.device.now_ns() / MS, "the device was busy with steps and nothing else");
        prop_assert_eq!((stats.busy_ms, stats.billed_ms), (billed, billed));
        prop_assert!(jobs.into_iter().all(|(outcome, _)| outcome.now_or_never().is_some()), "every caller is told");
    }
}

fn queue(sessions_max: usize) -> (DeviceQueue, Arc<SimulatedDevice>) {
    let device = Arc::new(SimulatedDevice::default());
    (DeviceQueue::with_ticks(device.clone(), sessions_max, || (), device.clone()).unwrap(), device)
}

/// Runs a session in the life that the device is in.
fn run(queue: &DeviceQueue, cx: &StageContext, bill: Bill, session: Simulated) -> StageResult<u64> {
    block_on(queue.run(cx, queue.life(), bill, session))
}

/// A session whose first step waits until the sender is used or dropped.
fn gated(device: &Arc<SimulatedDevice>, steps: u32) -> (Simulated, mpsc::Sender<()>) {
    let (open, gate) = mpsc::channel::<()>();
    let mut session = Simulated::new(device, steps, MS);
    session.on_step = Box::new(move |done| {
        if done == 1 {
            let _ = gate.recv();
        }
    });
    (session, open)
}

#[test]
fn a_full_queue_refuses_at_once_and_serves_again_afterwards() {
    let (queue, device) = queue(2);
    let (first, open) = gated(&device, 1);
    let cx = lane(0);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&queue, &cx, Bill::DIFFUSE, first));
        while queue.shared.lock().held < 1 {
            std::thread::yield_now();
        }
        let waiting = scope.spawn(|| run(&queue, &cx, Bill::DIFFUSE, Simulated::new(&device, 1, MS)));
        while queue.shared.lock().held < 2 {
            std::thread::yield_now();
        }
        let refused = run(&queue, &cx, Bill::DIFFUSE, Simulated::new(&device, 1, MS));
        assert!(matches!(refused, Err(StageError::Unavailable(_))), "{refused:?}");
        drop(open);
        assert!(running.join().unwrap().is_ok() && waiting.join().unwrap().is_ok());
    });
    assert!(run(&queue, &cx, Bill::DIFFUSE, Simulated::new(&device, 1, MS)).is_ok());
    let stats = queue.stats();
    assert_eq!((stats.steps, stats.busy_ms, stats.billed_ms, stats.waiting + stats.active), (3, 3, 3, 0));
}

#[test]
fn a_panicking_step_fails_its_own_session_is_billed_and_the_thread_lives_on() {
    let (queue, device) = queue(8);
    let cx = lane(0);
    let mut broken = Simulated::new(&device, 3, 5 * MS);
    broken.on_step = Box::new(|done| assert!(done < 2, "broken on purpose"));
    let outcome = run(&queue, &cx, Bill::DIFFUSE, broken);
    assert!(matches!(&outcome, Err(StageError::Internal(m)) if m.contains("broken on purpose")), "{outcome:?}");
    assert_eq!(diffuse_ms(&cx), 10);
    assert!(run(&queue, &cx, Bill::INTERPOLATE, Simulated::new(&device, 2, MS)).is_ok());
    assert_eq!(cx.meter.snapshot().interpolate_gpu_ms, 2);
}

#[test]
fn dropping_the_queue_fails_what_waits_and_ends_the_thread() {
    let (queue, device) = queue(8);
    let (first, open) = gated(&device, 100);
    let cx = lane(0);
    let mut running = Box::pin(queue.run(&cx, Life::default(), Bill::DIFFUSE, first));
    let (tasked, waiting) = task(lane(1), Life::default(), Bill::DIFFUSE, Simulated::new(&device, 1, MS), 0);
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
    let (queue, device) = queue(1);
    let heard = Arc::new(Heard::default());
    let cx = StageContext { progress: Arc::clone(&heard) as Arc<dyn Progress>, ..lane(0) };
    run(&queue, &cx, Bill::DIFFUSE, Simulated::new(&device, 5, MS)).unwrap();
    assert_eq!(heard.0.load(Ordering::SeqCst), 5);
}

#[test]
fn waiting_and_active_sessions_are_told_apart() {
    let (queue, device) = queue(8);
    let (first, open) = gated(&device, 3);
    let cx = StageContext { meter: Arc::new(UsageMeter::default()), progress: Arc::new(NoProgress), ..lane(0) };
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&queue, &cx, Bill::DIFFUSE, first));
        while device.now_ns() < MS {
            std::thread::yield_now();
        }
        let (tasked, outcome) =
            task(lane(1), Life::default(), Bill::DIFFUSE, Simulated::new(&device, 1, MS), device.now_ns());
        queue.submit(tasked).unwrap();
        device.pass_ns(250 * MS);
        let stats = queue.stats();
        assert!(stats.waiting >= 1 && stats.oldest_wait_ms >= 250, "{stats:?}");
        drop(open);
        running.join().unwrap().unwrap();
        block_on(outcome).unwrap().unwrap();
    });
}

/// What a job is told whose device failed.
fn device_failed(own_step: bool) -> Result<StageResult<u64>, oneshot::Canceled> {
    Ok(Err(StageError::DeviceFailed { own_step }))
}

#[test]
fn a_fault_ends_every_session_and_nobody_pays_for_the_attempt() {
    let mut bench = Bench::new();
    let (guilty, beside) = (lane(0), lane(1));
    let earlier = bench.admit(&beside, 2, 5 * MS);
    bench.run_all();
    assert!(earlier.now_or_never().unwrap().unwrap().is_ok());
    let outcomes = [bench.admit(&guilty, 10, 3 * MS), bench.admit(&beside, 10, 3 * MS)];
    (0..4).for_each(|_| bench.turn());
    assert!(diffuse_ms(&guilty) > 0 && diffuse_ms(&beside) > 10);
    bench.device.breaks.store(true, Ordering::SeqCst);
    bench.turn();
    let told = outcomes.map(|outcome| outcome.now_or_never().unwrap());
    assert!(told.contains(&device_failed(true)) && told.contains(&device_failed(false)), "{told:?}");
    assert_eq!((diffuse_ms(&guilty), diffuse_ms(&beside)), (0, 0), "also what the job's earlier session was billed");
    let stats = bench.scheduler.stats();
    assert_eq!((stats.busy_ms, stats.billed_ms, stats.refunded_ms, stats.faults), (25, 0, 25, 1));
}

#[test]
fn an_output_that_was_made_while_the_device_broke_is_not_given_out() {
    let mut bench = Bench::new();
    let outcome = bench.admit(&lane(0), 1, MS);
    bench.device.breaks.store(true, Ordering::SeqCst);
    bench.turn();
    assert_eq!(outcome.now_or_never().unwrap(), device_failed(true));
}

#[test]
fn a_session_that_notices_the_fault_itself_is_the_one_that_failed() {
    struct Notices;
    impl Session for Notices {
        type Output = u64;
        fn steps(&self) -> u32 {
            1
        }
        fn cost_class(&self) -> u64 {
            0
        }
        fn step(&mut self) -> StageResult<Option<u64>> {
            Err(StageError::DeviceFailed { own_step: true })
        }
    }
    let mut bench = Bench::new();
    let (tasked, outcome) = task(lane(0), Life::default(), Bill::DIFFUSE, Notices, 0);
    bench.scheduler.admit(tasked);
    let beside = bench.admit(&lane(1), 5, MS);
    bench.turn();
    assert_eq!(outcome.now_or_never().unwrap(), device_failed(true));
    assert_eq!(beside.now_or_never().unwrap(), device_failed(false));
    assert_eq!(bench.scheduler.stats().faults, 1);
}

proptest! {
    #[test]
    fn bills_and_refunds_are_the_busy_time_whatever_fails(
        sessions in prop::collection::vec((0u64..6, 1u32..12, 1u64..9_000_000, 0u32..8, 1u64..5), 1..40)
    ) {
        let mut bench = Bench::new();
        let mut jobs = Vec::new();
        for (lane_id, steps, step_ns, turns, breaks) in sessions {
            let cx = lane(lane_id);
            jobs.push((bench.admit(&cx, steps, step_ns), cx));
            (0..turns).for_each(|_| bench.turn());
            // One in four breaks the device.
            bench.device.breaks.store(breaks == 1 && !bench.scheduler.is_empty(), Ordering::SeqCst);
            bench.turn();
        }
        bench.run_all();
        let stats = bench.scheduler.stats();
        prop_assert_eq!(stats.busy_ms, bench.device.now_ns() / MS, "the device was busy with steps and nothing else");
        prop_assert_eq!(stats.billed_ms + stats.refunded_ms, stats.busy_ms);
        let mut paid_ms = 0;
        for (outcome, cx) in jobs {
            paid_ms += diffuse_ms(&cx);
            if let Err(StageError::DeviceFailed { .. }) = outcome.now_or_never().unwrap().unwrap() {
                prop_assert_eq!(diffuse_ms(&cx), 0, "an attempt that a fault ended costs nothing");
            }
        }
        prop_assert_eq!(stats.billed_ms, paid_ms);
    }
}

#[test]
fn after_a_fault_the_device_is_reset_and_what_was_made_before_is_refused() {
    let device = Arc::new(SimulatedDevice::default());
    let forgotten = Arc::new(AtomicU32::new(0));
    let forget = Arc::clone(&forgotten);
    let after_reset = move || {
        forget.fetch_add(1, Ordering::SeqCst);
    };
    let queue = DeviceQueue::with_ticks(device.clone(), 8, after_reset, device.clone()).unwrap();
    let (cx, before) = (lane(0), queue.life());
    device.breaks.store(true, Ordering::SeqCst);
    let told = run(&queue, &cx, Bill::DIFFUSE, Simulated::new(&device, 3, MS));
    assert_eq!(told, Err(StageError::DeviceFailed { own_step: true }));
    assert_eq!((device.resets.load(Ordering::SeqCst), forgotten.load(Ordering::SeqCst)), (1, 1));
    assert_ne!(queue.life(), before);
    let stale = block_on(queue.run(&cx, before, Bill::DIFFUSE, Simulated::new(&device, 3, MS)));
    assert_eq!(stale, Err(StageError::DeviceFailed { own_step: false }));
    assert_eq!(queue.stats().steps, 1, "without a step");
    assert!(run(&queue, &cx, Bill::DIFFUSE, Simulated::new(&device, 3, MS)).is_ok());
    let stats = queue.stats();
    assert_eq!((stats.busy_ms, stats.billed_ms, stats.refunded_ms), (4, 3, 1));
}

#[test]
fn a_device_that_cannot_be_reset_takes_no_more_work() {
    let (queue, device) = queue(8);
    device.breaks.store(true, Ordering::SeqCst);
    device.cannot_be_reset.store(true, Ordering::SeqCst);
    assert!(run(&queue, &lane(0), Bill::DIFFUSE, Simulated::new(&device, 3, MS)).is_err());
    assert!(queue.is_out_of_order());
    let refused = run(&queue, &lane(0), Bill::DIFFUSE, Simulated::new(&device, 3, MS));
    assert!(matches!(refused, Err(StageError::Unavailable(_))), "{refused:?}");
}

#[test]
fn what_is_ahead_is_expected_from_what_was_measured() {
    let mut bench = Bench::new();
    let _first = bench.admit(&lane(0), 10, 4 * MS);
    assert_eq!(bench.scheduler.stats().expected_us, 0, "its like was never seen");
    (0..4).for_each(|_| bench.turn());
    let _second = bench.admit(&lane(1), 3, 4 * MS);
    assert_eq!(bench.scheduler.stats().expected_us, (6 + 3) * 4_000);
    assert_eq!(bench.scheduler.stats().step_times[1].counts[2], 4, "four steps of up to 5 ms");
}
