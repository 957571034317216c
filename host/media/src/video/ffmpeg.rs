//! ffmpeg as a child process, for what the built-in decoder does not read.
//!
//! Frames come through a pipe as PPM pictures, each with its own size, so nothing has to be believed beforehand.
//! ffmpeg may open the one file and nothing else: no network, and no playlist formats, which name further files.

use super::{FrameRate, VideoError};
use pipeline::{Frame, FrameSize, limits};
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use tempfile::TempPath;

const PROTOCOLS: &str = "file,pipe";
const CONTAINERS: &str =
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif,apng,webp_pipe,h264,hevc,ivf,yuv4mpegpipe";
/// 4:2:0 needs even sides; at most one row and one column are lost.
const CROP_TO_EVEN: &str = "crop=trunc(iw/2)*2:trunc(ih/2)*2:0:0";

/// A running ffmpeg.
pub(super) struct FfmpegReader {
    child: Child,
    pictures: BufReader<ChildStdout>,
    fps: FrameRate,
    built_in_reason: String,
    _file: Option<TempPath>,
}

impl FfmpegReader {
    /// Starts ffmpeg on a file that the built-in decoder refused for `built_in_reason`.
    pub(super) fn open(path: &Path, built_in_reason: String) -> Result<Self, VideoError> {
        let fps = probe_frame_rate(path, &built_in_reason)?;
        let mut child = Command::new("ffmpeg")
            .args(["-v", "error", "-nostdin", "-protocol_whitelist", PROTOCOLS, "-format_whitelist", CONTAINERS, "-i"])
            .arg(file_url(path))
            .args(["-map", "0:v:0", "-r", &fps.to_string(), "-vf", CROP_TO_EVEN])
            .args(["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| not_started(error, &built_in_reason))?;
        let pictures = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Ok(Self { child, pictures, fps, built_in_reason, _file: None })
    }

    /// Keeps the temporary file that ffmpeg reads until the reader is dropped.
    pub(super) fn keeping(mut self, file: TempPath) -> Self {
        self._file = Some(file);
        self
    }

    pub(super) fn fps(&self) -> FrameRate {
        self.fps
    }

    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, VideoError> {
        if let Some(frame) = read_ppm(&mut self.pictures)? {
            return Ok(Some(frame));
        }
        let status = self.child.wait()?;
        if status.success() {
            return Ok(None);
        }
        let ffmpeg = format!("ended with {status}");
        Err(VideoError::Unreadable { built_in: self.built_in_reason.clone(), ffmpeg })
    }
}

impl Drop for FfmpegReader {
    fn drop(&mut self) {
        // A reader that is dropped early must not leave a process behind; one that has ended cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A path that ffmpeg can take neither for an option nor for another protocol.
fn file_url(path: &Path) -> OsString {
    let mut url = OsString::from("file:");
    url.push(path);
    url
}

fn not_started(error: io::Error, built_in_reason: &str) -> VideoError {
    if error.kind() == io::ErrorKind::NotFound {
        VideoError::NeedsFfmpeg(built_in_reason.to_owned())
    } else {
        VideoError::Io(error)
    }
}

fn probe_frame_rate(path: &Path, built_in_reason: &str) -> Result<FrameRate, VideoError> {
    let Output { status, stdout, .. } = Command::new("ffprobe")
        .args(["-v", "error", "-protocol_whitelist", PROTOCOLS, "-format_whitelist", CONTAINERS])
        .args(["-select_streams", "v:0", "-show_entries", "stream=avg_frame_rate,r_frame_rate"])
        .args(["-of", "default=noprint_wrappers=1:nokey=1"])
        .arg(file_url(path))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|error| not_started(error, built_in_reason))?;
    // `r_frame_rate` comes first: exact where the rate is constant. The average is the better word when it is not.
    let rates: Vec<FrameRate> = String::from_utf8_lossy(&stdout).lines().filter_map(parse_rate).collect();
    let usable = |rate: &&FrameRate| (1.0..=f64::from(limits::FPS_MAX)).contains(&rate.as_f64());
    rates.iter().find(usable).copied().filter(|_| status.success()).ok_or_else(|| VideoError::Unreadable {
        built_in: built_in_reason.to_owned(),
        ffmpeg: "it finds no video stream".to_owned(),
    })
}

fn parse_rate(text: &str) -> Option<FrameRate> {
    let (numerator, denominator) = text.trim().split_once('/')?;
    FrameRate::new(numerator.parse().ok()?, denominator.parse().ok()?)
}

/// The next binary PPM of the stream; `None` at its end.
fn read_ppm(stream: &mut impl BufRead) -> Result<Option<Frame>, VideoError> {
    if stream.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let magic = ppm_word(stream)?;
    let [width, height, depth] =
        [ppm_word(stream)?, ppm_word(stream)?, ppm_word(stream)?].map(|word| word.parse::<u32>().ok());
    let sides = 1..=limits::FRAME_SIDE_PX_MAX;
    match (magic.as_str(), width, height, depth) {
        ("P6", Some(width), Some(height), Some(255)) if sides.contains(&width) && sides.contains(&height) => {
            let size = FrameSize { width, height };
            let mut rgb = vec![0; size.rgb_bytes()];
            stream.read_exact(&mut rgb)?;
            Ok(Frame::new(size, rgb))
        }
        ("P6", Some(width), Some(height), _) => {
            let max = limits::FRAME_SIDE_PX_MAX;
            Err(VideoError::Damaged(format!("frames of {width}x{height} are larger than {max} pixels on a side")))
        }
        _ => Err(VideoError::Damaged("ffmpeg sent something that is not a picture".into())),
    }
}

/// One word of a PPM header and the single white space after it.
fn ppm_word(stream: &mut impl BufRead) -> Result<String, VideoError> {
    const WORD_BYTES_MAX: usize = 10;
    let mut word = String::new();
    for byte in stream.by_ref().bytes() {
        match byte? {
            b' ' | b'\n' => return Ok(word),
            byte if byte.is_ascii_alphanumeric() && word.len() < WORD_BYTES_MAX => word.push(byte.into()),
            _ => break,
        }
    }
    Err(VideoError::Damaged("ffmpeg sent something that is not a picture".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_read_one_after_the_other() {
        let mut stream: &[u8] = b"P6\n2 1\n255\nabcdefP6\n1 1\n255\n\n\n\n";
        assert_eq!(read_ppm(&mut stream).unwrap().unwrap().rgb(), b"abcdef");
        assert_eq!(read_ppm(&mut stream).unwrap().unwrap().rgb(), b"\n\n\n");
        assert!(read_ppm(&mut stream).unwrap().is_none());
    }

    #[test]
    fn a_header_that_promises_too_much_is_refused_before_memory_is_taken() {
        for bad in
            [&b"P6\n99999 99999\n255\n"[..], b"P5\n1 1\n255\n", b"P6\n1 1\n65535\n", b"P6\n1", b"garbage that goes on"]
        {
            assert!(read_ppm(&mut &bad[..]).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_path_cannot_be_taken_for_an_option_or_a_protocol() {
        assert_eq!(file_url(Path::new("-i")), "file:-i");
        assert_eq!(file_url(Path::new("http://x/y")), "file:http://x/y");
    }
}
