//! Video files: H.264 in MP4 out, any common video in.
//!
//! Written files are H.264 Constrained Baseline, which every player reads, at a fixed quantizer, 4:2:0, BT.709, limited
//! range. They name their colours twice: in the stream's VUI and in the container's `colr` box. The index comes first
//! (fast start), times are whole ticks of the frame rate, and nothing depends on the clock: the same frames give the
//! same bytes.

mod colour;
mod demux;
mod encode;
mod ffmpeg;
mod h264;
mod mux;
mod read;
mod sps;

pub use encode::{EncodeSettings, Mp4Encoder, encode_mp4};
pub use read::{DecodedVideo, VideoReader};

use pipeline::{FrameSize, StageError, limits};
use std::fmt;
use thiserror::Error;

/// Largest sides that the H.264 encoder takes (level 5.2), lying or standing.
pub const ENCODED_SIDES_PX_MAX: (u32, u32) = (3840, 2160);

/// Why a video was not written or not read.
#[derive(Debug, Error)]
pub enum VideoError {
    /// A size that H.264 4:2:0 or the encoder does not take.
    #[error(
        "{size} cannot be encoded: both sides must be even, at least {min} and at most {long}x{short} pixels (lying or standing)",
        min = limits::FRAME_SIDE_PX_MIN,
        long = ENCODED_SIDES_PX_MAX.0,
        short = ENCODED_SIDES_PX_MAX.1
    )]
    Size {
        /// The size of the first frame.
        size: FrameSize,
    },
    /// A frame rate outside 1 to 120.
    #[error("{0} frames per second cannot be encoded: choose between 1 and {max}", max = limits::FPS_MAX)]
    FrameRate(FrameRate),
    /// A frame unlike the first.
    #[error("frame {index} is {found}, but the video is {expected}: all frames must be of one size")]
    UnevenSize {
        /// Which frame, from 0.
        index: u32,
        /// Its size.
        found: FrameSize,
        /// The size of the first.
        expected: FrameSize,
    },
    /// No frames.
    #[error("a video needs at least one frame")]
    Empty,
    /// The caller's progress function said stop.
    #[error("encoding was cancelled")]
    Cancelled,
    /// The encoder or the muxer failed.
    #[error("the video could not be encoded: {0}")]
    Encode(String),
    /// The file could not be read.
    #[error("the video file could not be read: {0}")]
    Io(#[from] std::io::Error),
    /// Not a video, or a broken one.
    #[error("the video is damaged or cut short: {0}")]
    Damaged(String),
    /// A video that the built-in decoder does not take, and there is no ffmpeg.
    #[error("the built-in decoder does not read this video ({0}): install ffmpeg, or convert it to H.264 MP4")]
    NeedsFfmpeg(String),
    /// ffmpeg is there and failed too.
    #[error("neither the built-in decoder ({built_in}) nor ffmpeg ({ffmpeg}) can read this video: send H.264 MP4")]
    Unreadable {
        /// Why the built-in decoder did not try.
        built_in: String,
        /// What ffmpeg said.
        ffmpeg: String,
    },
    /// More frames than memory should hold.
    #[error("the video is longer than {0} bytes of raw frames: cut it, or scale it down")]
    TooLong(u64),
}

impl From<VideoError> for StageError {
    fn from(error: VideoError) -> Self {
        match error {
            VideoError::Cancelled => Self::Cancelled,
            VideoError::Size { .. } => Self::invalid("size", error.to_string()),
            VideoError::FrameRate(_) => Self::invalid("fps", error.to_string()),
            other => Self::Internal(other.to_string()),
        }
    }
}

/// Frames per second as an exact fraction: 24/1, or 30000/1001.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRate {
    numerator: u32,
    denominator: u32,
}

impl FrameRate {
    /// The fraction in lowest terms; `None` when a part is zero.
    pub fn new(numerator: u32, denominator: u32) -> Option<Self> {
        Self::reduced(numerator.into(), denominator.into())
    }

    /// A whole number of frames per second.
    pub fn per_second(fps: u32) -> Option<Self> {
        Self::new(fps, 1)
    }

    fn reduced(numerator: u64, denominator: u64) -> Option<Self> {
        if numerator == 0 || denominator == 0 {
            return None;
        }
        let divisor = greatest_common_divisor(numerator, denominator);
        let (mut numerator, mut denominator) = (numerator / divisor, denominator / divisor);
        // A fraction too fine for 32 bits comes from odd time stamps; half its precision is still far below a tick.
        while numerator > u64::from(u32::MAX) || denominator > u64::from(u32::MAX) {
            (numerator, denominator) = (numerator / 2, denominator / 2);
        }
        (numerator > 0 && denominator > 0)
            .then_some(Self { numerator: numerator as u32, denominator: denominator as u32 })
    }

    /// Upper part of the fraction.
    pub fn numerator(self) -> u32 {
        self.numerator
    }

    /// Lower part of the fraction.
    pub fn denominator(self) -> u32 {
        self.denominator
    }

    /// Frames per second.
    pub fn as_f64(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator)
    }

    /// The nearest whole number of frames per second, at least 1.
    pub fn rounded(self) -> u32 {
        (self.as_f64().round() as u32).max(1)
    }

    /// This rate times `factor`, exactly; `None` when it no longer fits.
    pub fn times(self, factor: u32) -> Option<Self> {
        Self::reduced(u64::from(self.numerator) * u64::from(factor), self.denominator.into())
    }

    /// Length of `frames` frames in milliseconds, rounded to the nearest.
    pub fn duration_ms(self, frames: u32) -> u64 {
        let (ticks, per_ms) = (u128::from(frames) * u128::from(self.denominator) * 1000, u128::from(self.numerator));
        ((ticks + per_ms / 2) / per_ms) as u64
    }
}

impl fmt::Display for FrameRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.denominator {
            1 => write!(f, "{}", self.numerator),
            denominator => write!(f, "{}/{denominator}", self.numerator),
        }
    }
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_rates_are_exact_fractions() {
        let ntsc = FrameRate::new(60_000, 2002).unwrap();
        assert_eq!((ntsc.numerator(), ntsc.denominator(), ntsc.rounded()), (30_000, 1001, 30));
        assert_eq!(ntsc.times(2).unwrap().to_string(), "60000/1001");
        assert_eq!(ntsc.duration_ms(300), 10_010);
        assert!(FrameRate::new(0, 1).is_none() && FrameRate::new(1, 0).is_none());
        assert_eq!(FrameRate::new(u32::MAX, 1).unwrap().times(u32::MAX), None);
    }
}
