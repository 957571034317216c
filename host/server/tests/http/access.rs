use crate::harness::{Api, JSON, WASM};
use axum::body::Body;
use control_plane::FunctionKind;
use serde_json::json;

/// Every route that needs a key, with an id of alice's where one belongs.
fn routes(video: &str, key_id: &str) -> Vec<(&'static str, String)> {
    let mut routes = vec![
        ("POST", "/v1/videos".to_owned()),
        ("GET", "/v1/videos".to_owned()),
        ("GET", "/v1/functions".to_owned()),
        ("GET", "/v1/models".to_owned()),
        ("GET", "/v1/models/default".to_owned()),
        ("GET", "/v1/usage".to_owned()),
        ("GET", "/v1/usage/export".to_owned()),
    ];
    for (method, suffix) in [("GET", ""), ("DELETE", ""), ("GET", "/content"), ("POST", "/cancel"), ("POST", "/remix")]
    {
        routes.push((method, format!("/v1/videos/{video}{suffix}")));
    }
    for (method, suffix) in [("PUT", ""), ("POST", ""), ("GET", ""), ("DELETE", ""), ("POST", "/invocations")] {
        routes.push((method, format!("/v1/functions/hook{suffix}")));
    }
    routes.extend(operator_routes(key_id));
    routes
}

fn operator_routes(key_id: &str) -> Vec<(&'static str, String)> {
    vec![
        ("POST", "/v1/tenants".to_owned()),
        ("GET", "/v1/tenants".to_owned()),
        ("GET", "/v1/tenants/alice".to_owned()),
        ("PUT", "/v1/tenants/alice/quotas".to_owned()),
        ("POST", "/v1/tenants/alice/keys".to_owned()),
        ("GET", "/v1/tenants/alice/keys".to_owned()),
        ("DELETE", format!("/v1/tenants/alice/keys/{key_id}")),
    ]
}

#[tokio::test]
async fn no_route_but_the_probes_answers_without_a_valid_key() {
    let api = Api::new().await;
    let video = api.completed(b"video").await;
    let wrong = format!("zt_{}", "0".repeat(64));
    for (method, path) in routes(&video, "key_0123456789abcdef") {
        for key in ["", "nonsense", wrong.as_str(), "zt_"] {
            let answer = api.send(method, &path, key, &[JSON], "{}").await;
            assert_eq!((answer.status, answer.error().1.as_str()), (401, "invalid_api_key"), "{method} {path} {key}");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(api.get(path, "").await.status, 200, "{path}");
    }
    let basic = api.send("GET", "/v1/videos", "", &[("authorization", "Basic abc")], Body::empty()).await;
    assert_eq!(basic.status, 401);
}

#[tokio::test]
async fn every_route_answers_404_for_another_tenants_ids() {
    let api = Api::new().await;
    let video = api.completed(b"video").await;
    api.deploy("hook", FunctionKind::PromptHook).await;
    for (method, path) in [
        ("GET", format!("/v1/videos/{video}")),
        ("DELETE", format!("/v1/videos/{video}")),
        ("GET", format!("/v1/videos/{video}/content")),
        ("GET", format!("/v1/videos/{video}/content?variant=thumbnail")),
        ("POST", format!("/v1/videos/{video}/cancel")),
        ("POST", format!("/v1/videos/{video}/remix")),
        ("GET", format!("/v1/videos?after={video}")),
        ("GET", "/v1/functions/hook".to_owned()),
        ("DELETE", "/v1/functions/hook".to_owned()),
        ("POST", "/v1/functions/hook/invocations".to_owned()),
        ("GET", "/v1/usage?tenant=alice".to_owned()),
        ("GET", "/v1/usage/export?tenant=alice".to_owned()),
    ] {
        let answer = api.send(method, &path, &api.bob, &[JSON], "{\"prompt\":\"a\"}").await;
        assert_eq!((answer.status, answer.error().1.as_str()), (404, "not_found"), "{method} {path}");
    }
    let hook = json!({ "prompt": "a", "prompt_hook": "hook" });
    assert_eq!(api.post("/v1/videos", &api.bob, &hook).await.error().1, "unknown_function");
    assert_eq!(api.get("/v1/videos", &api.bob).await.expect(200)["data"], json!([]));
    assert_eq!(api.get("/v1/usage", &api.bob).await.expect(200)["data"], json!([]));
    assert_eq!(api.get(&format!("/v1/videos/{video}"), &api.alice).await.status, 200, "alice's is untouched");
}

#[tokio::test]
async fn an_operators_routes_are_closed_to_tenants() {
    let api = Api::new().await;
    for (method, path) in operator_routes("key_0123456789abcdef") {
        let answer = api.send(method, &path, &api.alice, &[JSON], "{}").await;
        assert_eq!((answer.status, answer.error().1.as_str()), (403, "forbidden"), "{method} {path}");
    }
}

#[tokio::test]
async fn an_operator_makes_tenants_keys_and_quotas_and_ends_a_key() {
    let api = Api::new().await;
    let carol = api.post("/v1/tenants", &api.operator, &json!({ "id": "carol" })).await.expect(201);
    assert_eq!(carol["id"], "carol");
    assert_eq!(api.post("/v1/tenants", &api.operator, &json!({ "id": "carol" })).await.status, 409);
    let made = api.post("/v1/tenants/carol/keys", &api.operator, &json!({ "label": "ci" })).await.expect(201);
    let key = made["key"].as_str().unwrap();
    assert_eq!(api.get("/v1/videos", key).await.status, 200);
    let listed = api.get("/v1/tenants/carol/keys", &api.operator).await.expect(200);
    assert_eq!((&listed["data"][0]["id"], &listed["data"][0]["label"]), (&made["id"], &json!("ci")));
    assert!(!listed.to_string().contains(key), "a key is shown once");

    let quotas = json!({ "gpu_ms_per_day": 1, "jobs_running_max": 1, "jobs_queued_max": 1, "stored_bytes_max": 1000 });
    let put = api.send("PUT", "/v1/tenants/carol/quotas", &api.operator, &[JSON], quotas.to_string()).await;
    assert_eq!(put.expect(200)["quotas"], quotas);
    let refused = api.post("/v1/videos", key, &json!({ "prompt": "a" })).await;
    assert_eq!((refused.status, refused.error().1.as_str()), (429, "quota_exceeded"));
    assert!(refused.error().0.contains("gpu_ms_per_day"), "{}", refused.error().0);
    assert_eq!(refused.header("x-should-retry"), "false", "waiting would not help");

    let path = format!("/v1/tenants/carol/keys/{}", made["id"].as_str().unwrap());
    let ended = api.send("DELETE", &path, &api.operator, &[], Body::empty()).await.expect(200);
    assert!(ended["revoked_at"].is_u64());
    assert_eq!(api.get("/v1/videos", key).await.status, 401);
    let ids: Vec<_> = api.get("/v1/tenants", &api.operator).await.expect(200)["data"].as_array().unwrap().clone();
    assert_eq!(ids.iter().map(|t| t["id"].as_str().unwrap()).collect::<Vec<_>>(), ["alice", "bob", "carol", "default"]);
}

#[tokio::test]
async fn every_answer_carries_a_request_id_of_its_own() {
    let api = Api::new().await;
    let mut ids = std::collections::HashSet::new();
    for path in ["/healthz", "/v1/videos", "/nowhere", "/metrics"] {
        let answer = api.send("PUT", path, "", &[WASM], "x").await;
        assert!(ids.insert(answer.header("x-request-id").to_owned()) && answer.header("x-request-id").len() == 20);
    }
}

#[tokio::test]
async fn metrics_show_the_queue_and_count_requests_by_pattern_and_name_no_tenant() {
    let api = Api::new().await;
    let done = api.completed(b"video").await;
    api.queued().await;
    api.get(&format!("/v1/videos/{done}"), &api.alice).await;
    let text = String::from_utf8(api.get("/metrics", "").await.bytes).unwrap();
    for line in [
        "zoetrope_jobs{state=\"queued\"} 1",
        "zoetrope_jobs{state=\"completed\"} 1",
        "zoetrope_gpu_recorded_ms 40",
        "zoetrope_device_busy_ms{device=\"cpu\",name=\"cpu\"} 0",
        "zoetrope_device_billed_ms{device=\"cpu\",name=\"cpu\"} 0",
        "zoetrope_device_refunded_ms{device=\"cpu\",name=\"cpu\"} 0",
        "zoetrope_device_queue_oldest_age_ms{device=\"cpu\",name=\"cpu\"} 0",
        "zoetrope_device_step_seconds_count{device=\"cpu\",stage=\"diffuse\"} 0",
        "zoetrope_device_step_seconds_bucket{le=\"+Inf\",device=\"cpu\",stage=\"interpolate\"} 0",
        "zoetrope_prompt_cache_lookups{found=\"ram\"} 0",
        "zoetrope_prompt_cache_bytes{place=\"disk\"} 0",
        "zoetrope_http_requests_total{method=\"GET\",route=\"/v1/videos/{id}\",status=\"200\"} 1",
        "zoetrope_http_request_seconds_count 3",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("alice") && !text.contains(&done));
    assert_eq!(text.matches("# EOF").count(), 1);
}
