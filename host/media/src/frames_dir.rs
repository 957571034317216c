//! Folders of numbered PNG frames: `frame_00001.png`, `frame_00002.png`, … .

use crate::picture::{PictureError, decode_picture, encode_png};
use pipeline::{Frame, FrameSize, limits};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a folder of frames was not read or written.
#[derive(Debug, Error)]
pub enum FramesDirError {
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// One file is not a picture.
    #[error("{}: {source}", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: PictureError,
    },
    /// Nothing to read.
    #[error("{}: no .png files whose names end in a number, like frame_00001.png", .0.display())]
    Empty(PathBuf),
    /// A frame of another size.
    #[error("{}: {found}, but the frames before it are {expected}: all frames must be of one size", path.display())]
    UnevenSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: FrameSize,
        /// The size of the first frame.
        expected: FrameSize,
    },
    /// More than memory should hold.
    #[error("{}: more than {} bytes of raw frames: convert them in parts", .0.display(), limits::JOB_FRAMES_BYTES_MAX)]
    TooMuch(PathBuf),
}

/// Writes frames one by one, so that a long video never has to lie in memory.
#[derive(Debug)]
pub struct FramesDirWriter {
    dir: PathBuf,
    written: u32,
}

impl FramesDirWriter {
    /// Makes the folder if needed. Frames that an earlier run left there are removed, or a shorter sequence would end
    /// with them; other files stay.
    pub fn create(dir: &Path) -> Result<Self, FramesDirError> {
        fs::create_dir_all(dir).map_err(|source| io_error(dir, source))?;
        for path in listing(dir)? {
            if path.file_name().is_some_and(|name| is_ours(&name.to_string_lossy())) {
                fs::remove_file(&path).map_err(|source| io_error(&path, source))?;
            }
        }
        Ok(Self { dir: dir.to_owned(), written: 0 })
    }

    /// Writes the next frame and returns its path.
    pub fn push(&mut self, frame: &Frame) -> Result<PathBuf, FramesDirError> {
        let path = self.dir.join(format!("frame_{:05}.png", self.written + 1));
        let png = encode_png(frame).map_err(|source| FramesDirError::Picture { path: path.clone(), source })?;
        fs::write(&path, png).map_err(|source| io_error(&path, source))?;
        self.written += 1;
        Ok(path)
    }
}

/// Writes all of `frames` as numbered PNG files.
pub fn write_png_dir(dir: &Path, frames: &[Frame]) -> Result<(), FramesDirError> {
    let mut writer = FramesDirWriter::create(dir)?;
    frames.iter().try_for_each(|frame| writer.push(frame).map(drop))
}

/// Reads every `.png` whose name ends in a number, in the order of those numbers (`2` before `10`).
pub fn read_frames_dir(dir: &Path) -> Result<Vec<Frame>, FramesDirError> {
    let mut numbered: Vec<(u64, PathBuf)> =
        listing(dir)?.into_iter().filter_map(|path| Some((frame_number(&path)?, path))).collect();
    numbered.sort();
    let mut frames: Vec<Frame> = Vec::new();
    let mut bytes = 0_u64;
    for (_, path) in numbered {
        let file = fs::read(&path).map_err(|source| io_error(&path, source))?;
        let frame = decode_picture(&file).map_err(|source| FramesDirError::Picture { path: path.clone(), source })?;
        if let Some(first) = frames.first().filter(|first| first.size() != frame.size()) {
            return Err(FramesDirError::UnevenSize { path, found: frame.size(), expected: first.size() });
        }
        bytes += frame.rgb().len() as u64;
        if bytes > limits::JOB_FRAMES_BYTES_MAX {
            return Err(FramesDirError::TooMuch(dir.to_owned()));
        }
        frames.push(frame);
    }
    if frames.is_empty() { Err(FramesDirError::Empty(dir.to_owned())) } else { Ok(frames) }
}

fn listing(dir: &Path) -> Result<Vec<PathBuf>, FramesDirError> {
    let entries = fs::read_dir(dir).and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect());
    entries.map_err(|source| io_error(dir, source))
}

fn is_ours(name: &str) -> bool {
    let digits = name.strip_prefix("frame_").and_then(|rest| rest.strip_suffix(".png"));
    digits.is_some_and(|digits| digits.len() >= 5 && digits.bytes().all(|b| b.is_ascii_digit()))
}

fn frame_number(path: &Path) -> Option<u64> {
    if !path.extension()?.eq_ignore_ascii_case("png") {
        return None;
    }
    let stem = path.file_stem()?.to_str()?;
    let name = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    stem[name.len()..].parse().ok()
}

fn io_error(path: &Path, source: io::Error) -> FramesDirError {
    FramesDirError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(level: u8, width: u32) -> Frame {
        let size = FrameSize { width, height: 2 };
        Frame::new(size, vec![level; size.rgb_bytes()]).unwrap()
    }

    #[test]
    fn frames_come_back_in_order_and_without_loss() {
        let dir = tempfile::tempdir().unwrap();
        let frames: Vec<Frame> = (0..12).map(|level| grey(level, 3)).collect();
        write_png_dir(dir.path(), &frames).unwrap();
        assert_eq!(read_frames_dir(dir.path()).unwrap(), frames);
    }

    #[test]
    fn unpadded_numbers_are_sorted_as_numbers() {
        let dir = tempfile::tempdir().unwrap();
        for level in [10, 2, 1] {
            fs::write(dir.path().join(format!("shot{level}.png")), encode_png(&grey(level, 3)).unwrap()).unwrap();
        }
        fs::write(dir.path().join("notes.txt"), "not a frame").unwrap();
        assert_eq!(read_frames_dir(dir.path()).unwrap(), [grey(1, 3), grey(2, 3), grey(10, 3)]);
    }

    #[test]
    fn a_shorter_run_leaves_no_frames_of_a_longer_one_and_no_other_file_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("frame_notes.png"), "mine").unwrap();
        write_png_dir(dir.path(), &[grey(1, 3), grey(2, 3), grey(3, 3)]).unwrap();
        write_png_dir(dir.path(), &[grey(9, 3)]).unwrap();
        assert_eq!(read_frames_dir(dir.path()).unwrap(), [grey(9, 3)]);
        assert!(dir.path().join("frame_notes.png").exists());
    }

    #[test]
    fn mixed_sizes_and_empty_folders_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_frames_dir(dir.path()), Err(FramesDirError::Empty(_))));
        write_png_dir(dir.path(), &[grey(1, 3), grey(2, 4)]).unwrap();
        let message = read_frames_dir(dir.path()).unwrap_err().to_string();
        assert!(message.contains("frame_00002.png") && message.contains("4x2"), "{message}");
    }
}
