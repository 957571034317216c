//! `encode_video` and `store`: this crate's two stations of the pipeline.

use crate::cpu_clock::CpuTimer;
use crate::objects::{FolderStore, ObjectError};
use crate::picture::{self, PictureError};
use crate::video::{EncodeSettings, VideoError, encode_mp4};
use async_trait::async_trait;
use pipeline::{
    EncodeVideo, EncodedVideo, Frame, Frames, ObjectKey, Stage, StageContext, StageError, StageResult, Store,
    StoredVideo, UsageField,
};
use std::ops::ControlFlow;

/// Encodes on a blocking thread. `encode_cpu_ms` is that thread's CPU time, rounded up, and is metered whether the
/// encoding ends well, fails or is cancelled. Cancellation is read after every frame.
#[derive(Debug, Clone, Copy, Default)]
pub struct VideoEncoder {
    settings: EncodeSettings,
}

impl VideoEncoder {
    /// An encoder with these settings.
    pub fn new(settings: EncodeSettings) -> Self {
        Self { settings }
    }
}

#[async_trait]
impl EncodeVideo for VideoEncoder {
    async fn encode_video(&self, cx: &StageContext, frames: Frames) -> StageResult<EncodedVideo> {
        cx.check_cancelled()?;
        let (settings, cx) = (self.settings, cx.clone());
        let encoding = tokio::task::spawn_blocking(move || {
            let _timer = CpuTimer::start(cx.meter.clone(), UsageField::EncodeCpuMs);
            encode(settings, &cx, &frames)
        });
        encoding.await.map_err(|stopped| StageError::Internal(format!("the video encoder stopped: {stopped}")))?
    }
}

fn encode(settings: EncodeSettings, cx: &StageContext, frames: &Frames) -> StageResult<EncodedVideo> {
    let first = frames.frames.first().ok_or(VideoError::Empty)?;
    let mp4 = encode_mp4(frames, settings, |done, total| {
        cx.progress.report(Stage::EncodeVideo, done, total);
        if cx.cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(EncodedVideo {
        mp4,
        thumbnail: picture::encode_webp_thumbnail(first).map_err(preview_error)?,
        spritesheet: picture::encode_jpeg_spritesheet(&frames.frames).map_err(preview_error)?,
        size: first.size(),
        frame_count: frames.frames.len() as u32,
        duration_ms: frames.duration_ms(),
    })
}

fn preview_error(error: PictureError) -> StageError {
    StageError::Internal(error.to_string())
}

/// One job's place in the object store.
#[derive(Debug, Clone)]
pub struct JobStorage {
    objects: FolderStore,
    prefix: ObjectKey,
}

impl JobStorage {
    /// Results are put under `prefix`: the tenant, then the job, so that deleting one job's results leaves every other
    /// job's alone. Given pictures are read from anywhere under the prefix's first part, the tenant, and nowhere else.
    pub fn new(objects: FolderStore, prefix: ObjectKey) -> Self {
        Self { objects, prefix }
    }

    fn is_ours(&self, object: &ObjectKey) -> bool {
        let tenant = |key: &ObjectKey| key.as_str().split('/').next().map(str::to_owned);
        tenant(object) == tenant(&self.prefix)
    }
}

#[async_trait]
impl Store for JobStorage {
    async fn store(&self, cx: &StageContext, video: EncodedVideo) -> StageResult<StoredVideo> {
        let put = async |bytes: Vec<u8>, extension| {
            let stored_bytes = bytes.len() as u64;
            let key = self.objects.put(&self.prefix, bytes, extension).await.map_err(store_error)?;
            // Each file is metered as soon as it lies there, so a failure at the next one still bills this one.
            cx.meter.add(UsageField::StoredBytes, stored_bytes);
            Ok::<_, StageError>((key, stored_bytes))
        };
        let (mp4, mp4_bytes) = put(video.mp4, "mp4").await?;
        let (thumbnail, thumbnail_bytes) = put(video.thumbnail, "webp").await?;
        let (spritesheet, spritesheet_bytes) = put(video.spritesheet, "jpg").await?;
        Ok(StoredVideo {
            video: mp4,
            thumbnail,
            spritesheet,
            stored_bytes: mp4_bytes + thumbnail_bytes + spritesheet_bytes,
            size: video.size,
            frame_count: video.frame_count,
            duration_ms: video.duration_ms,
        })
    }

    async fn given_image(&self, object: &ObjectKey) -> StageResult<Frame> {
        // Another tenant's object and one that is not there look the same from outside.
        let missing = || StageError::invalid("input_reference", "there is no such picture: upload it again");
        if !self.is_ours(object) {
            return Err(missing());
        }
        let bytes = match self.objects.get(object).await {
            Err(ObjectError::NotFound(_)) => return Err(missing()),
            other => other.map_err(store_error)?,
        };
        let decoding = tokio::task::spawn_blocking(move || picture::decode_picture(&bytes));
        let decoded = decoding.await.map_err(|stopped| StageError::Internal(format!("picture decoder: {stopped}")))?;
        decoded.map_err(|error| StageError::invalid("input_reference", error.to_string()))
    }
}

fn store_error(error: ObjectError) -> StageError {
    StageError::Internal(error.to_string())
}
