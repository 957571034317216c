//! Frames in, an MP4 file out.

use super::colour::Encoding;
use super::h264::H264Encoder;
use super::mux::Mp4Muxer;
use super::{ENCODED_SIDES_PX_MAX, FrameRate, VideoError};
use pipeline::{Frame, FrameSize, Frames, limits};
use std::ops::ControlFlow;

/// How a video is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeSettings {
    quantizer: u8,
    intra_period_ms: u32,
}

impl Default for EncodeSettings {
    /// Quantizer 22: no visible loss on drawn pictures. An intra frame every 2 s: players seek to those.
    fn default() -> Self {
        Self { quantizer: 22, intra_period_ms: 2000 }
    }
}

impl EncodeSettings {
    /// Smallest quantizer that the encoder keeps to.
    pub const QUANTIZER_MIN: u8 = 12;
    /// Largest quantizer of H.264.
    pub const QUANTIZER_MAX: u8 = 51;

    /// Sets H.264's quantizer, clamped to what the encoder can do. Six more halve the bytes, roughly.
    #[must_use]
    pub fn with_quantizer(mut self, quantizer: u8) -> Self {
        self.quantizer = quantizer.clamp(Self::QUANTIZER_MIN, Self::QUANTIZER_MAX);
        self
    }

    /// Sets the longest time between two intra frames.
    #[must_use]
    pub fn with_intra_period_ms(mut self, intra_period_ms: u32) -> Self {
        self.intra_period_ms = intra_period_ms;
        self
    }

    pub(super) fn quantizer(self) -> u8 {
        self.quantizer
    }

    pub(super) fn intra_period_frames(self, fps: FrameRate) -> u32 {
        (f64::from(self.intra_period_ms) / 1000.0 * fps.as_f64()).round().max(1.0) as u32
    }
}

/// Encodes frame by frame: what it holds is the compressed video, never the frames.
pub struct Mp4Encoder {
    fps: FrameRate,
    settings: EncodeSettings,
    colours: Encoding,
    stream: Option<(FrameSize, H264Encoder)>,
    planes: Vec<u8>,
    muxer: Mp4Muxer,
    frame_count: u32,
}

impl Mp4Encoder {
    /// An encoder for frames at `fps`, between 1 and [`limits::FPS_MAX`] a second.
    pub fn new(fps: FrameRate, settings: EncodeSettings) -> Result<Self, VideoError> {
        if !(1.0..=f64::from(limits::FPS_MAX)).contains(&fps.as_f64()) {
            return Err(VideoError::FrameRate(fps));
        }
        Ok(Self {
            fps,
            settings,
            colours: Encoding::bt709(),
            stream: None,
            planes: Vec::new(),
            muxer: Mp4Muxer::new(fps),
            frame_count: 0,
        })
    }

    /// Adds the next frame. All frames have the first one's size.
    pub fn push(&mut self, frame: &Frame) -> Result<(), VideoError> {
        let size = frame.size();
        if self.stream.is_none() {
            check_size(size)?;
            self.planes = vec![0; size.rgb_bytes() / 2];
            self.stream = Some((size, H264Encoder::new(size, self.fps, self.settings)?));
        }
        let (expected, encoder) = self.stream.as_mut().ok_or(VideoError::Empty)?;
        if size != *expected {
            return Err(VideoError::UnevenSize { index: self.frame_count, found: size, expected: *expected });
        }
        self.colours.encode(frame.rgb(), size, &mut self.planes);
        self.muxer.push(&encoder.encode(&self.planes, size)?)?;
        self.frame_count += 1;
        Ok(())
    }

    /// Frames so far.
    pub fn frame_count(&self) -> u32 {
        self.frame_count
    }

    /// The MP4 file.
    pub fn finish(self) -> Result<Vec<u8>, VideoError> {
        self.muxer.finish()
    }
}

fn check_size(size: FrameSize) -> Result<(), VideoError> {
    let (long_max, short_max) = ENCODED_SIDES_PX_MAX;
    let (long, short) = (size.width.max(size.height), size.width.min(size.height));
    let even = long % 2 == 0 && short % 2 == 0;
    if even && short >= limits::FRAME_SIDE_PX_MIN && short <= short_max && long <= long_max {
        return Ok(());
    }
    Err(VideoError::Size { size })
}

/// Encodes all of `frames`. After each frame `on_frame` hears how many of how many are done, and may stop the work
/// with [`ControlFlow::Break`], which ends in [`VideoError::Cancelled`].
pub fn encode_mp4(
    frames: &Frames,
    settings: EncodeSettings,
    mut on_frame: impl FnMut(u32, u32) -> ControlFlow<()>,
) -> Result<Vec<u8>, VideoError> {
    let fps = FrameRate::per_second(frames.fps).ok_or(VideoError::Empty)?;
    let mut encoder = Mp4Encoder::new(fps, settings)?;
    let total = frames.frames.len() as u32;
    for frame in &frames.frames {
        encoder.push(frame)?;
        if on_frame(encoder.frame_count(), total).is_break() {
            return Err(VideoError::Cancelled);
        }
    }
    encoder.finish()
}
