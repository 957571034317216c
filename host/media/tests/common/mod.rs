//! Clips, distances and box walking that several test files need.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use pipeline::{Frame, FrameSize, Frames};
use std::ops::ControlFlow;
use std::process::Command;

/// A slow gradient with a disc and a bar that move over it: flat areas, edges as soft as a renderer's, and motion.
pub fn moving_shapes(width: u32, height: u32, count: u32, fps: u32) -> Frames {
    Frames { frames: (0..count).map(|t| shapes_at(width, height, f64::from(t) / f64::from(count))).collect(), fps }
}

fn shapes_at(width: u32, height: u32, time: f64) -> Frame {
    let size = FrameSize { width, height };
    let (w, h) = (f64::from(width), f64::from(height));
    let disc = (w * (0.2 + 0.6 * time), h * 0.4, w.min(h) * 0.18);
    let bar = (h * (0.75 - 0.5 * time), h * 0.1);
    let mut rgb = Vec::with_capacity(size.rgb_bytes());
    for y in 0..height {
        for x in 0..width {
            let (x, y) = (f64::from(x), f64::from(y));
            let mut colour = [60.0 + 120.0 * x / w, 80.0 + 100.0 * y / h, 150.0 + 60.0 * time];
            let mut paint = |over: [f64; 3], distance: f64| {
                // Anti-aliased: the share of the pixel that the shape covers.
                let cover = (0.5 - distance).clamp(0.0, 1.0);
                colour = [0, 1, 2].map(|c| colour[c] + (over[c] - colour[c]) * cover);
            };
            paint([40.0, 160.0, 90.0], (y - bar.0).abs() - bar.1);
            paint([205.0, 80.0, 65.0], (x - disc.0).hypot(y - disc.1) - disc.2);
            rgb.extend(colour.map(|c| c.round() as u8));
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

/// The same of the luma alone, which 4:2:0 keeps at full resolution.
pub fn luma_psnr_db(a: &Frame, b: &Frame) -> f64 {
    let grey = |frame: &Frame| {
        let luma = |p: &[u8]| (0.2126 * f64::from(p[0]) + 0.7152 * f64::from(p[1]) + 0.0722 * f64::from(p[2])).round();
        Frame::new(frame.size(), frame.rgb().chunks(3).flat_map(|p| [luma(p) as u8; 3]).collect()).unwrap()
    };
    psnr_db(&grey(a), &grey(b))
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
