//! Agreement with ffmpeg, in both directions. Left out where ffmpeg is missing, unless `ZOETROPE_REQUIRE_FFMPEG` is set.

mod common;

use common::{decode, encode, have_ffmpeg, moving_shapes, psnr_db};
use media::VideoReader;
use pipeline::{Frame, FrameSize, Frames};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn file_of(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Runs ffmpeg from one file to another; false when this ffmpeg was built without the wanted encoder.
fn convert(from: &Path, options: &[&str], to: &Path) -> bool {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-y", "-i"]).arg(from).args(options).arg(to);
    command.status().unwrap().success()
}

fn probed(path: &Path) -> String {
    let entries = "stream=codec_name,pix_fmt,width,height,r_frame_rate,nb_frames,color_range,color_space,color_transfer,color_primaries:format=duration";
    let out = Command::new("ffprobe")
        .args(["-v", "error", "-show_entries", entries, "-of", "default=nw=1"])
        .arg(path)
        .output();
    let out = out.unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The file with the matrix of a phone held upright: a quarter turn clockwise.
fn rotated(mut mp4: Vec<u8>) -> Vec<u8> {
    const MATRIX_OFFSET: usize = 4 + 40;
    let matrix = [0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30].map(i32::to_be_bytes).concat();
    let header = mp4.windows(4).position(|kind| kind == b"tkhd").unwrap();
    assert_eq!(mp4[header + 4], 0, "a version 0 box");
    mp4[header + MATRIX_OFFSET..][..matrix.len()].copy_from_slice(&matrix);
    mp4
}

fn decoded_by_ffmpeg(path: &Path, size: FrameSize) -> Vec<Frame> {
    let out = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(path)
        .args(["-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
        .output();
    let out = out.unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout.chunks(size.rgb_bytes()).map(|rgb| Frame::new(size, rgb.to_vec()).unwrap()).collect()
}

fn worst_db(a: &[Frame], b: &[Frame]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| psnr_db(a, b)).fold(f64::INFINITY, f64::min)
}

#[test]
fn ffprobe_reads_exactly_what_was_written() {
    if !have_ffmpeg() {
        return;
    }
    let dir = TempDir::new().unwrap();
    for fps in [1, 24, 25, 60, 120] {
        let path = file_of(&dir, "clip.mp4", &encode(&moving_shapes(130, 98, 2 * fps, fps)));
        let found = probed(&path);
        let rate = format!("r_frame_rate={fps}/1");
        let frames = format!("nb_frames={}", 2 * fps);
        for expected in [
            "codec_name=h264",
            "pix_fmt=yuv420p",
            "width=130",
            "height=98",
            &rate,
            &frames,
            "duration=2.000000",
            "color_range=tv",
            "color_space=bt709",
            "color_transfer=bt709",
            "color_primaries=bt709",
        ] {
            assert!(found.lines().any(|line| line == expected), "{expected} at {fps} fps, got:\n{found}");
        }
    }
}

#[test]
fn ffmpeg_decodes_our_file_to_our_frames_and_colours() {
    if !have_ffmpeg() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let clip = moving_shapes(160, 120, 30, 24);
    let mp4 = encode(&clip);
    let theirs = decoded_by_ffmpeg(&file_of(&dir, "clip.mp4", &mp4), clip.frames[0].size());
    let (original, ours) = (worst_db(&clip.frames, &theirs), worst_db(&decode(mp4).frames, &theirs));
    // To our decoder only the rounding differs. To the original, 4:2:0 costs a small picture's edges their colour.
    assert!(ours >= 40.0 && original >= 30.0, "{ours:.1} dB to our decoder, {original:.1} dB to the original");
    let flat = FrameSize { width: 64, height: 64 };
    for colour in [[200, 30, 60], [20, 180, 240], [128, 128, 128]] {
        let frame = Frame::new(flat, colour.repeat(64 * 64)).unwrap();
        let path = file_of(&dir, "flat.mp4", &encode(&Frames { frames: vec![frame], fps: 24 }));
        let shown = decoded_by_ffmpeg(&path, flat).remove(0);
        let seen = &shown.rgb()[..3];
        let off = seen.iter().zip(colour).map(|(&a, b)| a.abs_diff(b)).max().unwrap();
        assert!(off <= 3, "{colour:?} is shown as {seen:?}");
    }
}

#[test]
fn b_frames_are_read_by_the_built_in_decoder_in_display_order() {
    if !have_ffmpeg() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let clip = moving_shapes(176, 144, 40, 25);
    let plain = file_of(&dir, "plain.mp4", &encode(&clip));
    let with_b = dir.path().join("b.mp4");
    if !convert(&plain, &["-c:v", "libx264", "-bf", "3", "-b-pyramid", "normal", "-g", "15", "-crf", "16"], &with_b) {
        return;
    }
    let reader = VideoReader::open(&with_b).unwrap();
    assert!(!reader.uses_ffmpeg());
    assert_eq!((reader.frame_count(), reader.fps().rounded()), (Some(40), 25));
    let frames = reader.read_all(1 << 30).unwrap().frames;
    let db = worst_db(&frames, &decoded_by_ffmpeg(&with_b, clip.frames[0].size()));
    assert!(db >= 40.0, "{db:.1} dB");
    for (index, frame) in frames.iter().enumerate() {
        let nearest =
            (0..40).max_by(|&a, &b| psnr_db(&clip.frames[a], frame).total_cmp(&psnr_db(&clip.frames[b], frame)));
        assert_eq!(nearest, Some(index));
    }
}

#[test]
fn other_containers_and_codecs_and_rotated_pictures_go_to_ffmpeg() {
    if !have_ffmpeg() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let clip = moving_shapes(96, 64, 24, 24);
    let plain = file_of(&dir, "plain.mp4", &encode(&clip));
    for (name, options) in [
        ("other.avi", &["-c:v", "mpeg4", "-q:v", "2"][..]),
        ("other.mkv", &["-c", "copy"]),
        ("fragmented.mp4", &["-c", "copy", "-movflags", "frag_keyframe+empty_moov"]),
        ("deep.mp4", &["-c:v", "libx264", "-pix_fmt", "yuv444p"]),
    ] {
        let path = dir.path().join(name);
        if !convert(&plain, options, &path) {
            continue;
        }
        for reader in [VideoReader::open(&path), VideoReader::from_bytes(std::fs::read(&path).unwrap())] {
            let reader = reader.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(reader.uses_ffmpeg(), "{name}");
            assert_eq!(reader.fps().to_string(), "24", "{name}");
            let db = worst_db(&clip.frames, &reader.read_all(1 << 30).unwrap().frames);
            assert!(db >= 27.0, "{name}: {db:.1} dB");
        }
    }
    let turned = file_of(&dir, "turned.mp4", &rotated(encode(&clip)));
    let reader = VideoReader::open(&turned).unwrap();
    assert_eq!((reader.uses_ffmpeg(), reader.size()), (true, FrameSize { width: 64, height: 96 }));
}

#[test]
fn a_file_that_nobody_can_read_says_what_to_send() {
    let message = VideoReader::from_bytes(b"this is not a video".to_vec()).err().unwrap().to_string();
    assert!(message.contains("not an MP4 file") && message.contains("H.264 MP4"), "{message}");
}

#[test]
fn a_playlist_cannot_make_ffmpeg_open_other_files() {
    if !have_ffmpeg() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let secret = file_of(&dir, "secret.mp4", &encode(&moving_shapes(64, 64, 5, 5)));
    let list = format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", secret.display());
    assert!(VideoReader::open(&file_of(&dir, "list.m3u8", list.as_bytes())).is_err());
    let concat = format!("ffconcat version 1.0\nfile '{}'\n", secret.file_name().unwrap().to_str().unwrap());
    assert!(VideoReader::open(&file_of(&dir, "list.ffconcat", concat.as_bytes())).is_err());
}
