//! What is written can be read back, and the container says exactly what is in it.

mod common;

use common::{be32, children, decode, encode, luma_psnr_db, moving_shapes, mp4_box, psnr_db};
use media::{EncodeSettings, FrameRate, Mp4Encoder, VideoError, VideoReader, encode_mp4};
use pipeline::{Frame, FrameSize, Frames, StageError};
use std::ops::ControlFlow;

const STBL: [&str; 5] = ["moov", "trak", "mdia", "minf", "stbl"];

fn stbl(mp4: &[u8], table: &str) -> Vec<u8> {
    mp4_box(mp4, &[&STBL[..], &[table]].concat()).unwrap_or_else(|| panic!("no {table}")).to_vec()
}

fn flat(width: u32, height: u32) -> Frame {
    let size = FrameSize { width, height };
    Frame::new(size, vec![90; size.rgb_bytes()]).unwrap()
}

#[test]
fn every_frame_comes_back_in_order_within_35_db() {
    // Large enough that the edges, where 4:2:0 halves the colour's resolution, do not decide the figure.
    let clip = moving_shapes(512, 384, 48, 24);
    let decoded = decode(encode(&clip));
    assert_eq!((decoded.frames.len(), decoded.fps), (48, FrameRate::per_second(24).unwrap()));
    for (index, (before, after)) in clip.frames.iter().zip(&decoded.frames).enumerate() {
        let db = psnr_db(before, after);
        assert!(db >= 35.0, "frame {index} comes back with {db:.1} dB");
    }
}

#[test]
fn any_even_size_and_any_frame_rate_keep_every_frame() {
    let sizes = [(16, 16), (18, 34), (130, 98), (16, 256), (322, 18)];
    for ((width, height), fps) in sizes.into_iter().zip([1, 7, 25, 60, 120]) {
        let clip = moving_shapes(width, height, 9, fps);
        let decoded = decode(encode(&clip));
        assert_eq!((decoded.frames.len(), decoded.fps.rounded()), (9, fps), "{width}x{height} at {fps}");
        assert_eq!(decoded.frames[0].size(), FrameSize { width, height });
        let luma_db = clip.frames.iter().zip(&decoded.frames).map(|(a, b)| luma_psnr_db(a, b));
        let worst = luma_db.fold(f64::INFINITY, f64::min);
        assert!(worst >= 35.0, "{width}x{height} at {fps}: {worst:.1} dB");
    }
}

#[test]
fn a_video_of_one_frame_is_a_video() {
    let clip = moving_shapes(64, 48, 1, 24);
    let decoded = decode(encode(&clip));
    assert_eq!((decoded.frames.len(), decoded.fps.rounded()), (1, 24));
}

#[test]
fn identical_pictures_are_not_dropped() {
    let clip = Frames { frames: vec![flat(64, 64); 100], fps: 30 };
    assert_eq!(decode(encode(&clip)).frames.len(), 100);
}

#[test]
fn noise_that_fills_any_bit_budget_does_not_drop_frames() {
    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let size = FrameSize { width: 128, height: 128 };
    let frames = (0..30).map(|_| Frame::new(size, (0..size.rgb_bytes()).map(|_| noise()).collect()).unwrap()).collect();
    assert_eq!(decode(encode(&Frames { frames, fps: 30 })).frames.len(), 30);
}

#[test]
fn the_same_frames_give_the_same_bytes_and_others_do_not() {
    let clip = moving_shapes(96, 64, 20, 24);
    let first = encode(&clip);
    assert_eq!(first, encode(&clip));
    let mut other = clip.clone();
    other.frames[10].rgb_mut()[..96 * 3 * 20].fill(255);
    assert_ne!(first, encode(&other));
}

#[test]
fn the_index_lies_before_the_media_and_nothing_lies_between_boxes() {
    let mp4 = encode(&moving_shapes(64, 64, 50, 25));
    let names: Vec<String> = children(&mp4).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.first().map(String::as_str), Some("ftyp"));
    let position = |name: &str| names.iter().position(|n| n == name).unwrap();
    assert!(position("moov") < position("mdat"), "{names:?}");
    let reserve = children(&mp4).iter().filter(|(name, _)| name == "free").map(|(_, bytes)| bytes.len()).sum::<usize>();
    assert!(reserve < 128, "{reserve} bytes of padding");
}

#[test]
fn no_box_carries_a_date() {
    let mp4 = encode(&moving_shapes(64, 64, 3, 24));
    for path in [&["moov", "mvhd"][..], &["moov", "trak", "tkhd"], &["moov", "trak", "mdia", "mdhd"]] {
        let header = mp4_box(&mp4, path).unwrap();
        let dates = if header[0] == 0 { &header[4..12] } else { &header[4..20] };
        assert!(dates.iter().all(|&byte| byte == 0), "{path:?}");
    }
}

#[test]
fn times_are_exact_for_every_whole_frame_rate() {
    for fps in [1, 12, 24, 25, 30, 50, 60, 120] {
        let frames = 2 * fps + 1;
        let mp4 = encode(&Frames { frames: vec![flat(16, 16); frames as usize], fps });
        let mvhd = mp4_box(&mp4, &["moov", "mvhd"]).unwrap();
        let (timescale, duration) = if mvhd[0] == 0 {
            (be32(mvhd, 12), u64::from(be32(mvhd, 16)))
        } else {
            (be32(mvhd, 20), u64::from_be_bytes(mvhd[24..32].try_into().unwrap()))
        };
        assert_eq!(duration * u64::from(fps), u64::from(frames) * u64::from(timescale), "{fps} fps");
        let stts = stbl(&mp4, "stts");
        assert_eq!((be32(&stts, 4), be32(&stts, 8)), (1, frames), "one run of equally long samples");
        assert_eq!(be32(&stts, 12) * fps, timescale);
    }
}

#[test]
fn there_is_an_intra_frame_at_least_every_two_seconds_and_the_first_is_one() {
    let mp4 = encode(&moving_shapes(64, 64, 100, 24));
    let stss = stbl(&mp4, "stss");
    let intra: Vec<u32> = (0..be32(&stss, 4) as usize).map(|i| be32(&stss, 8 + 4 * i)).collect();
    assert_eq!(intra[0], 1);
    assert!(intra.windows(2).all(|pair| pair[1] - pair[0] <= 48) && 100 - intra[intra.len() - 1] < 48, "{intra:?}");
}

#[test]
fn the_container_names_the_colours_as_bt709_limited_range() {
    let mp4 = encode(&moving_shapes(64, 64, 2, 24));
    let expected = b"colrnclx\x00\x01\x00\x01\x00\x01\x00";
    assert!(mp4.windows(expected.len()).any(|window| window == expected));
}

#[test]
fn broadcast_rates_stay_exact_when_frames_are_pushed_one_by_one() {
    let fps = FrameRate::new(60_000, 1001).unwrap();
    let mut encoder = Mp4Encoder::new(fps, EncodeSettings::default()).unwrap();
    for frame in &moving_shapes(64, 48, 12, 60).frames {
        encoder.push(frame).unwrap();
    }
    assert_eq!(encoder.frame_count(), 12);
    let reader = VideoReader::from_bytes(encoder.finish().unwrap()).unwrap();
    assert_eq!((reader.fps(), reader.frame_count(), reader.uses_ffmpeg()), (fps, Some(12), false));
}

#[test]
fn a_coarser_quantizer_gives_a_smaller_file() {
    let clip = moving_shapes(160, 120, 12, 24);
    let bytes = |quantizer| {
        let settings = EncodeSettings::default().with_quantizer(quantizer);
        encode_mp4(&clip, settings, |_, _| ControlFlow::Continue(())).unwrap().len()
    };
    assert!(bytes(12) > bytes(22) && bytes(22) > bytes(40));
}

#[test]
fn cancelling_stops_within_one_frame() {
    let clip = moving_shapes(64, 64, 50, 24);
    let mut heard = Vec::new();
    let outcome = encode_mp4(&clip, EncodeSettings::default(), |done, total| {
        heard.push((done, total));
        if done == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(outcome, Err(VideoError::Cancelled)));
    assert_eq!(heard, [(1, 50), (2, 50), (3, 50)]);
}

#[test]
fn what_cannot_be_encoded_is_refused_with_the_field_at_fault() {
    let field = |frames: Vec<Frame>, fps| {
        let refused = encode_mp4(&Frames { frames, fps }, EncodeSettings::default(), |_, _| ControlFlow::Continue(()));
        match refused.map(|mp4| mp4.len()).map_err(StageError::from) {
            Err(StageError::InvalidArgument { field, .. }) => field,
            other => panic!("not refused: {other:?}"),
        }
    };
    for (width, height) in [(15, 16), (17, 16), (16, 14), (3842, 16), (2162, 2162)] {
        assert_eq!(field(vec![flat(width, height)], 24), "size", "{width}x{height}");
    }
    assert_eq!(field(vec![flat(16, 16)], 121), "fps");
    let uneven = Frames { frames: vec![flat(16, 16), flat(16, 18)], fps: 24 };
    let error = encode_mp4(&uneven, EncodeSettings::default(), |_, _| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().starts_with("frame 1 is 16x18"), "{error}");
    let empty =
        encode_mp4(&Frames { frames: vec![], fps: 24 }, EncodeSettings::default(), |_, _| ControlFlow::Continue(()));
    assert!(matches!(empty, Err(VideoError::Empty)));
}

#[test]
fn reading_stops_at_the_cap() {
    let mp4 = encode(&moving_shapes(64, 64, 10, 24));
    let one_frame = 64 * 64 * 3;
    let read = |bytes| VideoReader::from_bytes(mp4.clone()).unwrap().read_all(bytes);
    assert!(matches!(read(one_frame * 9), Err(VideoError::TooLong(_))));
    assert_eq!(read(one_frame * 10).unwrap().frames.len(), 10);
}
