//! `zoetrope:video/frames`: pictures behind handles.

use crate::bindings::interfaces::frames::{Host, HostFrameList};
use crate::bindings::wit::Size;
use crate::host::HostError;
use crate::state::{CallState, FrameReservation};
use pipeline::limits::FPS_MAX;
use pipeline::{Frame, FrameSize, StageError, StageResult};
use std::iter::repeat_n;
use std::ops::Range;
use std::sync::Arc;
use wasmtime::component::Resource;

/// Pictures of one size. A picture is copied when it is written to and another list holds it too.
#[derive(Debug)]
pub struct FrameList {
    size: FrameSize,
    fps: u32,
    frames: Vec<Arc<Frame>>,
    /// Counts every picture in full, shared or not: any of them may become its own.
    reservation: FrameReservation,
}

impl FrameList {
    /// A list of finished pictures, all of `size`.
    pub(crate) fn new(state: &CallState, size: FrameSize, fps: u32, frames: Vec<Frame>) -> StageResult<Self> {
        let reservation = reserve(state, size, frames.len() as u64)?;
        Ok(Self { size, fps, frames: frames.into_iter().map(Arc::new).collect(), reservation })
    }

    fn black(state: &CallState, size: FrameSize, count: u32, fps: u32) -> StageResult<Self> {
        let reservation = reserve(state, size, u64::from(count))?;
        let picture = Frame::new(size, vec![0; size.rgb_bytes()])
            .ok_or_else(|| StageError::Internal("a black frame has the wrong length".to_owned()))?;
        Ok(Self { size, fps, frames: repeat_n(Arc::new(picture), count as usize).collect(), reservation })
    }

    pub(crate) fn size(&self) -> FrameSize {
        self.size
    }

    pub(crate) fn fps(&self) -> u32 {
        self.fps
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    /// One picture, if there is such a one.
    pub(crate) fn picture(&self, index: u32) -> StageResult<&Arc<Frame>> {
        let count = self.frames.len();
        self.frames.get(index as usize).ok_or_else(|| no_picture(index, count))
    }

    /// Copies of all pictures.
    pub(crate) fn to_frames(&self) -> Vec<Frame> {
        self.frames.iter().map(|frame| Frame::clone(frame)).collect()
    }

    /// All pictures; those that nobody shares are not copied.
    pub(crate) fn into_frames(self) -> Vec<Frame> {
        self.frames.into_iter().map(Arc::unwrap_or_clone).collect()
    }

    fn row_bytes(&self) -> usize {
        self.size.width as usize * 3
    }

    /// Bytes of rows `first` to `first + count - 1`.
    fn rows(&self, first: u32, count: u32) -> StageResult<Range<usize>> {
        let end = u64::from(first) + u64::from(count);
        if end > u64::from(self.size.height) {
            let message = format!("{first} to {end} are outside of a picture with {} rows", self.size.height);
            return Err(StageError::invalid("rows", message));
        }
        Ok(first as usize * self.row_bytes()..end as usize * self.row_bytes())
    }
}

fn reserve(state: &CallState, size: FrameSize, count: u64) -> StageResult<FrameReservation> {
    let bytes = count.saturating_mul(size.rgb_bytes() as u64);
    state.frames.reserve(bytes).map_err(|free| {
        let message = format!("{count} pictures of {size} need {bytes} bytes; {free} are free for this job");
        StageError::invalid("frames", message)
    })
}

fn no_picture(index: u32, count: usize) -> StageError {
    StageError::invalid("index", format!("there is no picture {index}; the list has {count}"))
}

/// Checks a frame rate.
pub(crate) fn checked_fps(fps: u32) -> StageResult<u32> {
    if (1..=FPS_MAX).contains(&fps) {
        return Ok(fps);
    }
    Err(StageError::invalid("fps", format!("{fps} is out of range: between 1 and {FPS_MAX} frames a second")))
}

impl From<FrameSize> for Size {
    fn from(size: FrameSize) -> Self {
        Self { width: size.width, height: size.height }
    }
}

impl Host for CallState {}

impl HostFrameList for CallState {
    fn create(&mut self, size: Size, count: u32, fps: u32) -> Result<Resource<FrameList>, HostError> {
        let size = FrameSize::checked(size.width, size.height)?;
        let list = FrameList::black(self, size, count, checked_fps(fps)?)?;
        Ok(self.table.push(list)?)
    }

    fn count(&mut self, list: Resource<FrameList>) -> wasmtime::Result<u32> {
        Ok(self.table.get(&list)?.frames.len() as u32)
    }

    fn size(&mut self, list: Resource<FrameList>) -> wasmtime::Result<Size> {
        Ok(self.table.get(&list)?.size.into())
    }

    fn fps(&mut self, list: Resource<FrameList>) -> wasmtime::Result<u32> {
        Ok(self.table.get(&list)?.fps)
    }

    fn read_rows(
        &mut self,
        list: Resource<FrameList>,
        index: u32,
        first_row: u32,
        row_count: u32,
    ) -> Result<Vec<u8>, HostError> {
        let list = self.table.get(&list)?;
        let rows = list.rows(first_row, row_count)?;
        Ok(list.picture(index)?.rgb()[rows].to_vec())
    }

    fn write_rows(
        &mut self,
        list: Resource<FrameList>,
        index: u32,
        first_row: u32,
        pixels: Vec<u8>,
    ) -> Result<(), HostError> {
        let list = self.table.get_mut(&list)?;
        let row_bytes = list.row_bytes();
        if !pixels.len().is_multiple_of(row_bytes) {
            let message = format!("{} bytes are not whole rows of {row_bytes} bytes", pixels.len());
            return Err(StageError::invalid("pixels", message).into());
        }
        let rows = list.rows(first_row, u32::try_from(pixels.len() / row_bytes).unwrap_or(u32::MAX))?;
        let count = list.frames.len();
        let frame = list.frames.get_mut(index as usize).ok_or_else(|| no_picture(index, count))?;
        Arc::make_mut(frame).rgb_mut()[rows].copy_from_slice(&pixels);
        Ok(())
    }

    fn append(&mut self, list: Resource<FrameList>, other: Resource<FrameList>) -> Result<(), HostError> {
        let other = self.table.get(&other)?;
        let (size, frames) = (other.size, other.frames.clone());
        let reservation = reserve(self, size, frames.len() as u64)?;
        let list = self.table.get_mut(&list)?;
        if size != list.size {
            let message = format!("pictures of {size} cannot be appended to a list of {}", list.size);
            return Err(StageError::invalid("size", message).into());
        }
        list.reservation.absorb(reservation);
        list.frames.extend(frames);
        Ok(())
    }

    fn keep(&mut self, list: Resource<FrameList>, first: u32, count: u32) -> Result<(), HostError> {
        let list = self.table.get_mut(&list)?;
        let (end, all) = (u64::from(first) + u64::from(count), list.frames.len());
        if end > all as u64 {
            let message = format!("{first} to {end} are outside of a list with {all} pictures");
            return Err(StageError::invalid("count", message).into());
        }
        list.frames.truncate(end as usize);
        list.frames.drain(..first as usize);
        list.reservation.shrink_to(u64::from(count) * list.size.rgb_bytes() as u64);
        Ok(())
    }

    fn drop(&mut self, list: Resource<FrameList>) -> wasmtime::Result<()> {
        self.table.delete(list)?;
        Ok(())
    }
}
