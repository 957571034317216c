//! Components that no compiler would write: the canonical ABI and the engine's edges, straight from WAT.

use crate::support::{Host, SIZE, blamed, context, video};
use pipeline::ApplyEffects;
use std::time::{Duration, Instant};
use wasm_runtime::{FunctionKind, Limits};

/// A `simple-effect` whose core module is `core`. It must have a memory `mem`, `realloc` and `apply`, which takes
/// pixels (pointer, length), width, height, index, count and fps, and returns the pointer to a result.
fn raw_effect(core: &str) -> Vec<u8> {
    let text = format!(
        r#"(component
          (type $size' (record (field "width" u32) (field "height" u32)))
          (export $size "size" (type $size'))
          (type $info' (record (field "size" $size) (field "index" u32) (field "count" u32) (field "fps" u32)))
          (export $info "frame-info" (type $info'))
          (type $error' (variant
            (case "invalid-argument" string) (case "denied" string) (case "budget-exhausted") (case "cancelled")
            (case "unavailable" string) (case "internal" string)))
          (export $error "error" (type $error'))
          (core module $m {core})
          (core instance $i (instantiate $m))
          (func (export "apply")
            (param "pixels" (list u8)) (param "info" $info) (result (result (list u8) (error $error)))
            (canon lift (core func $i "apply") (memory (core memory $i "mem")) (realloc (core func $i "realloc")))))"#
    );
    wat::parse_str(text).unwrap()
}

const APPLY: &str = r#"(func (export "apply") (param i32 i32 i32 i32 i32 i32 i32) (result i32)"#;
const REALLOC: &str = r#"(func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))"#;

fn strict() -> Limits {
    Limits { effect_cpu_ms_max: 300, wall_per_cpu_max: 100, ..Limits::default() }
}

/// Runs one hostile component and returns what it is blamed for.
async fn blame_for(host: &Host, core: &str) -> String {
    let effect = host.function("raw", &raw_effect(core), &[]);
    let outcome = host.runtime.apply_effect(&context(), &effect, video(SIZE, 1, 1)).await;
    host.serves_on().await;
    blamed(outcome)
}

#[tokio::test]
async fn a_hand_written_component_is_a_component_like_any_other() {
    let host = Host::new();
    // Returns the pixels that came in: result tag 0, pointer, length.
    let core = format!(
        r#"(memory (export "mem") 2) {REALLOC}
           {APPLY} (i32.store8 (i32.const 0) (i32.const 0)) (i32.store (i32.const 4) (local.get 0))
             (i32.store (i32.const 8) (local.get 1)) (i32.const 0))"#
    );
    let wasm = raw_effect(&core);
    assert_eq!(host.runtime.validate(&wasm).await.unwrap().kind, FunctionKind::SimpleEffect);
    let effect = host.function("raw", &wasm, &[]);
    let out = host.runtime.apply_effect(&context(), &effect, video(SIZE, 2, 33)).await.unwrap();
    assert_eq!(out.frames, video(SIZE, 2, 33).frames);
}

#[tokio::test]
async fn lies_about_memory_are_caught_by_the_canonical_abi() {
    let host = Host::with(strict());
    let store = |tag: u32, pointer: i64, length: i64| {
        format!(
            r#"(memory (export "mem") 2) {REALLOC}
               {APPLY} (i32.store8 (i32.const 0) (i32.const {tag})) (i32.store (i32.const 4) (i32.const {pointer}))
                 (i32.store (i32.const 8) (i32.const {length})) (i32.const 0))"#
        )
    };
    for (core, expected) in [
        (store(0, -16, 12288), "out of bounds"),
        (store(0, 0, -1), "out of bounds"),
        (store(0, 100_000, 100_000), "out of bounds"),
        (store(7, 0, 0), "discriminant"),
    ] {
        let message = blame_for(&host, &core).await;
        assert!(message.contains(expected), "{message}");
    }
    let unaligned = format!(r#"(memory (export "mem") 2) {REALLOC} {APPLY} (i32.const 3))"#);
    let message = blame_for(&host, &unaligned).await;
    assert!(message.contains("pointer"), "{message}");
}

#[tokio::test]
async fn text_that_is_not_utf8_is_the_components_fault() {
    let host = Host::with(strict());
    let core = format!(
        r#"(memory (export "mem") 2) (data (i32.const 64) "\ff\fe\fd") {REALLOC}
           {APPLY} (i32.store8 (i32.const 0) (i32.const 1)) (i32.store8 (i32.const 4) (i32.const 0))
             (i32.store (i32.const 8) (i32.const 64)) (i32.store (i32.const 12) (i32.const 3)) (i32.const 0))"#
    );
    assert!(blame_for(&host, &core).await.contains("utf-8"));
}

#[tokio::test]
async fn an_allocator_may_not_point_outside_or_spin() {
    let host = Host::with(strict());
    let outside = format!(
        r#"(memory (export "mem") 2)
           (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const -8)) {APPLY} (i32.const 0))"#
    );
    let message = blame_for(&host, &outside).await;
    assert!(message.starts_with("trapped: realloc return"), "{message}");
    let spins = format!(
        r#"(memory (export "mem") 2)
           (func (export "realloc") (param i32 i32 i32 i32) (result i32) (loop $l (br $l)) (unreachable))
           {APPLY} (i32.const 0))"#
    );
    assert_eq!(blame_for(&host, &spins).await, "ran longer than 300 ms of CPU");
}

#[tokio::test]
async fn a_start_function_has_the_same_limits_as_a_call() {
    let host = Host::with(strict());
    let core = format!(
        r#"(memory (export "mem") 2) {REALLOC} (func $spin (loop $l (br $l))) (start $spin) {APPLY} (i32.const 0))"#
    );
    assert_eq!(blame_for(&host, &core).await, "ran longer than 300 ms of CPU");
}

#[tokio::test]
async fn tables_and_memories_stop_growing_at_their_limits() {
    let host = Host::with(strict());
    let table = format!(
        r#"(memory (export "mem") 2) (table $t 1 funcref) {REALLOC}
           {APPLY} (drop (table.grow $t (ref.null func) (i32.const 10000000))) (unreachable))"#
    );
    assert_eq!(blame_for(&host, &table).await, "asked for a table of more than 65536 elements");
    let memory =
        format!(r#"(memory (export "mem") 2) {REALLOC} {APPLY} (drop (memory.grow (i32.const 65000))) (unreachable))"#);
    assert_eq!(blame_for(&host, &memory).await, "asked for more than 256 MiB of memory");
    // Each memory alone is below the limit.
    let two = format!(
        r#"(memory (export "mem") 2) (memory $b 1) {REALLOC}
           {APPLY} (drop (memory.grow (i32.const 2500))) (drop (memory.grow $b (i32.const 2500))) (unreachable))"#
    );
    assert_eq!(blame_for(&host, &two).await, "asked for more than 256 MiB of memory");
}

#[tokio::test]
async fn endless_bulk_operations_are_stopped_between_two_of_them() {
    let host = Host::with(strict());
    // 200 MiB filled over and over: an epoch cannot split one fill, but it comes after it.
    let core = format!(
        r#"(memory (export "mem") 2) {REALLOC}
           {APPLY} (drop (memory.grow (i32.const 3200)))
             (loop $l (memory.fill (i32.const 0) (i32.const 7) (i32.const 209715200)) (br $l)) (unreachable))"#
    );
    let start = Instant::now();
    assert_eq!(blame_for(&host, &core).await, "ran longer than 300 ms of CPU");
    assert!(start.elapsed() < Duration::from_secs(30), "took {:?}", start.elapsed());
}

#[tokio::test]
async fn traps_are_named() {
    let host = Host::with(strict());
    for (body, expected) in [
        ("(unreachable)", "unreachable"),
        ("(i32.div_u (i32.const 1) (i32.const 0))", "divide by zero"),
        ("(i32.load (i32.const -4))", "out of bounds memory access"),
        ("(i32.trunc_f32_s (f32.const nan))", "invalid conversion to integer"),
    ] {
        let core = format!(r#"(memory (export "mem") 2) {REALLOC} {APPLY} {body})"#);
        let message = blame_for(&host, &core).await;
        assert!(message.starts_with("trapped: ") && message.contains(expected), "{message}");
    }
}
