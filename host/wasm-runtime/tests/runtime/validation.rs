//! An upload that cannot run is refused with a reason that says what to do.

use crate::support::Host;
use wasm_runtime::{FunctionKind, Limits, ValidationError};
use wasmtime::Engine;

async fn refusal(host: &Host, wasm: &[u8]) -> String {
    host.runtime.validate(wasm).await.unwrap_err().to_string()
}

fn component(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

/// A component with a `plan` of no parameters, after `before`.
fn with_plan(before: &str) -> Vec<u8> {
    component(&format!(
        r#"(component {before}
          (core module $m (func (export "plan")))
          (core instance $i (instantiate $m))
          (func (export "plan") (canon lift (core func $i "plan"))))"#
    ))
}

#[tokio::test]
async fn every_sample_is_recognised_as_its_world() {
    let host = Host::new();
    use FunctionKind::{Director, FrameEffect, PromptHook, SimpleEffect};
    for (wasm, kind) in [
        (guest_bundle::PROMPT_STYLE, PromptHook),
        (guest_bundle::LETTERBOX, SimpleEffect),
        (guest_bundle::FILM_GRAIN, FrameEffect),
        (guest_bundle::STORYBOARD, Director),
        (guest_bundle::misbehaving::HOOK, PromptHook),
        (guest_bundle::misbehaving::SIMPLE_EFFECT, SimpleEffect),
        (guest_bundle::misbehaving::FRAME_EFFECT, FrameEffect),
        (guest_bundle::misbehaving::DIRECTOR, Director),
    ] {
        assert_eq!(host.runtime.validate(wasm).await.unwrap().kind, kind);
    }
}

#[tokio::test]
async fn what_is_not_a_component_is_called_by_its_name() {
    let host = Host::new();
    let precompiled = Engine::default().precompile_component(guest_bundle::LETTERBOX).unwrap();
    for (bytes, expected) in [
        (&b""[..], "the upload is empty"),
        (b"PK\x03\x04 an archive", "a component starts with the bytes 00 61 73 6d"),
        (b"(component)", "a component starts with the bytes 00 61 73 6d"),
        (
            &component("(module)"),
            "this is a core module; build a component: in Rust, `cargo build --target wasm32-wasip2`",
        ),
        (&precompiled, "precompiled machine code; upload the `.wasm` component"),
    ] {
        let message = refusal(&host, bytes).await;
        assert!(message.contains(expected), "{message}");
    }
}

#[tokio::test]
async fn an_export_that_nobody_calls_is_answered_with_those_that_are() {
    let host = Host::new();
    let message = refusal(&host, &component("(component)")).await;
    assert!(message.contains("expected `plan` (world prompt-hook), `apply`"), "{message}");
    assert!(message.ends_with("it exports nothing"), "{message}");
    let other = component(
        r#"(component (core module $m (func (export "f"))) (core instance $i (instantiate $m))
           (func (export "main") (canon lift (core func $i "f"))))"#,
    );
    assert!(refusal(&host, &other).await.ends_with("it exports `main`"));
}

#[tokio::test]
async fn imports_that_are_not_granted_are_named() {
    let host = Host::new();
    let http = with_plan(r#"(import "wasi:http/outgoing-handler@0.2.3" (instance (export "f" (func))))"#);
    let message = refusal(&host, &http).await;
    let expected = "imports `wasi:http/outgoing-handler@0.2.3`, which is not granted to functions of world prompt-hook";
    assert!(message.contains(expected), "{message}");
    let sockets = with_plan(r#"(import "wasi:sockets/instance-network@0.2.0" (instance (export "f" (func))))"#);
    assert!(refusal(&host, &sockets).await.contains("wasi:sockets/instance-network@0.2.0"));
    let bare = with_plan(r#"(import "open-door" (func))"#);
    assert!(refusal(&host, &bare).await.contains("imports `open-door`"));
    let usage = with_plan(
        r#"(import "zoetrope:video/usage@0.1.0" (instance (export "remaining-gpu-ms" (func (result u64)))))"#,
    );
    let message = refusal(&host, &usage).await;
    assert!(message.ends_with("not granted to functions of world prompt-hook; directors have it"), "{message}");
}

#[tokio::test]
async fn exports_and_imports_of_the_wrong_type_are_named() {
    let host = Host::new();
    let message = refusal(&host, &with_plan("")).await;
    assert!(message.contains("does not fit world prompt-hook") && message.contains("plan"), "{message}");
    let logging =
        r#"(import "zoetrope:video/logging@0.1.0" (instance (export "log" (func (param "message" string)))))"#;
    let message = refusal(&host, &with_plan(logging)).await;
    assert!(message.contains("zoetrope:video/logging@0.1.0"), "{message}");
    let future = r#"(import "zoetrope:video/config@7.0.0" (instance (export "get" (func))))"#;
    let message = refusal(&host, &with_plan(future)).await;
    assert!(message.contains("zoetrope:video/config@7.0.0"), "{message}");
}

#[tokio::test]
async fn a_component_of_two_worlds_is_refused() {
    let host = Host::new();
    let two = component(
        r#"(component (core module $m (func (export "f"))) (core instance $i (instantiate $m))
           (func (export "plan") (canon lift (core func $i "f"))) (func (export "run") (canon lift (core func $i "f"))))"#,
    );
    let message = refusal(&host, &two).await;
    assert!(message.contains("exports `plan`, `run`; a function is of one world"), "{message}");
}

#[tokio::test]
async fn compile_bombs_are_refused_before_they_are_compiled() {
    let host = Host::with(Limits { component_bytes_max: 1000, ..Limits::default() });
    let message = refusal(&host, guest_bundle::LETTERBOX).await;
    assert!(message.contains("at most 1000 are taken"), "{message}");
    let host = Host::with(Limits { component_functions_max: 10, ..Limits::default() });
    assert!(refusal(&host, guest_bundle::LETTERBOX).await.contains("functions; at most 10 are taken"));
    let host = Host::with(Limits { component_function_bytes_max: 64, ..Limits::default() });
    assert!(refusal(&host, guest_bundle::LETTERBOX).await.contains("a function of"));
    let host = Host::new();
    let nested = component(&format!("{}{}", "(component ".repeat(40), ")".repeat(40)));
    let message = refusal(&host, &nested).await;
    assert!(message.contains("nested 9 deep; at most 8 are taken"), "{message}");
}

#[tokio::test]
async fn damaged_components_are_refused_or_run_but_never_harm_the_host() {
    let host = Host::new();
    let good = guest_bundle::FILM_GRAIN;
    for length in [4, 8, 9, 100, good.len() / 2, good.len() - 1] {
        let error = host.runtime.validate(&good[..length]).await.unwrap_err();
        assert!(!matches!(error, ValidationError::Internal(_)), "{length} bytes: {error}");
    }
    let mut refused = 0;
    for i in 0..40 {
        let mut bytes = good.to_vec();
        let at = 8 + i * (good.len() - 8) / 40;
        bytes[at] ^= 0x55;
        match host.runtime.validate(&bytes).await {
            Ok(_) => {}
            Err(ValidationError::Internal(message)) => panic!("byte {at}: {message}"),
            Err(error) => {
                assert!(error.to_string().len() < 800, "a message without bounds");
                refused += 1;
            }
        }
    }
    assert!(refused > 5, "only {refused} of 40 damaged components were noticed");
    host.serves_on().await;
}
