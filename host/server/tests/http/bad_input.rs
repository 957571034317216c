//! Whatever comes in: a 4xx in the API's envelope, and nothing queued, stored or billed.

use crate::harness::{Answer, Api, FORM, JSON, WASM, form};
use axum::body::Body;
use serde_json::{Value, json};

#[track_caller]
fn assert_refused(what: &str, answer: &Answer, hint: &str) {
    assert!((400..500).contains(&answer.status), "{what}: {} {:?}", answer.status, answer.error());
    let (message, code) = answer.error();
    assert!(!code.is_empty(), "{what}: no code in {}", String::from_utf8_lossy(&answer.bytes));
    assert!(message.to_lowercase().contains(&hint.to_lowercase()), "{what}: `{message}` does not say `{hint}`");
}

fn with(field: &str, value: Value) -> Value {
    let mut body = json!({ "prompt": "a red star" });
    body[field] = value;
    body
}

#[tokio::test]
async fn each_wrong_field_is_refused_by_its_name() {
    let api = Api::new().await;
    for (field, value) in [
        ("prompt", json!("x".repeat(100_000))),
        ("prompt", json!("")),
        ("prompt", json!("   ")),
        ("prompt", json!(["a"])),
        ("prompt", Value::Null),
        ("negative_prompt", json!("x".repeat(100_000))),
        ("size", json!("13x7")),
        ("size", json!("large")),
        ("size", json!("0x0")),
        ("size", json!("99999x99999")),
        ("size", json!("-64x64")),
        ("seconds", json!("-1")),
        ("seconds", json!("1e300")),
        ("seconds", json!("NaN")),
        ("seconds", json!(100_000)),
        ("steps", json!(-3)),
        ("steps", json!(0)),
        ("steps", json!(100_000)),
        ("steps", json!("many")),
        ("fps", json!(0)),
        ("fps", json!(100_000)),
        ("key_frames", json!(0)),
        ("key_frames", json!(100_000)),
        ("guidance", json!("strong")),
        ("guidance", json!(-1)),
        ("guidance", json!("NaN")),
        ("guidance", json!(1e30)),
        ("shift", json!(0)),
        ("sampler", json!("magic")),
        ("solver_order", json!(9)),
        ("solver_type", json!("bh3")),
        ("schedule", json!("cubic")),
        ("eta", json!(1.5)),
        ("eta", json!("NaN")),
        ("guidance_kind", json!("magic")),
        ("guidance_kind", json!("apg:momentum=9")),
        ("guidance_rescale", json!(-0.1)),
        ("guidance_rescale", json!(2)),
        ("guidance_interval", json!("0.9..0.1")),
        ("guidance_interval", json!("all")),
        ("step_cache", json!("magic")),
        ("step_cache", json!("first-block:7")),
        ("loras", json!("unregistered")),
        ("loras", json!(["/etc/passwd"])),
        ("loras", json!("style:1e9")),
        ("loras", json!([1])),
        ("loras", json!(0.5)),
        ("seed", json!(-1)),
        ("seed", json!("99999999999999999999999")),
        ("model", json!("no-such-model")),
        ("model", json!("/etc")),
        ("model", json!("../default")),
        ("promt", json!("a typo")),
        ("prompt_hook", json!("nobody")),
        ("prompt_hook", json!("No Name")),
        ("effects", json!(["nobody"])),
        ("effects", json!(vec!["x"; 100])),
        ("director", json!("nobody")),
        ("input", json!({})),
        ("input_reference", json!({ "image_url": "http://127.0.0.1:1/a.png" })),
        ("input_reference", json!({ "image_url": "file:///etc/passwd" })),
        ("input_reference", json!({ "image_url": "data:image/png;base64,aGVsbG8=" })),
        ("input_reference", json!({ "image_url": "data:image/svg+xml;base64,PHN2Zz48L3N2Zz4=" })),
        ("input_reference", json!({ "image_url": "data:image/png;base64,@@@" })),
        ("input_reference", json!({ "file_id": "file_1" })),
    ] {
        let answer = api.post("/v1/videos", &api.alice, &with(field, value.clone())).await;
        let what = format!("{field} = {}", value.to_string().chars().take(60).collect::<String>());
        assert_refused(&what, &answer, field);
        assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (400, Some(field)), "{what}");
    }
    api.assert_nothing_happened().await;
}

#[tokio::test]
async fn each_broken_body_or_header_is_refused() {
    let api = Api::new().await;
    let video = "/v1/videos";
    let file = form(&[("prompt", "a")], Some(("input_reference", b"no picture")));
    let twice = form(&[("prompt", "a"), ("prompt", "b")], None);
    let unknown_file = form(&[("prompt", "a")], Some(("picture", b"x")));
    let nested = "[".repeat(100_000);
    let many: Vec<_> = (0..200).map(|_| ("effects[]", "x")).collect();
    let cut = &form(&[("prompt", "a")], None)[..40];
    let no_text = b"--XX\r\ncontent-disposition: form-data; name=\"prompt\"\r\n\r\n\xff\xfe\r\n--XX--\r\n".to_vec();
    let no_boundary = ("content-type", "multipart/form-data");
    let long_key = "k".repeat(300);
    for (what, headers, body, hint) in [
        ("broken JSON", vec![JSON], b"{\"prompt\":".to_vec(), "json"),
        ("no JSON at all", vec![JSON], b"\xff\xfe\x00".to_vec(), "json"),
        ("nothing", vec![JSON], vec![], "json"),
        ("a list", vec![JSON], b"[]".to_vec(), "object"),
        ("a number", vec![JSON], b"7".to_vec(), "object"),
        ("deep nesting", vec![JSON], nested.into_bytes(), "json"),
        ("no content type", vec![], b"prompt=a".to_vec(), "content-type"),
        (
            "a form of the old kind",
            vec![("content-type", "application/x-www-form-urlencoded")],
            b"prompt=a".to_vec(),
            "content-type",
        ),
        ("a content type that is none", vec![("content-type", "json")], b"{}".to_vec(), "content-type"),
        ("a form without a boundary", vec![no_boundary], b"x".to_vec(), ""),
        ("a form cut short", vec![FORM], cut.to_vec(), ""),
        ("a form of nothing", vec![FORM], vec![], ""),
        ("no picture in a form", vec![FORM], file, "input_reference"),
        ("a field given twice", vec![FORM], twice, "prompt"),
        ("a file of an unknown name", vec![FORM], unknown_file, "picture"),
        ("two hundred parts", vec![FORM], form(&many, None), "parts"),
        ("text that is not UTF-8", vec![FORM], no_text, "prompt"),
        ("a length that lies", vec![JSON, ("content-length", "99999999999")], b"{}".to_vec(), "too large"),
        (
            "an endless idempotency key",
            vec![JSON, ("idempotency-key", &long_key)],
            b"{\"prompt\":\"a\"}".to_vec(),
            "Idempotency-Key",
        ),
        (
            "an empty idempotency key",
            vec![JSON, ("idempotency-key", "")],
            b"{\"prompt\":\"a\"}".to_vec(),
            "Idempotency-Key",
        ),
    ] {
        assert_refused(what, &api.send("POST", video, &api.alice, &headers, body).await, hint);
    }
    api.assert_nothing_happened().await;
}

#[tokio::test]
async fn each_wrong_query_or_address_is_refused() {
    let api = Api::new().await;
    let ghost = format!("video_{}", "0".repeat(32));
    for (path, status) in [
        ("/v1/videos?limit=0".to_owned(), 400),
        ("/v1/videos?limit=101".to_owned(), 400),
        ("/v1/videos?limit=-1".to_owned(), 400),
        ("/v1/videos?limit=many".to_owned(), 400),
        ("/v1/videos?limit=1&limit=2".to_owned(), 400),
        ("/v1/videos?order=up".to_owned(), 400),
        ("/v1/videos?after=nonsense".to_owned(), 400),
        (format!("/v1/videos?after={ghost}"), 404),
        ("/v1/videos?colour=red".to_owned(), 400),
        (format!("/v1/videos/{ghost}"), 404),
        (format!("/v1/videos/{ghost}/content"), 404),
        (format!("/v1/videos/{ghost}/content?variant=sound"), 400),
        ("/v1/videos/..%2F..%2Fetc".to_owned(), 404),
        ("/v1/videos/%00".to_owned(), 404),
        ("/v1/videos/%ff".to_owned(), 400),
        ("/v1/functions?order=desc".to_owned(), 400),
        ("/v1/functions?after=..%2F".to_owned(), 400),
        ("/v1/functions/nobody".to_owned(), 404),
        ("/v1/models/nobody".to_owned(), 404),
        ("/v1/usage?group_by=colour".to_owned(), 400),
        ("/v1/usage?from=yesterday".to_owned(), 400),
        ("/v1/usage?tenant=No%20Name".to_owned(), 400),
        ("/v1/usage/export?cursor=-1".to_owned(), 400),
        ("/v1/usage/export?limit=1000000".to_owned(), 400),
        ("/v1/nowhere".to_owned(), 404),
        ("/".to_owned(), 404),
    ] {
        let answer = api.get(&path, &api.alice).await;
        assert_refused(&path, &answer, "");
        assert_eq!(answer.status, status, "{path}: {:?}", answer.error());
    }
    for (method, path) in
        [("PATCH", "/v1/videos"), ("DELETE", "/v1/videos"), ("POST", "/healthz"), ("GET", "/v1/videos/x/cancel")]
    {
        assert_eq!(api.send(method, path, &api.alice, &[], Body::empty()).await.status, 405, "{method} {path}");
    }
}

#[tokio::test]
async fn each_wrong_setting_of_an_operator_is_refused() {
    let api = Api::new().await;
    let quotas = json!({ "gpu_ms_per_day": -1, "jobs_running_max": 1, "jobs_queued_max": 1, "stored_bytes_max": 1 });
    for (method, path, body, status) in [
        ("POST", "/v1/tenants", json!({}), 400),
        ("POST", "/v1/tenants", json!({ "id": "No Name" }), 400),
        ("POST", "/v1/tenants", json!({ "id": "../x" }), 400),
        ("POST", "/v1/tenants", json!({ "id": "x", "colour": 1 }), 400),
        ("POST", "/v1/tenants", json!({ "id": "alice" }), 409),
        ("PUT", "/v1/tenants/alice/quotas", quotas, 400),
        ("PUT", "/v1/tenants/alice/quotas", json!({ "gpu_ms_per_day": 1 }), 400),
        ("PUT", "/v1/tenants/nobody/quotas", json!(control_plane::Quotas::default()), 404),
        ("POST", "/v1/tenants/nobody/keys", json!({}), 404),
        ("POST", "/v1/tenants/alice/keys", json!({ "label": "x".repeat(1000) }), 400),
        ("POST", "/v1/tenants/alice/keys", json!({ "role": "king" }), 400),
        ("DELETE", "/v1/tenants/alice/keys/nonsense", json!({}), 404),
        ("DELETE", "/v1/tenants/alice/keys/key_0123456789abcdef", json!({}), 404),
        ("GET", "/v1/tenants/nobody/keys", json!({}), 404),
        ("GET", "/v1/tenants/No%20Name", json!({}), 404),
    ] {
        let answer = api.send(method, path, &api.operator, &[JSON], body.to_string()).await;
        assert_refused(&format!("{method} {path} {body}"), &answer, "");
        assert_eq!(answer.status, status, "{method} {path} {body}: {:?}", answer.error());
    }
}

/// Every route with every kind of garbage: no 5xx, and no answer that is not the envelope.
#[tokio::test]
async fn no_route_fails_on_garbage() {
    let api = Api::new().await;
    let paths = [
        "/v1/videos",
        "/v1/videos/x",
        "/v1/videos/x/content",
        "/v1/videos/x/cancel",
        "/v1/videos/x/remix",
        "/v1/functions",
        "/v1/functions/x",
        "/v1/functions/x/invocations",
        "/v1/models",
        "/v1/models/x",
        "/v1/usage",
        "/v1/usage/export",
        "/v1/tenants",
        "/v1/tenants/x",
        "/v1/tenants/x/quotas",
        "/v1/tenants/x/keys",
        "/v1/tenants/x/keys/y",
        "/healthz",
        "/readyz",
        "/metrics",
    ];
    let bodies: [&[u8]; 7] =
        [b"", b"\0\0\0\0", b"{", b"{\"\":{\"\":[]}}", b"--XX\r\n\r\n\r\n--XX--", b"\0asm\x01\0\0\0", &[0xff; 5000]];
    let types = [JSON, FORM, WASM, ("content-type", "\"")];
    for path in paths {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
            for (index, body) in bodies.iter().enumerate() {
                let headers = [types[index % 4], ("range", "bytes=-"), ("prefer", "respond-async"), ("accept", "x/y")];
                let path =
                    if index % 2 == 0 { path.to_owned() } else { format!("{path}?%00=%ff&limit=18446744073709551616") };
                let answer = api.send(method, &path, &api.operator, &headers, body.to_vec()).await;
                assert!(answer.status < 500, "{method} {path} {index}: {} {:?}", answer.status, answer.error());
                if answer.status >= 400 && method != "HEAD" {
                    assert!(!answer.error().1.is_empty(), "{method} {path} {index}: no envelope");
                }
            }
        }
    }
    api.assert_nothing_happened().await;
}
