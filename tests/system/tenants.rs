//! Tenants see their own things only, and pay for their own things only.

use crate::harness::{Server, small};
use serde_json::json;

#[test]
fn another_tenants_ids_are_not_found_on_any_route() {
    let server = Server::start();
    let (alice, bob) = (server.tenant("alice"), server.tenant("bob"));
    alice.put_component("hook", guest_bundle::PROMPT_STYLE).expect(201);
    let id = alice.make(&small("a red star"))["id"].as_str().unwrap().to_owned();
    for path in [format!("/v1/videos/{id}"), format!("/v1/videos/{id}/content"), "/v1/functions/hook".to_owned()] {
        assert_eq!(alice.get(&path).status, 200, "{path}");
        assert_eq!(bob.get(&path).status, 404, "{path}");
    }
    assert_eq!(bob.delete(&format!("/v1/videos/{id}")).status, 404);
    assert_eq!(bob.post(&format!("/v1/videos/{id}/cancel"), &json!({})).status, 404);
    assert_eq!(bob.delete("/v1/functions/hook").status, 404);
    assert_eq!(bob.get("/v1/videos").expect(200)["data"], json!([]));
    assert_eq!(bob.gpu_ms(), 0);
    assert_eq!(alice.get(&format!("/v1/videos/{id}")).status, 200, "nothing of it touched the video");
}

#[test]
fn only_operators_manage_tenants_and_a_wrong_key_is_refused() {
    let server = Server::start();
    let tenant = server.tenant("alice");
    assert_eq!(tenant.post("/v1/tenants", &json!({ "id": "eve" })).status, 403);
    assert_eq!(server.client_with("zt_wrong").get("/v1/videos").status, 401);
    assert_eq!(server.client_with("").get("/v1/videos").status, 401);
}

#[test]
fn an_over_quota_request_gets_429_and_no_gpu_time() {
    let server = Server::start();
    let alice = server.tenant("alice");
    let quotas =
        json!({ "gpu_ms_per_day": 1, "jobs_running_max": 1, "jobs_queued_max": 10, "stored_bytes_max": 1 << 30 });
    let answer = server.client().send(
        "PUT",
        "/v1/tenants/alice/quotas",
        &[("content-type", "application/json")],
        quotas.to_string().as_bytes(),
    );
    assert_eq!(answer.status, 200);
    let refused = alice.post("/v1/videos", &small("a red star"));
    assert_eq!(refused.status, 429, "{}", refused.message());
    assert!(refused.message().contains("gpu_ms_per_day"));
    assert_eq!(alice.gpu_ms(), 0);
    assert_eq!(alice.get("/v1/videos").expect(200)["data"], json!([]));
}

#[test]
fn a_retried_post_with_one_idempotency_key_makes_one_job() {
    let server = Server::start();
    let client = server.client();
    let headers = [("content-type", "application/json"), ("idempotency-key", "once")];
    let post = |body: &serde_json::Value| client.send("POST", "/v1/videos", &headers, body.to_string().as_bytes());
    let first = post(&small("a red star")).expect(200);
    let again = post(&small("a red star")).expect(200);
    assert_eq!(first["id"], again["id"]);
    assert_eq!(post(&small("another prompt")).status, 409);
    assert_eq!(client.get("/v1/videos").expect(200)["data"].as_array().unwrap().len(), 1);
}
