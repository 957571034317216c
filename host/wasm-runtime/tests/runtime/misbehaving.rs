//! Components that misbehave are stopped within their limit, named and billed, and the runtime serves on.

use crate::support::{FakeEngine, Host, SIZE, blamed, context, request, video};
use guest_bundle::misbehaving::{DIRECTOR, FRAME_EFFECT, HOOK, SIMPLE_EFFECT};
use pipeline::{ApplyEffects, Direct, DirectorInput, Plan, StageError};
use std::time::{Duration, Instant};
use wasm_runtime::Limits;

/// Enough for a busy machine to hand out 256 MiB of memory: the hog must reach its own limit first.
const CPU_MS_MAX: u64 = 1000;
/// The epoch after the limit, the time to unwind, and how late a busy machine may wake the epoch's thread.
const SLACK_MS: u64 = 100;

/// Tight CPU limits; the clock's limit has room for a busy machine.
fn strict() -> Limits {
    Limits {
        plan_cpu_ms_max: CPU_MS_MAX,
        effect_cpu_ms_max: CPU_MS_MAX,
        director_cpu_ms_max: CPU_MS_MAX,
        wall_per_cpu_max: 100,
        ..Limits::default()
    }
}

#[tokio::test]
async fn each_bad_hook_is_stopped_with_the_reason_and_the_runtime_serves_on() {
    let host = Host::with(strict());
    let cases = [
        ("spin-forever", "ran longer than 1000 ms of CPU"),
        ("eat-memory", "asked for more than 256 MiB of memory"),
        ("recurse", "used more than 512 KiB of stack; look for recursion without an end"),
        ("trap", "a deliberate panic"),
        ("exit", "called exit instead of returning"),
        ("huge-log", "handed over more than 1 MiB in one call"),
        ("endless-prompt", "handed over more than 1 MiB in one call"),
        ("huge-prompt", "returned an impossible request: prompt: 100000 bytes long; at most 8192 are taken"),
        ("no-steps", "returned an impossible request: steps: 0 is out of range"),
        ("odd-size", "returned an impossible request: size: 13x7 is not possible"),
        ("unknown-model", "returned an impossible request: model: there is no such model"),
        ("say-internal", "internal error: the host is broken, trust me"),
        ("say-invalid", "say please"),
    ];
    for (behaviour, expected) in cases {
        let cx = context();
        let outcome = host.runtime.plan(&cx, &host.bad(HOOK, behaviour), request("a star")).await;
        let message = blamed(outcome);
        assert!(message.contains(expected), "{behaviour}: {message}");
        let billed_ms = cx.meter.snapshot().plan_cpu_ms;
        assert!((1..=CPU_MS_MAX + SLACK_MS).contains(&billed_ms), "{behaviour}: billed {billed_ms} ms");
        host.serves_on().await;
    }
}

#[tokio::test]
async fn a_spinning_hook_is_billed_for_what_it_used_and_no_more() {
    let host = Host::with(strict());
    let cx = context();
    blamed(host.runtime.plan(&cx, &host.bad(HOOK, "spin-forever"), request("a star")).await);
    let billed_ms = cx.meter.snapshot().plan_cpu_ms;
    assert!((CPU_MS_MAX..=CPU_MS_MAX + SLACK_MS).contains(&billed_ms), "billed {billed_ms} ms");
}

#[tokio::test]
async fn a_hook_that_traps_after_some_work_pays_for_the_work() {
    let host = Host::with(Limits::default());
    let cx = context();
    let message = blamed(host.runtime.plan(&cx, &host.bad(HOOK, "trap-late"), request("a star")).await);
    assert!(message.contains("a panic after some work"), "{message}");
    assert!(cx.meter.snapshot().plan_cpu_ms > 20, "{:?}", cx.meter.snapshot());
}

#[tokio::test]
async fn a_sleeping_hook_is_ended_by_the_clock_and_hardly_billed() {
    let host = Host::with(Limits { plan_cpu_ms_max: 100, wall_per_cpu_max: 3, ..Limits::default() });
    let (cx, start) = (context(), Instant::now());
    let message = blamed(host.runtime.plan(&cx, &host.bad(HOOK, "sleep"), request("a star")).await);
    assert_eq!(message, "took longer than 300 ms by the clock; do not sleep or wait");
    assert!(start.elapsed() < Duration::from_secs(30), "it slept on");
    assert!(cx.meter.snapshot().plan_cpu_ms <= 60, "{:?}", cx.meter.snapshot());
    host.serves_on().await;
}

#[tokio::test]
async fn a_hook_sees_no_files_and_no_environment() {
    let host = Host::new();
    let seen = async |behaviour| {
        host.runtime.plan(&context(), &host.bad(HOOK, behaviour), request("a star")).await.unwrap().prompt
    };
    assert_eq!(seen("read-files").await, "false");
    assert_eq!(seen("read-environment").await, "0 variables");
}

#[tokio::test]
async fn a_hook_that_says_cancelled_cancels() {
    let host = Host::new();
    let outcome = host.runtime.plan(&context(), &host.bad(HOOK, "say-cancelled"), request("a star")).await;
    assert_eq!(outcome.unwrap_err(), StageError::Cancelled);
}

#[tokio::test]
async fn memory_of_one_instance_is_never_seen_by_the_next() {
    // One place: every instance gets the memory that the one before it had.
    let host = Host::with(Limits { calls_max: 1, ..Limits::default() });
    for _ in 0..5 {
        let leave = host.runtime.plan(&context(), &host.bad(HOOK, "leave-canary"), request("a star")).await.unwrap();
        assert_eq!(leave.prompt, "33554432 canaries", "the search itself does not work");
        let seek = host.runtime.plan(&context(), &host.bad(HOOK, "seek-canary"), request("a star")).await.unwrap();
        assert_eq!(seek.prompt, "0 canaries");
    }
}

#[tokio::test]
async fn simple_effects_that_return_the_wrong_number_of_bytes_are_told_the_right_one() {
    let host = Host::new();
    let cases = [
        ("too-few-bytes", "returned 6144 bytes for frame 0; a frame of 64x64 has 12288"),
        ("too-many-bytes", "returned 12289 bytes for frame 0; a frame of 64x64 has 12288"),
        ("no-bytes", "returned 0 bytes for frame 0; a frame of 64x64 has 12288"),
        ("far-too-many-bytes", "handed over more than 2 MiB in one call"),
        ("trap-on-second", "a deliberate panic on frame 1"),
    ];
    for (behaviour, expected) in cases {
        let cx = context();
        let outcome = host.runtime.apply_effect(&cx, &host.bad(SIMPLE_EFFECT, behaviour), video(SIZE, 3, 1)).await;
        let message = blamed(outcome);
        assert!(message.contains(expected), "{behaviour}: {message}");
        assert!(cx.meter.snapshot().effects_cpu_ms >= 1);
        host.serves_on().await;
    }
}

#[tokio::test]
async fn frame_effects_that_leave_their_bounds_are_told_which() {
    let host = Host::with(strict());
    let cases = [
        ("drop-frames", "left 1 frames; 3 came in, and as many must go"),
        ("double-frames", "left 6 frames; 3 came in, and as many must go"),
        ("hoard-handles", "handles: too many are open; drop some that you no longer need"),
        ("hoard-frames", "frames: 4294967295 pictures of 64x64 need 52776558120960 bytes"),
        ("read-outside", "index: there is no picture 3; the list has 3"),
        ("read-far-outside", "rows: 4294967295 to 8589934590 are outside of a picture with 64 rows"),
        ("write-outside", "rows: 64 to 65 are outside of a picture with 64 rows"),
        ("write-half-row", "pixels: 4 bytes are not whole rows of 192 bytes"),
        ("impossible-list", "size: 13x7 is not possible"),
        ("spin-after-writing", "ran longer than 1000 ms of CPU"),
    ];
    for (behaviour, expected) in cases {
        let cx = context();
        let outcome = host.runtime.apply_effect(&cx, &host.bad(FRAME_EFFECT, behaviour), video(SIZE, 3, 1)).await;
        let message = blamed(outcome);
        assert!(message.contains(expected), "{behaviour}: {message}");
        assert!((1..=CPU_MS_MAX + SLACK_MS).contains(&cx.meter.snapshot().effects_cpu_ms));
        host.serves_on().await;
    }
}

fn any_input() -> DirectorInput {
    DirectorInput { request: request("a star"), input: String::new(), given: Vec::new() }
}

#[tokio::test]
async fn directors_that_ask_for_the_impossible_are_told_what_is_possible() {
    let host = Host::with(strict());
    let cases = [
        ("return-nothing", "returned a video without frames"),
        ("ask-for-millions", "frame_count: 4294967295 is out of range: between 1 and 7200 frames"),
        ("ask-at-no-rate", "fps: 0 is out of range"),
        ("give-outside", "given: there is no key frame 10000; this request has 5"),
        ("give-missing-picture", "index: there is no picture 7; the list has 1"),
        ("say-unavailable", "unavailable: try again"),
        ("spin-with-budget", "ran longer than 1000 ms of CPU"),
    ];
    for (behaviour, expected) in cases {
        let message = blamed(host.runtime.direct(&context(), &host.bad(DIRECTOR, behaviour), any_input()).await);
        assert!(message.contains(expected), "{behaviour}: {message}");
        host.serves_on().await;
    }
}

#[tokio::test]
async fn a_director_cannot_spend_more_than_the_jobs_budget() {
    let host = Host::new();
    let mut cx = context();
    cx.gpu_budget_ms = 100;
    let error = host.runtime.direct(&cx, &host.bad(DIRECTOR, "spend-all"), any_input()).await.unwrap_err();
    assert_eq!(error, StageError::BudgetExhausted { budget_ms: 100 });
    // The call that began within the budget may end beyond it; none begins after.
    assert_eq!(cx.meter.snapshot().gpu_ms(), 120);
}

#[tokio::test]
async fn a_director_that_ignores_a_spent_budget_is_stopped_by_its_cpu_limit() {
    let host = Host::with(strict());
    let mut cx = context();
    cx.gpu_budget_ms = 100;
    let message = blamed(host.runtime.direct(&cx, &host.bad(DIRECTOR, "ignore-errors"), any_input()).await);
    assert_eq!(message, "ran longer than 1000 ms of CPU");
    assert_eq!(cx.meter.snapshot().gpu_ms(), 120);
}

#[tokio::test]
async fn time_in_the_engine_is_not_billed_as_the_components() {
    let host = Host::with_engine(FakeEngine { burn: Duration::from_millis(400), ..FakeEngine::default() });
    let director = host.function("story", guest_bundle::STORYBOARD, &[]);
    let cx = context();
    host.runtime.direct(&cx, &director, any_input()).await.unwrap();
    assert!(cx.meter.snapshot().effects_cpu_ms < 200, "{:?}", cx.meter.snapshot());
}

#[tokio::test]
async fn an_engine_that_does_not_answer_in_time_is_not_the_components_fault() {
    let host = Host::build(
        Limits { engine_call_ms_max: 50, ..Limits::default() },
        std::path::Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/aot")),
        FakeEngine { step: Duration::from_secs(3600), ..FakeEngine::default() },
    );
    let director = host.function("story", guest_bundle::STORYBOARD, &[]);
    let error = host.runtime.direct(&context(), &director, any_input()).await.unwrap_err();
    assert_eq!(error.code(), "unavailable", "{error}");
}

#[tokio::test]
async fn more_calls_than_places_wait_for_their_turn() {
    let host = Host::with(Limits { calls_max: 2, ..Limits::default() });
    let calls: Vec<_> = (0..12)
        .map(|_| {
            let (runtime, hook) = (host.runtime.clone(), host.function("style", guest_bundle::PROMPT_STYLE, &[]));
            tokio::spawn(async move { runtime.plan(&context(), &hook, request("a star")).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
}
