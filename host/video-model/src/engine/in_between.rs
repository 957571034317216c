//! `interpolate`: key frames become frames, one per step.

use super::internal;
use crate::device_queue::Session;
use crate::interpolation::{Interpolator, Moment, PreparedFrame, moments};
use crate::picture;
use pipeline::{Frame, FrameSize, KeyFrames, StageError, StageResult, limits};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// A whole sequence at its finished size.
pub(super) struct Sequence {
    interpolator: Arc<Interpolator>,
    key_frames: Vec<Frame>,
    moments: Vec<Moment>,
    size: FrameSize,
    /// The two key frames around the last moment, with their numbers.
    prepared: Vec<(usize, PreparedFrame)>,
    frames: Vec<Frame>,
}

impl Sequence {
    pub(super) fn new(
        interpolator: Arc<Interpolator>,
        key_frames: KeyFrames,
        frame_count: u32,
        size: FrameSize,
    ) -> StageResult<Self> {
        let key_frames = key_frames.frames;
        let native = key_frames
            .first()
            .map(Frame::size)
            .ok_or_else(|| StageError::invalid("key_frames", "there is no key frame to make frames from"))?;
        if key_frames.iter().any(|frame| frame.size() != native) {
            return Err(StageError::invalid("key_frames", "all key frames must have one size"));
        }
        let bytes = u64::from(frame_count) * size.rgb_bytes() as u64;
        if frame_count == 0 || bytes > limits::JOB_FRAMES_BYTES_MAX {
            let message = format!("{frame_count} frames of {size} are not possible; at least one, and not too many");
            return Err(StageError::invalid("frame_count", message));
        }
        let moments = moments(key_frames.len(), frame_count as usize);
        let frames = Vec::with_capacity(moments.len());
        Ok(Self { interpolator, key_frames, moments, size, prepared: Vec::new(), frames })
    }

    fn frame_at(&mut self, moment: Moment) -> StageResult<Frame> {
        if moment.t == 0.0 {
            return Ok(self.key_frames[moment.index].clone());
        }
        let around = [moment.index, moment.index + 1];
        self.prepared.retain(|(index, _)| around.contains(index));
        for index in around {
            if self.prepared.iter().all(|(i, _)| *i != index) {
                let prepared = self.interpolator.prepare(&self.key_frames[index]).map_err(internal)?;
                self.prepared.push((index, prepared));
            }
        }
        self.prepared.sort_by_key(|(index, _)| *index);
        let [(_, first), (_, last)] = &self.prepared[..] else {
            return Err(StageError::Internal("interpolation lost a key frame".to_owned()));
        };
        self.interpolator.between(first, last, moment.t).map_err(internal)
    }
}

impl Session for Sequence {
    type Output = Vec<Frame>;

    fn steps(&self) -> u32 {
        self.moments.len() as u32
    }

    fn cost_class(&self) -> u64 {
        cost_class(self.key_frames[0].size(), self.size)
    }

    fn step(&mut self) -> StageResult<Option<Vec<Frame>>> {
        let moment = self.moments[self.frames.len()];
        let frame = self.frame_at(moment)?;
        self.frames.push(picture::contain(&frame, self.size)?);
        let done = self.frames.len() == self.moments.len();
        Ok(done.then(|| std::mem::take(&mut self.frames)))
    }
}

/// The frames between one pair of pictures.
pub(super) struct Between {
    interpolator: Arc<Interpolator>,
    pair: [Frame; 2],
    times: Vec<f32>,
    prepared: Option<[PreparedFrame; 2]>,
    frames: Vec<Frame>,
}

impl Between {
    /// `times` is not empty.
    pub(super) fn new(
        interpolator: Arc<Interpolator>,
        first: Frame,
        last: Frame,
        times: Vec<f32>,
    ) -> StageResult<Self> {
        if first.size() != last.size() {
            let message = format!("pictures of {} and {} have no frames between them", first.size(), last.size());
            return Err(StageError::invalid("key_frames", message));
        }
        if let Some(bad) = times.iter().find(|t| !(0.0..=1.0).contains(*t)) {
            return Err(StageError::invalid("times", format!("{bad} is not between 0 and 1")));
        }
        Ok(Self { interpolator, pair: [first, last], times, prepared: None, frames: Vec::new() })
    }
}

impl Session for Between {
    type Output = Vec<Frame>;

    fn steps(&self) -> u32 {
        self.times.len() as u32
    }

    fn cost_class(&self) -> u64 {
        cost_class(self.pair[0].size(), self.pair[0].size())
    }

    fn step(&mut self) -> StageResult<Option<Vec<Frame>>> {
        let prepared = match self.prepared.take() {
            Some(prepared) => prepared,
            None => {
                let [first, last] = &self.pair;
                let prepare = |frame| self.interpolator.prepare(frame).map_err(internal);
                [prepare(first)?, prepare(last)?]
            }
        };
        let [first, last] = self.prepared.insert(prepared);
        let t = self.times[self.frames.len()];
        self.frames.push(self.interpolator.between(first, last, t).map_err(internal)?);
        let done = self.frames.len() == self.times.len();
        Ok(done.then(|| std::mem::take(&mut self.frames)))
    }
}

fn cost_class(from: FrameSize, to: FrameSize) -> u64 {
    let mut hasher = DefaultHasher::new();
    ("interpolate", from, to).hash(&mut hasher);
    hasher.finish()
}
