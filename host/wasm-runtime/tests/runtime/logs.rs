//! What components say is kept, bounded and harmless.

use crate::support::{Host, context, request};
use guest_bundle::misbehaving::HOOK;
use pipeline::Plan;
use wasm_runtime::LogLevel;

#[tokio::test]
async fn a_flood_of_lines_is_cut_and_counted() {
    let host = Host::new();
    host.runtime.plan(&context(), &host.bad(HOOK, "flood-log"), request("a star")).await.unwrap();
    let texts = host.log.texts();
    assert_eq!(texts.len(), 1001);
    assert_eq!(texts[999], "line 999");
    assert_eq!(texts[1000], "99000 lines over the limit of 1000 were dropped");
}

#[tokio::test]
async fn a_flood_of_standard_error_is_cut_the_same_way() {
    let host = Host::new();
    host.runtime.plan(&context(), &host.bad(HOOK, "flood-stderr"), request("a star")).await.unwrap();
    let lines = host.log.lines();
    assert_eq!(lines.len(), 1001);
    assert!(lines.iter().all(|(function, level, _)| function == "bad" && *level == LogLevel::Warn));
    assert!(lines[0].2.starts_with("line 0 xxx"));
}

#[tokio::test]
async fn a_line_cannot_forge_another() {
    let host = Host::new();
    host.runtime.plan(&context(), &host.bad(HOOK, "forge-log"), request("a star")).await.unwrap();
    assert_eq!(host.log.texts(), ["fine\\n2026-01-01 ERROR \\u{1b}[31mforged"]);
}

#[tokio::test]
async fn a_panic_message_is_in_the_log_and_in_the_failure() {
    let host = Host::new();
    let error = host.runtime.plan(&context(), &host.bad(HOOK, "trap"), request("a star")).await.unwrap_err();
    assert!(error.to_string().starts_with("function `bad` failed: trapped: "), "{error}");
    assert!(error.to_string().contains("a deliberate panic"), "{error}");
    assert!(host.log.texts().iter().any(|line| line.contains("a deliberate panic")));
}
