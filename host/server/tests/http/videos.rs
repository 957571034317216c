use crate::harness::{Api, FORM, JSON, form, png, tenant};
use axum::body::Body;
use control_plane::{FunctionKind, JobStore};
use pipeline::{Flow, KeyFramePosition};
use serde_json::{Value, json};

async fn spec_of(api: &Api, video: &Value) -> pipeline::JobSpec {
    let id = video["id"].as_str().unwrap().parse().unwrap();
    api.platform.jobs.get(&tenant("alice"), &id).await.unwrap().unwrap().spec
}

#[tokio::test]
async fn a_video_has_the_shape_that_existing_clients_know() {
    let api = Api::new().await;
    let body = json!({ "prompt": "a red star", "seconds": "1", "size": "64x48", "seed": 7 });
    let answer = api.post("/v1/videos", &api.alice, &body).await;
    assert!(answer.header("openai-poll-after-ms").parse::<u64>().unwrap() > 0);
    let video = answer.expect(200);
    assert!(video["id"].as_str().unwrap().starts_with("video_"));
    for (field, value) in [
        ("object", json!("video")),
        ("status", json!("queued")),
        ("progress", json!(0)),
        ("prompt", json!("a red star")),
        ("seconds", json!("1")),
        ("size", json!("64x48")),
        ("model", json!("default")),
        ("completed_at", Value::Null),
        ("remixed_from_video_id", Value::Null),
        ("error", Value::Null),
    ] {
        assert_eq!(video[field], value, "{field}");
    }
    assert!(video["created_at"].as_u64().unwrap() > 1_700_000_000, "seconds, not milliseconds");

    let claimed = api.claim().await;
    let path = format!("/v1/videos/{}", video["id"].as_str().unwrap());
    assert_eq!(api.get(&path, &api.alice).await.expect(200)["status"], "in_progress");
    api.complete(&claimed, b"video").await;
    let done = api.get(&path, &api.alice).await;
    assert_eq!(done.header("openai-poll-after-ms"), "", "there is nothing to wait for");
    let done = done.expect(200);
    assert_eq!((&done["status"], &done["progress"]), (&json!("completed"), &json!(100)));
    assert!(done["completed_at"].is_u64() && done["expires_at"].as_u64() > done["completed_at"].as_u64());
}

#[tokio::test]
async fn a_form_with_a_file_and_json_with_a_data_url_make_the_same_job() {
    use base64::Engine;
    let api = Api::new().await;
    let picture = png();
    let texts = [("prompt", "a red star"), ("seconds", "1"), ("steps", "3"), ("seed", "7"), ("model", "default")];
    let body = form(&texts, Some(("input_reference", &picture)));
    let by_form = api.send("POST", "/v1/videos", &api.alice, &[FORM], body).await.expect(200);
    let url = format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(&picture));
    let body = json!({
        "prompt": "a red star", "seconds": 1, "steps": 3, "seed": 7, "model": "default",
        "input_reference": { "image_url": url },
    });
    let by_json = api.post("/v1/videos", &api.alice, &body).await.expect(200);
    let texts = [texts.as_slice(), &[("input_reference[image_url]", url.as_str())]].concat();
    let by_brackets = api.send("POST", "/v1/videos", &api.alice, &[FORM], form(&texts, None)).await.expect(200);
    let spec = spec_of(&api, &by_form).await;
    assert_eq!(spec.images.len(), 1);
    assert_eq!(spec.images[0].position, KeyFramePosition::First);
    assert_eq!(spec, spec_of(&api, &by_json).await);
    assert_eq!(spec, spec_of(&api, &by_brackets).await);
    assert_eq!(api.platform.objects.get(&spec.images[0].object).await.unwrap(), picture);
}

#[tokio::test]
async fn hooks_effects_and_directors_are_fixed_to_their_version_when_the_job_is_admitted() {
    let api = Api::new().await;
    api.deploy("style", FunctionKind::PromptHook).await;
    api.deploy("grain", FunctionKind::FrameEffect).await;
    api.deploy("board", FunctionKind::Director).await;
    let body = json!({
        "prompt": "a", "prompt_hook": { "name": "style", "config": { "mood": "dark" } }, "effects": "grain,grain",
    });
    let spec = spec_of(&api, &api.post("/v1/videos", &api.alice, &body).await.expect(200)).await;
    let Flow::Staged { prompt_hook: Some(hook) } = spec.flow else { panic!("{:?}", spec.flow) };
    assert_eq!((hook.name.as_str(), hook.config["mood"].as_str(), spec.effects.len()), ("style", "dark", 2));
    let body = json!({ "prompt": "a", "director": "board", "input": { "shots": 2 } });
    let spec = spec_of(&api, &api.post("/v1/videos", &api.alice, &body).await.expect(200)).await;
    assert!(matches!(spec.flow, Flow::Directed { input, .. } if input == "{\"shots\":2}"));
}

#[tokio::test]
async fn a_job_without_a_seed_gets_one_that_is_shown_and_kept() {
    let api = Api::new().await;
    let video = api.post("/v1/videos", &api.alice, &json!({ "prompt": "a" })).await.expect(200);
    assert_eq!(spec_of(&api, &video).await.request.seed, video["seed"].as_u64());
    assert!(video["seed"].is_u64());
}

#[tokio::test]
async fn lists_page_both_ways() {
    let api = Api::new().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(api.queued().await);
    }
    let page = api.get("/v1/videos?limit=2&order=asc", &api.alice).await.expect(200);
    assert_eq!((&page["object"], &page["has_more"]), (&json!("list"), &json!(true)));
    assert_eq!((&page["first_id"], &page["last_id"]), (&json!(ids[0]), &json!(ids[1])));
    let rest = api.get(&format!("/v1/videos?limit=2&order=asc&after={}", ids[1]), &api.alice).await.expect(200);
    assert_eq!((&rest["data"][0]["id"], &rest["has_more"]), (&json!(ids[2]), &json!(false)));
    let newest = api.get("/v1/videos?limit=1", &api.alice).await.expect(200);
    assert_eq!(newest["data"][0]["id"], json!(ids[2]));
}

#[tokio::test]
async fn cancelling_a_waiting_job_fails_it_as_cancelled_and_costs_nothing() {
    let api = Api::new().await;
    let id = api.queued().await;
    let video = api.post(&format!("/v1/videos/{id}/cancel"), &api.alice, &json!({})).await.expect(200);
    assert_eq!((&video["status"], &video["error"]["code"]), (&json!("failed"), &json!("cancelled")));
    assert_eq!(api.get("/v1/usage", &api.alice).await.expect(200)["data"], json!([]));
}

#[tokio::test]
async fn a_remix_changes_the_prompt_only_and_needs_a_finished_video() {
    let api = Api::new().await;
    let id = api.completed(b"video").await;
    let path = format!("/v1/videos/{id}/remix");
    let remix = api.post(&path, &api.alice, &json!({ "prompt": "a blue circle" })).await.expect(200);
    assert_eq!(remix["remixed_from_video_id"], json!(id));
    assert_eq!((&remix["prompt"], &remix["seed"]), (&json!("a blue circle"), &json!(7)));
    for (body, param) in
        [(json!({}), "prompt"), (json!({ "prompt": "" }), "prompt"), (json!({ "prompt": "a", "steps": 3 }), "steps")]
    {
        let refused = api.post(&path, &api.alice, &body).await;
        assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (400, Some(param)), "{body}");
    }
    let unfinished = format!("/v1/videos/{}/remix", remix["id"].as_str().unwrap());
    assert_eq!(api.post(&unfinished, &api.alice, &json!({ "prompt": "b" })).await.error().1, "not_completed");
}

#[tokio::test]
async fn deleting_removes_the_video_and_its_files_but_not_an_unfinished_job() {
    let api = Api::new().await;
    let id = api.completed(b"video").await;
    let path = format!("/v1/videos/{id}");
    let job = api.platform.jobs.get(&tenant("alice"), &id.parse().unwrap()).await.unwrap().unwrap();
    let control_plane::JobState::Completed(stored) = job.state else { panic!() };
    assert!(api.platform.objects.get(&stored.video).await.is_ok());
    let deleted = api.send("DELETE", &path, &api.alice, &[], Body::empty()).await.expect(200);
    assert_eq!(deleted, json!({ "id": id, "object": "video.deleted", "deleted": true }));
    assert!(api.platform.objects.get(&stored.video).await.is_err(), "the file is gone");
    for path in [path.clone(), format!("{path}/content")] {
        assert_eq!(api.get(&path, &api.alice).await.status, 404);
    }
    let waiting = format!("/v1/videos/{}", api.queued().await);
    let refused = api.send("DELETE", &waiting, &api.alice, &[], Body::empty()).await;
    assert_eq!((refused.status, refused.header("x-should-retry")), (409, "false"));
    assert_eq!(api.get(&waiting, &api.alice).await.status, 200);
}

#[tokio::test]
async fn a_repeated_post_with_one_idempotency_key_is_one_job_however_the_form_is_cut() {
    let api = Api::new().await;
    let once = ("idempotency-key", "once");
    let texts = [("prompt", "a red star"), ("steps", "3")];
    let first = api.send("POST", "/v1/videos", &api.alice, &[FORM, once], form(&texts, None)).await.expect(200);
    let other_boundary = ("content-type", "multipart/form-data; boundary=YY");
    let same = String::from_utf8(form(&texts, None)).unwrap().replace("--XX", "--YY");
    let again = api.send("POST", "/v1/videos", &api.alice, &[other_boundary, once], same).await.expect(200);
    assert_eq!(first["id"], again["id"]);
    let changed = form(&[("prompt", "a blue star")], None);
    let conflict = api.send("POST", "/v1/videos", &api.alice, &[FORM, once], changed).await;
    assert_eq!((conflict.status, conflict.error().1.as_str()), (409, "idempotency_mismatch"));
    assert_eq!(conflict.header("x-should-retry"), "false");
    let others = api.send("POST", "/v1/videos", &api.bob, &[FORM, once], form(&texts, None)).await.expect(200);
    assert_ne!(first["id"], others["id"], "keys are the tenant's own");
    assert_eq!(api.get("/v1/videos", &api.alice).await.expect(200)["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn over_quota_says_when_to_come_back() {
    let api = Api::new().await;
    let alice = tenant("alice");
    let quotas = control_plane::Quotas { jobs_queued_max: 1, ..Default::default() };
    api.platform.jobs.set_quotas(&alice, quotas).await.unwrap();
    api.queued().await;
    let refused = api.send("POST", "/v1/videos", &api.alice, &[JSON], "{\"prompt\":\"a\"}").await;
    assert_eq!(refused.status, 429);
    assert!(refused.header("retry-after-ms").parse::<u64>().unwrap() > 0);
    assert!(refused.header("retry-after").parse::<u64>().unwrap() > 0);
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
}
