use crate::harness::{Api, tenant};
use axum::body::Body;
use control_plane::{JobState, JobStore};

/// Longer than one read of the server, and no two neighbouring bytes alike.
fn long_video() -> Vec<u8> {
    (0..700_000_u32).map(|n| (n % 251) as u8).collect()
}

#[tokio::test]
async fn the_whole_file_and_each_preview_are_served_with_their_type() {
    let api = Api::new().await;
    let video = long_video();
    let path = format!("/v1/videos/{}/content", api.completed(&video).await);
    let whole = api.get(&path, &api.alice).await;
    assert_eq!((whole.status, whole.header("content-type")), (200, "video/mp4"));
    assert_eq!((whole.header("accept-ranges"), whole.header("content-length")), ("bytes", "700000"));
    assert!(whole.bytes == video);
    for (variant, kind, bytes) in [
        ("video", "video/mp4", &video[..]),
        ("thumbnail", "image/webp", b"RIFF"),
        ("spritesheet", "image/jpeg", &[0xff, 0xd8]),
    ] {
        let answer = api.get(&format!("{path}?variant={variant}"), &api.alice).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, kind), "{variant}");
        assert!(answer.bytes == bytes, "{variant}");
    }
}

#[tokio::test]
async fn ranges_are_exact_at_every_edge() {
    let api = Api::new().await;
    let video = long_video();
    let path = format!("/v1/videos/{}/content", api.completed(&video).await);
    for (range, expected) in [
        ("bytes=0-0", 0..1),
        ("bytes=4-11", 4..12),
        ("bytes=262143-262144", 262_143..262_145),
        ("bytes=100-599999", 100..600_000),
        ("bytes=699999-", 699_999..700_000),
        ("bytes=-1", 699_999..700_000),
        ("bytes=0-9999999", 0..700_000),
    ] {
        let part = api.send("GET", &path, &api.alice, &[("range", range)], Body::empty()).await;
        let content_range = format!("bytes {}-{}/700000", expected.start, expected.end - 1);
        assert_eq!((part.status, part.header("content-range")), (206, content_range.as_str()), "{range}");
        assert_eq!(part.header("content-length"), expected.len().to_string());
        assert!(part.bytes == video[expected], "{range}");
    }
    for range in ["bytes=700000-", "bytes=-0"] {
        let beyond = api.send("GET", &path, &api.alice, &[("range", range)], Body::empty()).await;
        assert_eq!((beyond.status, beyond.header("content-range")), (416, "bytes */700000"), "{range}");
    }
    for range in ["bytes=a-b", "lines=1-2", "bytes=1-2,4-5"] {
        assert_eq!(api.send("GET", &path, &api.alice, &[("range", range)], Body::empty()).await.status, 200, "{range}");
    }
}

#[tokio::test]
async fn a_validator_saves_the_transfer_and_guards_a_resumed_one() {
    let api = Api::new().await;
    let path = format!("/v1/videos/{}/content", api.completed(b"0123456789").await);
    let etag = api.get(&path, &api.alice).await.header("etag").to_owned();
    let unchanged = api.send("GET", &path, &api.alice, &[("if-none-match", &etag)], Body::empty()).await;
    assert_eq!((unchanged.status, unchanged.bytes.len()), (304, 0));
    for (validator, status) in [(etag.as_str(), 206), ("\"other\"", 200)] {
        let headers = [("range", "bytes=2-4"), ("if-range", validator)];
        assert_eq!(api.send("GET", &path, &api.alice, &headers, Body::empty()).await.status, status);
    }
}

#[tokio::test]
async fn a_job_without_a_video_has_no_content() {
    let api = Api::new().await;
    let id = api.queued().await;
    let path = format!("/v1/videos/{id}/content");
    let early = api.get(&path, &api.alice).await;
    assert_eq!((early.status, early.error().1.as_str(), early.header("x-should-retry")), (409, "no_content", "false"));
    api.post(&format!("/v1/videos/{id}/cancel"), &api.alice, &serde_json::json!({})).await.expect(200);
    assert_eq!(api.get(&path, &api.alice).await.status, 409);
}

#[tokio::test]
async fn a_fault_of_the_host_is_told_without_its_reason() {
    let api = Api::new().await;
    let id = api.completed(b"0123456789").await;
    let job = api.platform.jobs.get(&tenant("alice"), &id.parse().unwrap()).await.unwrap().unwrap();
    let JobState::Completed(stored) = job.state else { panic!("{:?}", job.state) };
    api.platform.objects.delete(&stored.video).await.unwrap();
    let answer = api.get(&format!("/v1/videos/{id}/content"), &api.alice).await;
    let (message, code) = answer.error();
    assert_eq!((answer.status, code.as_str()), (500, "internal"));
    assert!(!message.contains(stored.video.as_str()) && !answer.header("x-request-id").is_empty(), "{message}");
}
