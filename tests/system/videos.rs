//! The main path over HTTP.

use crate::harness::{Client, Server, ffprobe, file, small};
use serde_json::{Value, json};
use tempfile::TempDir;

fn deploy_samples(client: &Client) {
    assert_eq!(client.put_component("prompt-style", guest_bundle::PROMPT_STYLE).expect(201)["kind"], "prompt_hook");
    assert_eq!(client.put_component("film-grain", guest_bundle::FILM_GRAIN).expect(201)["kind"], "frame_effect");
    assert_eq!(client.put_component("letterbox", guest_bundle::LETTERBOX).expect(201)["kind"], "simple_effect");
    assert_eq!(client.put_component("storyboard", guest_bundle::STORYBOARD).expect(201)["kind"], "director");
}

fn content(client: &Client, video: &Value) -> Vec<u8> {
    let answer = client.get(&format!("/v1/videos/{}/content", video["id"].as_str().unwrap()));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "video/mp4");
    answer.bytes
}

#[test]
fn a_prompt_becomes_a_playable_video_through_hook_and_effects_and_its_time_is_on_the_ledger() {
    let server = Server::start();
    let client = server.client();
    deploy_samples(&client);
    let mut body = small("a crimson ball rising");
    body["prompt_hook"] = json!("prompt-style");
    body["effects"] = json!(["film-grain", "letterbox"]);
    let video = client.make(&body);
    assert_eq!(video["status"], "completed", "{video}");
    assert_eq!(video["progress"], 100);

    let dir = TempDir::new().unwrap();
    let path = file(&dir, "video.mp4");
    std::fs::write(&path, content(&client, &video)).unwrap();
    if let Some(probe) = ffprobe(&path) {
        let stream = &probe["streams"][0];
        assert_eq!(stream["codec_name"], "h264");
        assert_eq!(stream["nb_read_frames"], "2");
        assert_eq!(stream["r_frame_rate"], "8/1");
    }
    for (variant, magic) in [("thumbnail", &b"RIFF"[..]), ("spritesheet", &[0xff, 0xd8])] {
        let answer = client.get(&format!("/v1/videos/{}/content?variant={variant}", video["id"].as_str().unwrap()));
        assert!(answer.status == 200 && answer.bytes.starts_with(magic), "{variant}");
    }
    for field in ["diffuse_gpu_ms", "encode_cpu_ms", "effects_cpu_ms", "plan_cpu_ms", "stored_bytes"] {
        assert!(client.used(field) > 0, "{field} is on the ledger");
    }
}

#[test]
fn the_same_request_gives_the_same_bytes_and_another_seed_or_prompt_gives_others() {
    let server = Server::start();
    let client = server.client();
    let bytes = |prompt: &str, seed: u64| {
        let mut body = small(prompt);
        body["seed"] = json!(seed);
        content(&client, &client.make(&body))
    };
    let first = bytes("a red star moves up", 7);
    assert_eq!(first, bytes("a red star moves up", 7));
    assert_ne!(first, bytes("a red star moves up", 8));
    assert_ne!(first, bytes("a blue circle moves left", 7));
}

#[test]
fn a_range_of_a_video_can_be_fetched() {
    let server = Server::start();
    let client = server.client();
    let video = client.make(&small("a red star"));
    let whole = content(&client, &video);
    let path = format!("/v1/videos/{}/content", video["id"].as_str().unwrap());
    let part = client.send("GET", &path, &[("range", "bytes=4-11")], ());
    assert_eq!((part.status, &part.bytes[..]), (206, &whole[4..12]));
    assert_eq!(part.headers["content-range"].to_str().unwrap(), format!("bytes 4-11/{}", whole.len()));
    let beyond = format!("bytes={}-", whole.len());
    assert_eq!(client.send("GET", &path, &[("range", &beyond)], ()).status, 416);
}

#[test]
fn a_director_diffuses_twice_and_its_host_calls_are_billed() {
    let server = Server::start();
    let client = server.client();
    deploy_samples(&client);
    let mut body = small("two shots");
    body["input"] = json!({ "shots": [{ "prompt": "a red star moves up", "frames": 3 }, { "prompt": "a blue circle", "frames": 3 }] });
    let video = client.post("/v1/functions/storyboard/invocations", &body).json();
    let video = client.wait(video["id"].as_str().expect("an id"));
    assert_eq!(video["status"], "completed", "{video}");
    assert!(client.used("diffuse_gpu_ms") > 0 && client.used("interpolate_gpu_ms") > 0);
    assert!(client.used("effects_cpu_ms") > 0, "the director's own CPU time");
}

#[test]
fn lists_page_in_order_and_a_deleted_video_is_gone() {
    let server = Server::start();
    let client = server.client();
    let ids: Vec<String> =
        (0..3).map(|_| client.make(&small("a red star"))["id"].as_str().unwrap().to_owned()).collect();
    let page = client.get("/v1/videos?limit=2&order=asc").expect(200);
    assert_eq!((page["first_id"].as_str(), page["last_id"].as_str()), (Some(&*ids[0]), Some(&*ids[1])));
    assert_eq!(page["has_more"], true);
    let rest = client.get(&format!("/v1/videos?limit=2&order=asc&after={}", ids[1])).expect(200);
    assert_eq!((rest["data"][0]["id"].as_str(), rest["has_more"].as_bool()), (Some(&*ids[2]), Some(false)));
    let deleted = client.delete(&format!("/v1/videos/{}", ids[0])).expect(200);
    assert_eq!((&deleted["object"], &deleted["deleted"]), (&json!("video.deleted"), &json!(true)));
    assert_eq!(client.get(&format!("/v1/videos/{}", ids[0])).status, 404);
    assert_eq!(client.get(&format!("/v1/videos/{}/content", ids[0])).status, 404);
}

#[test]
fn a_cancelled_job_fails_as_cancelled_and_is_billed_only_for_what_ran() {
    let server = Server::start();
    let client = server.client();
    let body = json!({ "prompt": "a red star moves up", "steps": 200, "seed": 1 });
    let job = client.post("/v1/videos", &body).expect(200);
    let id = job["id"].as_str().unwrap();
    while client.get(&format!("/v1/videos/{id}")).expect(200)["status"] == "queued" {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    client.post(&format!("/v1/videos/{id}/cancel"), &json!({})).expect(200);
    let video = client.wait(id);
    assert_eq!((&video["status"], &video["error"]["code"]), (&json!("failed"), &json!("cancelled")));
    let billed = client.gpu_ms();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(client.gpu_ms(), billed, "nothing is billed after the end");
}
