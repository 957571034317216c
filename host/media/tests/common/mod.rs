//! Clips, distances and box walking that several test files need.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use pipeline::{Frame, FrameSize, Frames};
use std::ops::ControlFlow;
use std::process::Command;

/// A slow gradient with a disc and a box that move over it: flat areas, edges and motion.
pub fn moving_shapes(width: u32, height: u32, count: u32, fps: u32) -> Frames {
    Frames { frames: (0..count).map(|t| shapes_at(width, height, f64::from(t) / f64::from(count))).collect(), fps }
}

fn shapes_at(width: u32, height: u32, time: f64) -> Frame {
    let size = FrameSize { width, height };
    let (w, h) = (f64::from(width), f64::from(height));
    let disc = (w * (0.2 + 0.6 * time), h * 0.4, w.min(h) * 0.18);
    let corner = (w * 0.3, h * (0.75 - 0.5 * time));
    let mut rgb = Vec::with_capacity(size.rgb_bytes());
    for y in 0..height {
        for x in 0..width {
            let (x, y) = (f64::from(x), f64::from(y));
            let colour = if (x - disc.0).hypot(y - disc.1) < disc.2 {
                [215, 60, 45]
            } else if (corner.0..corner.0 + w * 0.2).contains(&x) && (corner.1..corner.1 + h * 0.2).contains(&y) {
                [40, 160, 90]
            } else {
                [(60.0 + 120.0 * x / w) as u8, (80.0 + 100.0 * y / h) as u8, (150.0 + 60.0 * time) as u8]
            };
            rgb.extend_from_slice(&colour);
        }
    }
    Frame::new(size, rgb).unwrap()
}

/// Peak signal-to-noise ratio of 8-bit RGB in decibels.
pub fn psnr_db(a: &Frame, b: &Frame) -> f64 {
    assert_eq!(a.size(), b.size());
    let squares: f64 = a.rgb().iter().zip(b.rgb()).map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2)).sum();
    10.0 * (255.0_f64.powi(2) * a.rgb().len() as f64 / squares.max(f64::MIN_POSITIVE)).log10()
}

pub fn encode(frames: &Frames) -> Vec<u8> {
    media::encode_mp4(frames, media::EncodeSettings::default(), |_, _| ControlFlow::Continue(())).unwrap()
}

pub fn decode(mp4: Vec<u8>) -> media::video::DecodedVideo {
    media::VideoReader::from_bytes(mp4).unwrap().read_all(1 << 30).unwrap()
}

/// The payload of the first box at `path`, like `["moov", "trak", "mdia"]`.
pub fn mp4_box<'a>(mut bytes: &'a [u8], path: &[&str]) -> Option<&'a [u8]> {
    for name in path {
        bytes = children(bytes).into_iter().find(|(kind, _)| kind == name)?.1;
    }
    Some(bytes)
}

/// Names and payloads of the boxes in `bytes`, in order.
pub fn children(mut bytes: &[u8]) -> Vec<(String, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= 8 {
        let (size, header) = match be32(bytes, 0) {
            1 => (u64::from_be_bytes(bytes[8..16].try_into().unwrap()) as usize, 16),
            size => (size as usize, 8),
        };
        found.push((String::from_utf8_lossy(&bytes[4..8]).into_owned(), &bytes[header..size]));
        bytes = &bytes[size..];
    }
    found
}

pub fn be32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

/// Whether ffmpeg and ffprobe can be run. With `ZOETROPE_REQUIRE_FFMPEG` set their absence fails the test instead of
/// leaving it out.
pub fn have_ffmpeg() -> bool {
    let runs = |program| Command::new(program).arg("-version").output().is_ok_and(|out| out.status.success());
    let found = runs("ffmpeg") && runs("ffprobe");
    assert!(found || std::env::var_os("ZOETROPE_REQUIRE_FFMPEG").is_none(), "ffmpeg and ffprobe are not on the path");
    found
}
