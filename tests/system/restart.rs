//! A killed server loses nothing and bills nothing twice.

use crate::harness::{Server, small};
use serde_json::json;
use std::time::Duration;

#[test]
fn a_job_that_was_running_when_the_server_was_killed_completes_after_the_restart_and_is_billed_once() {
    let mut server = Server::start();
    let body = json!({ "prompt": "a red star moves up", "steps": 30, "key_frames": 2, "seconds": "0.25", "fps": 8, "seed": 3 });
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(server.client().post("/v1/videos", &body).expect(200)["id"].as_str().unwrap().to_owned());
    }
    while server.client().get(&format!("/v1/videos/{}", ids[0])).expect(200)["status"] == "queued" {
        std::thread::sleep(Duration::from_millis(20));
    }
    server.kill_and_restart();
    let client = server.client();
    for id in &ids {
        assert_eq!(client.wait(id)["status"], "completed", "{id}");
    }
    let export = client.get("/v1/usage/export").expect(200);
    let records = export["data"].as_array().expect("records");
    for id in &ids {
        let of_job: Vec<_> = records.iter().filter(|record| record["job"] == id.as_str()).collect();
        assert_eq!(of_job.len(), 1, "one record a job: {export}");
    }
}

#[test]
fn a_stopped_server_exits_cleanly_and_keeps_its_videos() {
    let mut server = Server::start();
    let video = server.client().make(&small("a red star"));
    let path = format!("/v1/videos/{}/content", video["id"].as_str().unwrap());
    let before = server.client().get(&path).bytes;
    server.kill_and_restart();
    assert_eq!(server.client().get(&path).bytes, before);
    assert!(server.stop(), "SIGTERM ends it with success");
}
