use crate::harness::{Api, JSON, WASM, tenant};
use axum::body::Body;
use control_plane::{FunctionKind, JobStore};
use pipeline::Flow;
use serde_json::{Value, json};

async fn invoke(api: &Api, name: &str, body: Value) -> crate::harness::Answer {
    let headers = [JSON, ("prefer", "respond-async")];
    api.send("POST", &format!("/v1/functions/{name}/invocations"), &api.alice, &headers, body.to_string()).await
}

async fn flow_and_effects(api: &Api, answer: Value) -> (Flow, Vec<String>) {
    let id = answer["id"].as_str().unwrap().parse().unwrap();
    let spec = api.platform.jobs.get(&tenant("alice"), &id).await.unwrap().unwrap().spec;
    (spec.flow, spec.effects.iter().map(|e| e.name.to_string()).collect())
}

#[tokio::test]
async fn an_invoked_function_takes_the_place_of_its_kind() {
    let api = Api::new().await;
    api.deploy("style", FunctionKind::PromptHook).await;
    api.deploy("grain", FunctionKind::FrameEffect).await;
    api.deploy("board", FunctionKind::Director).await;

    let answer =
        invoke(&api, "style", json!({ "prompt": "a", "config": { "mood": "dark" }, "effects": ["grain"] })).await;
    assert_eq!(answer.header("preference-applied"), "respond-async");
    let (flow, effects) = flow_and_effects(&api, answer.expect(202)).await;
    assert!(matches!(flow, Flow::Staged { prompt_hook: Some(hook) } if hook.config["mood"] == "dark"));
    assert_eq!(effects, ["grain"]);

    let answer = invoke(&api, "grain", json!({ "prompt": "a", "prompt_hook": "style" })).await.expect(202);
    let (flow, effects) = flow_and_effects(&api, answer).await;
    assert!(matches!(flow, Flow::Staged { prompt_hook: Some(_) }));
    assert_eq!(effects, ["grain"]);

    let answer = invoke(&api, "board", json!({ "prompt": "a", "input": { "shots": [] } })).await.expect(202);
    let (flow, _) = flow_and_effects(&api, answer).await;
    assert!(matches!(flow, Flow::Directed { input, .. } if input == "{\"shots\":[]}"));
}

#[tokio::test]
async fn an_invocation_that_cannot_work_is_refused() {
    let api = Api::new().await;
    api.deploy("style", FunctionKind::PromptHook).await;
    for (name, body, status) in [
        ("nobody", json!({ "prompt": "a" }), 404),
        ("style", json!({}), 400),
        ("style", json!({ "prompt": "a", "prompt_hook": "style" }), 400),
        ("style", json!({ "prompt": "a", "input": {} }), 400),
        ("style", json!({ "prompt": "a", "version": 9 }), 404),
        ("style", json!({ "prompt": "a", "config": "x" }), 400),
    ] {
        assert_eq!(invoke(&api, name, body.clone()).await.status, status, "{name} {body}");
    }
    let headers = [JSON, ("prefer", "wait=soon")];
    let answer = api.send("POST", "/v1/functions/style/invocations", &api.alice, &headers, "{\"prompt\":\"a\"}").await;
    assert_eq!(answer.status, 400);
    assert_eq!(api.get("/v1/videos", &api.alice).await.expect(200)["data"], json!([]));
}

#[tokio::test]
async fn a_waiting_invocation_answers_as_soon_as_the_video_is_there() {
    let api = Api::new().await;
    api.deploy("style", FunctionKind::PromptHook).await;
    let headers = [JSON, ("prefer", "wait=30")];
    let waiting = api.send("POST", "/v1/functions/style/invocations", &api.alice, &headers, "{\"prompt\":\"a\"}");
    let working = async {
        while api.platform.jobs.queue_stats().await.unwrap().queued == 0 {
            tokio::task::yield_now().await;
        }
        let claimed = api.claim().await;
        api.complete(&claimed, b"video").await;
    };
    let (answer, ()) = tokio::join!(waiting, working);
    assert_eq!(answer.expect(200)["status"], "completed");
    let headers = [JSON, ("prefer", "wait=1")];
    let answer = api.send("POST", "/v1/functions/style/invocations", &api.alice, &headers, "{\"prompt\":\"a\"}").await;
    assert_eq!(answer.expect(202)["status"], "queued", "after its time it answers with what there is");
}

#[tokio::test]
async fn functions_are_listed_shown_and_deleted() {
    let api = Api::new().await;
    for name in ["b", "a", "c"] {
        api.deploy(name, FunctionKind::PromptHook).await;
    }
    let page = api.get("/v1/functions?limit=2", &api.alice).await.expect(200);
    assert_eq!(
        (&page["data"][0]["name"], &page["last_id"], &page["has_more"]),
        (&json!("a"), &json!("b"), &json!(true))
    );
    let rest = api.get("/v1/functions?limit=2&after=b", &api.alice).await.expect(200);
    assert_eq!((&rest["data"][0]["name"], &rest["has_more"]), (&json!("c"), &json!(false)));
    let shown = api.get("/v1/functions/a", &api.alice).await.expect(200);
    assert_eq!(
        (&shown["kind"], &shown["version"], &shown["versions"][0]["version"]),
        (&json!("prompt_hook"), &json!(1), &json!(1))
    );
    let deleted = api.send("DELETE", "/v1/functions/a", &api.alice, &[], Body::empty()).await.expect(200);
    assert_eq!(deleted["deleted"], true);
    assert_eq!(api.get("/v1/functions/a", &api.alice).await.status, 404);
}

#[tokio::test]
async fn an_upload_that_is_no_component_is_refused_with_the_validators_words() {
    let api = Api::new().await;
    for (what, name, headers, body, status) in [
        ("nothing", "f", vec![WASM], vec![], 400),
        ("text", "f", vec![WASM], b"fn main() {}".to_vec(), 400),
        ("a core module", "f", vec![WASM], b"\0asm\x01\0\0\0".to_vec(), 400),
        ("JSON", "f", vec![JSON], b"{}".to_vec(), 415),
        ("no type", "f", vec![], b"\0asm".to_vec(), 415),
        ("a name in capitals", "Grain", vec![WASM], b"\0asm".to_vec(), 400),
        ("a name that is a path", "..%2Fetc", vec![WASM], b"\0asm".to_vec(), 400),
        ("a name with a newline", "a%0Ab", vec![WASM], b"\0asm".to_vec(), 400),
        ("33 MiB", "f", vec![WASM], vec![0; 33 << 20], 413),
        ("a length that lies", "f", vec![WASM, ("content-length", "99999999999")], b"\0asm".to_vec(), 413),
    ] {
        for method in ["PUT", "POST"] {
            let path = format!("/v1/functions/{name}");
            let answer = api.send(method, &path, &api.alice, &headers, body.clone()).await;
            assert_eq!(answer.status, status, "{what}: {}", answer.error().0);
            assert!(answer.error().0.len() > 10, "{what}");
        }
    }
    api.assert_nothing_happened().await;
}
