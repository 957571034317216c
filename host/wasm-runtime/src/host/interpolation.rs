//! `zoetrope:video/interpolation`.

use crate::bindings::interfaces::interpolation::Host;
use crate::bindings::wit::Size;
use crate::host::HostError;
use crate::host::frames::{FrameList, checked_fps};
use crate::state::CallState;
use pipeline::limits::{DURATION_MS_MAX, FPS_MAX};
use pipeline::{FrameSize, KeyFrames, StageError, StageResult};
use wasmtime::component::Resource;

/// Frames of the longest video at the highest rate.
const FRAME_COUNT_MAX: u32 = DURATION_MS_MAX / 1000 * FPS_MAX;

impl Host for CallState {
    async fn in_between(
        &mut self,
        source: Resource<FrameList>,
        frame_count: u32,
        fps: u32,
        size: Option<Size>,
    ) -> Result<Resource<FrameList>, HostError> {
        let fps = checked_fps(fps)?;
        let source = self.table.get(&source)?;
        let size = match size {
            Some(size) => FrameSize::checked(size.width, size.height)?,
            None => source.size(),
        };
        self.check_room(source, frame_count, size)?;
        let key_frames = KeyFrames { frames: source.to_frames() };
        let engine = self.engine.clone();
        let made = engine.call(async {
            engine.cx.check_may_continue()?;
            engine.services.interpolate.interpolate(&engine.cx, key_frames, frame_count, fps, size).await
        });
        let frames = made.await?.frames;
        let list = FrameList::new(self, size, fps, frames)?;
        Ok(self.table.push(list)?)
    }
}

impl CallState {
    /// Refuses what could not be held afterwards, before anyone works on it.
    fn check_room(&self, source: &FrameList, frame_count: u32, size: FrameSize) -> StageResult<()> {
        if source.len() == 0 {
            return Err(StageError::invalid("source", "the list has no pictures"));
        }
        if !(1..=FRAME_COUNT_MAX).contains(&frame_count) {
            let message = format!("{frame_count} is out of range: between 1 and {FRAME_COUNT_MAX} frames");
            return Err(StageError::invalid("frame_count", message));
        }
        let bytes = u64::from(frame_count) * size.rgb_bytes() as u64;
        self.frames.reserve(bytes).map(drop).map_err(|free| {
            let message = format!("{frame_count} frames of {size} need {bytes} bytes; {free} are free for this job");
            StageError::invalid("frame_count", message)
        })
    }
}
