//! Random and damaged files are read or refused; nothing panics, and memory follows the file and not its promises.

mod common;

use common::{encode, moving_shapes};
use media::{VideoReader, decode_picture, encode_png};
use proptest::prelude::*;
use proptest::sample::Index;
use std::sync::LazyLock;

static MP4: LazyLock<Vec<u8>> = LazyLock::new(|| encode(&moving_shapes(64, 48, 12, 24)));
static PICTURES: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| {
    let frames = moving_shapes(48, 32, 3, 24).frames;
    [
        encode_png(&frames[0]).unwrap(),
        media::picture::encode_jpeg_spritesheet(&frames).unwrap(),
        media::picture::encode_webp_thumbnail(&frames[0]).unwrap(),
    ]
});

/// Bytes overwritten anywhere, then perhaps cut short.
fn damage() -> impl Strategy<Value = (Vec<(Index, u8)>, Option<Index>)> {
    (prop::collection::vec((any::<Index>(), any::<u8>()), 1..12), prop::option::weighted(0.3, any::<Index>()))
}

fn damaged(bytes: &[u8], (writes, cut): (Vec<(Index, u8)>, Option<Index>)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, value) in writes {
        let at = at.index(bytes.len());
        bytes[at] = value;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

fn read(bytes: Vec<u8>) {
    if let Ok(reader) = VideoReader::from_bytes(bytes) {
        let size = reader.size();
        for frame in reader.take(64).flatten() {
            assert_eq!(frame.size(), size);
        }
    }
}

proptest! {
    // Where ffmpeg is installed each refused file starts it once, which takes its time.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_damaged_video_never_panics(damage in damage()) {
        read(damaged(&MP4, damage));
    }

    #[test]
    fn a_video_with_a_damaged_index_never_panics(damage in damage()) {
        // The index is the first part of the file: most of these reach the demuxer and the parameter sets.
        let index_bytes = 900.min(MP4.len());
        let mut bytes = damaged(&MP4[..index_bytes], (damage.0, None));
        bytes.extend_from_slice(&MP4[index_bytes..]);
        read(bytes);
    }

    #[test]
    fn random_bytes_are_no_video(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(VideoReader::from_bytes(bytes).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_damaged_picture_never_panics(which in 0..3_usize, damage in damage()) {
        if let Ok(frame) = decode_picture(&damaged(&PICTURES[which], damage)) {
            prop_assert_eq!(frame.rgb().len(), frame.size().rgb_bytes());
        }
    }

    #[test]
    fn random_bytes_behind_a_magic_number_never_panic(which in 0..3_usize, tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let magic = &PICTURES[which][..16];
        let _ = decode_picture(&[magic, &tail].concat());
    }
}
