//! Hostile and broken components: stopped with a clear error, the server serves on, only the time used is billed.

use crate::harness::{Client, Server, small};
use serde_json::{Value, json};

fn with_effect(client: &Client, behaviour: &str) -> Value {
    let mut body = small("a red star");
    body["effects"] = json!([{ "name": "bad-effect", "config": { "behaviour": behaviour } }]);
    client.make(&body)
}

fn with_hook(client: &Client, behaviour: &str) -> Value {
    let mut body = small("a red star");
    body["prompt_hook"] = json!({ "name": "bad-hook", "config": { "behaviour": behaviour } });
    client.make(&body)
}

#[test]
fn each_misbehaving_component_fails_its_own_job_only() {
    let server = Server::start();
    let client = server.client();
    client.put_component("bad-hook", guest_bundle::misbehaving::HOOK).expect(201);
    client.put_component("bad-effect", guest_bundle::misbehaving::SIMPLE_EFFECT).expect(201);
    for behaviour in ["spin-forever", "eat-memory", "trap", "recurse", "no-steps"] {
        let before = client.gpu_ms();
        let video = with_hook(&client, behaviour);
        assert_eq!(
            (&video["status"], &video["error"]["code"]),
            (&json!("failed"), &json!("function_failed")),
            "{behaviour}"
        );
        let message = video["error"]["message"].as_str().unwrap();
        assert!(message.contains("bad-hook"), "{behaviour}: {message}");
        assert_eq!(client.gpu_ms(), before, "{behaviour}: a hook that fails costs no device time");
    }
    for behaviour in ["too-few-bytes", "trap-on-second"] {
        let video = with_effect(&client, behaviour);
        assert_eq!(
            (&video["status"], &video["error"]["code"]),
            (&json!("failed"), &json!("function_failed")),
            "{behaviour}"
        );
    }
    assert!(client.used("plan_cpu_ms") > 0, "the time that the hooks did use is billed");
    assert_eq!(client.make(&small("a red star"))["status"], "completed", "the server serves on");
}

#[test]
fn a_hook_that_returns_an_endless_prompt_costs_no_device_time() {
    let server = Server::start();
    let client = server.client();
    client.put_component("bad-hook", guest_bundle::misbehaving::HOOK).expect(201);
    let video = with_hook(&client, "huge-prompt");
    assert_eq!(video["status"], "failed");
    assert_eq!(client.gpu_ms(), 0);
}
