//! Pixels as the stages exchange them: 8-bit RGB, rows from the top, no padding.

use crate::error::{StageError, StageResult};
use crate::limits;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FrameSize {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl FrameSize {
    /// A size within [`limits`]: each side even (4:2:0 video needs it) and no larger than the encoder takes.
    pub fn checked(width: u32, height: u32) -> StageResult<Self> {
        let (short, long) = (width.min(height), width.max(height));
        let is_even = width.is_multiple_of(2) && height.is_multiple_of(2);
        let fits = (limits::FRAME_SIDE_PX_MIN..=limits::FRAME_SHORT_SIDE_PX_MAX).contains(&short)
            && long <= limits::FRAME_SIDE_PX_MAX;
        if is_even && fits {
            return Ok(Self { width, height });
        }
        Err(StageError::invalid(
            "size",
            format!(
                "{width}x{height} is not possible: both sides must be even, at least {} and at most {}x{} pixels (lying \
                 or standing), like 512x512",
                limits::FRAME_SIDE_PX_MIN,
                limits::FRAME_SIDE_PX_MAX,
                limits::FRAME_SHORT_SIDE_PX_MAX
            ),
        ))
    }

    /// Bytes of one RGB frame.
    pub const fn rgb_bytes(self) -> usize {
        self.width as usize * self.height as usize * 3
    }
}

impl fmt::Display for FrameSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl FromStr for FrameSize {
    type Err = StageError;
    fn from_str(text: &str) -> StageResult<Self> {
        let sides = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
        let (width, height) = sides.ok_or_else(|| {
            StageError::invalid("size", "write the size as WIDTHxHEIGHT in pixels, like 512x512".to_owned())
        })?;
        Self::checked(width, height)
    }
}

/// One picture: `size.rgb_bytes()` bytes of RGB, row by row.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    size: FrameSize,
    rgb: Vec<u8>,
}

impl Frame {
    /// A frame of `rgb`; `None` when the bytes are not exactly `size.rgb_bytes()`.
    pub fn new(size: FrameSize, rgb: Vec<u8>) -> Option<Self> {
        (rgb.len() == size.rgb_bytes()).then_some(Self { size, rgb })
    }

    /// Width and height.
    pub fn size(&self) -> FrameSize {
        self.size
    }

    /// All pixels, row by row.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// All pixels, for change in place.
    pub fn rgb_mut(&mut self) -> &mut [u8] {
        &mut self.rgb
    }

    /// The pixels themselves.
    pub fn into_rgb(self) -> Vec<u8> {
        self.rgb
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({})", self.size)
    }
}

/// What the diffusion model makes: pictures at even distances in time. Not to be confused with a codec's intra frames.
#[derive(Debug, Clone)]
pub struct KeyFrames {
    /// At least one frame, all of one size.
    pub frames: Vec<Frame>,
}

/// A finished sequence.
#[derive(Debug, Clone)]
pub struct Frames {
    /// At least one frame, all of one size.
    pub frames: Vec<Frame>,
    /// Frames per second.
    pub fps: u32,
}

impl Frames {
    /// Length in milliseconds, rounded to the nearest.
    pub fn duration_ms(&self) -> u64 {
        let fps = u64::from(self.fps.max(1));
        (self.frames.len() as u64 * 1000 + fps / 2) / fps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_encoder_takes_are_refused_with_a_hint() {
        for bad in [
            "13x7",
            "0x0",
            "512",
            "512x",
            "x512",
            "-2x4",
            "513x512",
            "99999x2",
            "2880x2880",
            "4294967296x2",
            "512x512x3",
        ] {
            let error = bad.parse::<FrameSize>().unwrap_err().to_string();
            assert!(error.contains("like 512x512"), "{bad}: {error}");
        }
        assert_eq!("640x360".parse::<FrameSize>().unwrap().rgb_bytes(), 640 * 360 * 3);
    }

    #[test]
    fn a_frame_of_the_wrong_length_does_not_exist() {
        let size = FrameSize { width: 4, height: 2 };
        assert!(Frame::new(size, vec![0; 23]).is_none());
        assert!(Frame::new(size, vec![0; 24]).is_some());
    }
}
