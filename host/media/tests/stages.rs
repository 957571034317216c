//! `encode_video` and `store` as the pipeline sees them.

mod common;

use common::{decode, moving_shapes};
use media::{FolderStore, JobStorage, VideoEncoder, decode_picture, encode_png};
use pipeline::{
    CancelToken, EncodeVideo, FrameSize, Frames, Lane, ObjectKey, Progress, Stage, StageContext, StageError, Store,
};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

#[derive(Default)]
struct Heard {
    reports: Mutex<Vec<(u32, u32)>>,
    cancel_at: Option<(u32, CancelToken)>,
}

impl Progress for Heard {
    fn report(&self, stage: Stage, done: u32, total: u32) {
        assert_eq!(stage, Stage::EncodeVideo);
        self.reports.lock().unwrap().push((done, total));
        if let Some((at, cancel)) = &self.cancel_at
            && *at == done
        {
            cancel.cancel();
        }
    }
}

fn context(heard: &Arc<Heard>) -> StageContext {
    StageContext { progress: heard.clone(), ..StageContext::unmetered(Lane(1)) }
}

fn key(text: &str) -> ObjectKey {
    text.parse().unwrap()
}

#[tokio::test]
async fn encode_video_returns_the_file_and_its_previews_and_meters_cpu_time() {
    let heard = Arc::<Heard>::default();
    let cx = context(&heard);
    let video = VideoEncoder::default().encode_video(&cx, moving_shapes(128, 96, 24, 12)).await.unwrap();
    assert_eq!((video.size, video.frame_count, video.duration_ms), (FrameSize { width: 128, height: 96 }, 24, 2000));
    assert_eq!(decode(video.mp4).frames.len(), 24);
    assert_eq!(decode_picture(&video.thumbnail).unwrap().size(), video.size);
    assert_eq!(decode_picture(&video.spritesheet).unwrap().size(), FrameSize { width: 4 * 128, height: 4 * 96 });
    assert_eq!(*heard.reports.lock().unwrap(), (1..=24).map(|done| (done, 24)).collect::<Vec<_>>());
    assert!(cx.meter.snapshot().encode_cpu_ms > 0);
}

#[tokio::test]
async fn a_cancelled_job_stops_within_a_frame_and_pays_for_what_ran() {
    let cancel = CancelToken::default();
    let heard = Arc::new(Heard { cancel_at: Some((5, cancel.clone())), ..Default::default() });
    let cx = StageContext { cancel, ..context(&heard) };
    let outcome = VideoEncoder::default().encode_video(&cx, moving_shapes(128, 96, 200, 24)).await;
    assert_eq!(outcome.err(), Some(StageError::Cancelled));
    assert_eq!(heard.reports.lock().unwrap().last(), Some(&(5, 200)));
    assert!(cx.meter.snapshot().encode_cpu_ms > 0);
    // Asked again, it does not even start.
    let again = VideoEncoder::default().encode_video(&cx, moving_shapes(128, 96, 2, 24)).await;
    assert_eq!((again.err(), heard.reports.lock().unwrap().len()), (Some(StageError::Cancelled), 5));
}

#[tokio::test]
async fn frames_that_cannot_be_encoded_are_the_requests_fault() {
    let cx = context(&Arc::default());
    let odd = VideoEncoder::default().encode_video(&cx, moving_shapes(33, 32, 2, 24)).await.err();
    assert!(matches!(odd, Some(StageError::InvalidArgument { field: "size", .. })), "{odd:?}");
    assert!(VideoEncoder::default().encode_video(&cx, Frames { frames: vec![], fps: 24 }).await.is_err());
}

#[tokio::test]
async fn store_puts_three_files_under_the_job_and_meters_their_bytes() {
    let dir = TempDir::new().unwrap();
    let objects = FolderStore::open(dir.path()).unwrap();
    let cx = context(&Arc::default());
    let video = VideoEncoder::default().encode_video(&cx, moving_shapes(64, 64, 8, 8)).await.unwrap();
    let mp4 = video.mp4.clone();
    let storage = JobStorage::new(objects.clone(), key("acme/job-1"));
    let stored = storage.store(&cx, video).await.unwrap();
    assert_eq!(objects.get(&stored.video).await.unwrap(), mp4);
    for (object, extension) in [(&stored.video, ".mp4"), (&stored.thumbnail, ".webp"), (&stored.spritesheet, ".jpg")] {
        assert!(object.as_str().starts_with("acme/job-1/") && object.as_str().ends_with(extension), "{object}");
    }
    assert_eq!((stored.frame_count, stored.duration_ms), (8, 1000));
    assert_eq!(stored.stored_bytes, objects.usage_bytes(Some(&key("acme"))).await.unwrap());
    assert_eq!(stored.stored_bytes, cx.meter.snapshot().stored_bytes);
}

#[tokio::test]
async fn given_pictures_are_read_from_the_own_tenant_only() {
    let dir = TempDir::new().unwrap();
    let objects = FolderStore::open(dir.path()).unwrap();
    let picture = moving_shapes(33, 21, 1, 1).frames.remove(0);
    let png = encode_png(&picture).unwrap();
    let ours = objects.put(&key("acme/uploads"), png.clone(), "png").await.unwrap();
    let theirs = objects.put(&key("acme-2/uploads"), png, "png").await.unwrap();
    let broken = objects.put(&key("acme/uploads"), b"GIF89a".to_vec(), "gif").await.unwrap();
    let storage = JobStorage::new(objects, key("acme/job-1"));
    assert_eq!(storage.given_image(&ours).await.unwrap(), picture);
    let refused = storage.given_image(&theirs).await.unwrap_err();
    assert_eq!(refused, storage.given_image(&key("acme/uploads/missing.png")).await.unwrap_err());
    assert_eq!(refused.code(), "invalid_argument");
    assert!(storage.given_image(&broken).await.unwrap_err().to_string().contains("send PNG, JPEG or WebP"));
}
