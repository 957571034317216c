//! A cancelled job ends, whatever its component is doing.

use crate::support::{FakeEngine, Host, context, request};
use guest_bundle::misbehaving::{DIRECTOR, HOOK};
use pipeline::{Direct, DirectorInput, Plan, StageContext, StageError};
use std::future::Future;
use std::time::{Duration, Instant};

/// Cancels once `begun` holds for 50 ms; returns the time from then to the end of the call.
async fn cancel_once<T: std::fmt::Debug>(
    cx: &StageContext,
    begun: impl Fn() -> bool + Send + 'static,
    call: impl Future<Output = Result<T, StageError>>,
) -> Duration {
    let cancel = cx.cancel.clone();
    let canceller = std::thread::spawn(move || {
        while !begun() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(50));
        cancel.cancel();
        Instant::now()
    });
    assert_eq!(call.await.unwrap_err(), StageError::Cancelled);
    let ended = Instant::now();
    ended.saturating_duration_since(canceller.join().unwrap())
}

/// The best of some attempts: what the mechanism takes, without what else a busy machine is doing.
async fn best_of_five(attempt: impl AsyncFn() -> Duration) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        best = best.min(attempt().await);
    }
    best
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spinning_component_is_cancelled_within_two_epochs() {
    let host = Host::new();
    host.runtime.validate(HOOK).await.unwrap();
    let best = best_of_five(async || {
        let cx = context();
        let hook = host.bad(HOOK, "spin-forever");
        cancel_once(&cx, || true, host.runtime.plan(&cx, &hook, request("a star"))).await
    });
    let best = best.await;
    // 20 ms by design; the rest is for the scheduler of a busy machine.
    assert!(best <= Duration::from_millis(200), "cancelled after {best:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sleeping_component_is_cancelled_too() {
    let host = Host::new();
    host.runtime.validate(HOOK).await.unwrap();
    let best = best_of_five(async || {
        let cx = context();
        let hook = host.bad(HOOK, "sleep");
        cancel_once(&cx, || true, host.runtime.plan(&cx, &hook, request("a star"))).await
    });
    let best = best.await;
    assert!(best <= Duration::from_millis(200), "cancelled after {best:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_director_in_the_engine_ends_with_the_engines_step_and_its_bill() {
    let host = Host::with_engine(FakeEngine { step: Duration::from_millis(100), ..FakeEngine::default() });
    let cx = context();
    let director = host.bad(DIRECTOR, "ignore-errors");
    let input = DirectorInput { request: request("a star"), input: String::new(), given: Vec::new() };
    let engine = host.engine.clone();
    let begun = move || !engine.diffused.lock().unwrap().is_empty();
    cancel_once(&cx, begun, host.runtime.direct(&cx, &director, input)).await;
    let gpu_ms = cx.meter.snapshot().gpu_ms();
    // Steps of 10 ms each were metered as they began, and none after the cancellation's.
    assert!(gpu_ms >= 10 && gpu_ms.is_multiple_of(10), "{gpu_ms}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(cx.meter.snapshot().gpu_ms(), gpu_ms, "the engine went on after the job had ended");
}

#[tokio::test]
async fn a_job_that_is_cancelled_before_its_call_never_runs_it() {
    let host = Host::new();
    let cx = context();
    cx.cancel.cancel();
    let error = host.runtime.plan(&cx, &host.bad(HOOK, "spin-forever"), request("a star")).await.unwrap_err();
    assert_eq!((error, cx.meter.snapshot().plan_cpu_ms), (StageError::Cancelled, 0));
}
