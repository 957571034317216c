//! Reads videos frame by frame: the built-in decoder where it can, ffmpeg from the path where it cannot.

use super::demux::{H264Track, Source};
use super::ffmpeg::FfmpegReader;
use super::h264::H264Decoder;
use super::{FrameRate, VideoError};
use pipeline::{Frame, FrameSize};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Cursor, Write};
use std::path::Path;

/// An open video. Iterating decodes: one frame at a time lies in memory, in display order.
///
/// The built-in decoder takes progressive 8-bit 4:2:0 H.264 in MP4 or QuickTime, B-frames included. Everything else
/// (other codecs and containers, interlaced or rotated pictures, edit lists that cut) goes to ffmpeg, found on the
/// path; its frames come at a constant rate, cropped to even sides. After an error the iterator ends.
pub struct VideoReader {
    frames: Backend,
    first: Option<Frame>,
    size: FrameSize,
    fps: FrameRate,
    ended: bool,
    yielded: u32,
}

/// A whole video in memory.
#[derive(Debug, Clone)]
pub struct DecodedVideo {
    /// In display order, all of one size.
    pub frames: Vec<Frame>,
    /// Frames per second.
    pub fps: FrameRate,
}

enum Backend {
    BuiltIn(Box<BuiltIn>),
    Ffmpeg(FfmpegReader),
}

impl VideoReader {
    /// Opens a file and decodes its first frame.
    pub fn open(path: &Path) -> Result<Self, VideoError> {
        match BuiltIn::open(Box::new(BufReader::new(File::open(path)?))) {
            Ok((backend, first)) => Ok(Self::of_built_in(backend, first)),
            Err(reason) => Self::of_ffmpeg(FfmpegReader::open(path, reason)?),
        }
    }

    /// Opens a video in memory. If ffmpeg is needed the bytes are put into a temporary file first.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, VideoError> {
        // The bytes are kept for ffmpeg, which is asked only when the built-in decoder gave up.
        let bytes: std::sync::Arc<[u8]> = bytes.into();
        match BuiltIn::open(Box::new(Cursor::new(bytes.clone()))) {
            Ok((backend, first)) => Ok(Self::of_built_in(backend, first)),
            Err(reason) => {
                let mut file = tempfile::NamedTempFile::new()?;
                file.write_all(&bytes)?;
                let reader = FfmpegReader::open(file.path(), reason)?;
                Self::of_ffmpeg(reader.keeping(file.into_temp_path()))
            }
        }
    }

    fn of_built_in(backend: Box<BuiltIn>, first: Frame) -> Self {
        let (size, fps) = (first.size(), backend.track.fps);
        Self { frames: Backend::BuiltIn(backend), first: Some(first), size, fps, ended: false, yielded: 0 }
    }

    fn of_ffmpeg(mut reader: FfmpegReader) -> Result<Self, VideoError> {
        let first = reader.next_frame()?.ok_or(VideoError::Empty)?;
        let (size, fps) = (first.size(), reader.fps());
        Ok(Self { frames: Backend::Ffmpeg(reader), first: Some(first), size, fps, ended: false, yielded: 0 })
    }

    /// Size of every frame.
    pub fn size(&self) -> FrameSize {
        self.size
    }

    /// Frames per second.
    pub fn fps(&self) -> FrameRate {
        self.fps
    }

    /// Number of frames, where the file tells.
    pub fn frame_count(&self) -> Option<u32> {
        match &self.frames {
            Backend::BuiltIn(built_in) => Some(built_in.track.sample_count()),
            Backend::Ffmpeg(_) => None,
        }
    }

    /// Whether ffmpeg does the decoding.
    pub fn uses_ffmpeg(&self) -> bool {
        matches!(self.frames, Backend::Ffmpeg(_))
    }

    /// Reads the whole video; `TooLong` as soon as its raw frames need more than `bytes_max`.
    pub fn read_all(self, bytes_max: u64) -> Result<DecodedVideo, VideoError> {
        let fps = self.fps;
        let mut frames = Vec::new();
        let mut bytes = 0_u64;
        for frame in self {
            let frame = frame?;
            bytes += frame.rgb().len() as u64;
            if bytes > bytes_max {
                return Err(VideoError::TooLong(bytes_max));
            }
            frames.push(frame);
        }
        Ok(DecodedVideo { frames, fps })
    }

    fn next_frame(&mut self) -> Result<Option<Frame>, VideoError> {
        let frame = match (self.first.take(), &mut self.frames) {
            (Some(first), _) => Some(first),
            (None, Backend::BuiltIn(built_in)) => built_in.next_frame()?,
            (None, Backend::Ffmpeg(ffmpeg)) => ffmpeg.next_frame()?,
        };
        if let Some(found) = frame.as_ref().map(Frame::size).filter(|size| *size != self.size) {
            return Err(VideoError::UnevenSize { index: self.yielded, found, expected: self.size });
        }
        Ok(frame)
    }
}

impl Iterator for VideoReader {
    type Item = Result<Frame, VideoError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let frame = self.next_frame().transpose();
        self.ended = !matches!(frame, Some(Ok(_)));
        self.yielded += u32::from(!self.ended);
        frame
    }
}

/// openh264 behind the demuxer.
struct BuiltIn {
    track: H264Track,
    decoder: H264Decoder,
    next_packet: u32,
    ready: VecDeque<Frame>,
    flushed: bool,
}

impl BuiltIn {
    /// The reader and its first frame: a stream that starts in the middle of something shows itself here.
    fn open(source: Box<dyn Source>) -> Result<(Box<Self>, Frame), String> {
        let track = H264Track::open(source)?;
        let mut decoder = H264Decoder::new(track.sequence.colour).map_err(|e| e.to_string())?;
        decoder.decode(&track.parameter_sets).map_err(|e| e.to_string())?;
        let mut reader = Box::new(Self { track, decoder, next_packet: 0, ready: VecDeque::new(), flushed: false });
        match reader.next_frame() {
            Ok(Some(first)) => Ok((reader, first)),
            Ok(None) => Err("no frame could be decoded".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn next_frame(&mut self) -> Result<Option<Frame>, VideoError> {
        while self.ready.is_empty() && self.next_packet < self.track.sample_count() {
            let packet = self.track.packet(self.next_packet)?;
            self.next_packet += 1;
            self.ready.extend(self.decoder.decode(&packet)?);
        }
        if self.ready.is_empty() && !self.flushed {
            self.flushed = true;
            self.ready.extend(self.decoder.finish()?);
        }
        Ok(self.ready.pop_front())
    }
}
