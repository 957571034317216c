//! Pictures from outside: what is taken, how it looks afterwards, and what is refused how fast.

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use media::picture::{SPRITE_SIDE_PX_MAX, THUMBNAIL_SIDE_PX_MAX, encode_jpeg_spritesheet, encode_webp_thumbnail};
use media::{PictureError, decode_picture, encode_png};
use pipeline::{Frame, FrameSize};
use std::io::Cursor;
use std::time::{Duration, Instant};

fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    picture.into().write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

fn gradient(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 5 % 256) as u8, (y * 3 % 256) as u8, 128]))
}

fn frame(width: u32, height: u32, colour: [u8; 3]) -> Frame {
    let size = FrameSize { width, height };
    Frame::new(size, colour.repeat(width as usize * height as usize)).unwrap()
}

/// A PNG whose header promises a size and whose data holds nothing.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
    for (kind, payload) in
        [(b"IHDR", [&size[..], &[8, 2, 0, 0, 0]].concat()), (b"IDAT", vec![0x78, 0x9c, 3, 0, 0, 0, 0, 1])]
    {
        let body = [&kind[..], &payload].concat();
        png.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        png.extend_from_slice(&body);
        png.extend_from_slice(&crc32(&body).to_be_bytes());
    }
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

/// A JPEG that an EXIF block turns (values 1 to 8 of tag 0x0112).
fn jpeg_with_orientation(picture: &RgbImage, orientation: u8) -> Vec<u8> {
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, 100).encode_image(picture).unwrap();
    let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend_from_slice(&[orientation, 0, 0, 0, 0, 0, 0]);
    let mut turned = vec![0xff, 0xd8, 0xff, 0xe1];
    turned.extend_from_slice(&(exif.len() as u16 + 2).to_be_bytes());
    turned.extend_from_slice(&exif);
    turned.extend_from_slice(&jpeg[2..]);
    turned
}

#[test]
fn png_and_webp_are_exact_and_jpeg_is_close_at_odd_sizes_too() {
    let picture = gradient(33, 17);
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Jpeg] {
        let frame = decode_picture(&encoded(picture.clone(), format)).unwrap();
        assert_eq!(frame.size(), FrameSize { width: 33, height: 17 });
        let worst = frame.rgb().iter().zip(picture.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= if format == ImageFormat::Jpeg { 40 } else { 0 }, "{format:?} is off by {worst}");
    }
}

#[test]
fn grey_and_16_bit_pictures_become_8_bit_rgb() {
    let grey = DynamicImage::ImageRgb8(gradient(9, 9)).into_luma16();
    let frame = decode_picture(&encoded(grey, ImageFormat::Png)).unwrap();
    assert!(frame.rgb().chunks(3).all(|p| p[0] == p[1] && p[1] == p[2]));
}

#[test]
fn transparency_is_laid_over_white() {
    let picture = RgbaImage::from_fn(3, 1, |x, _| Rgba([200, 0, 100, [0, 128, 255][x as usize]]));
    let frame = decode_picture(&encoded(picture, ImageFormat::Png)).unwrap();
    assert_eq!(frame.rgb(), [255, 255, 255, 227, 127, 177, 200, 0, 100]);
}

#[test]
fn a_phone_picture_stands_as_it_was_taken() {
    let mut picture = RgbImage::from_pixel(32, 16, Rgb([255, 255, 255]));
    for (x, y) in (0..8).flat_map(|x| (0..8).map(move |y| (x, y))) {
        picture.put_pixel(x, y, Rgb([0, 0, 0]));
    }
    // 6: turn by 90 degrees clockwise, so the upper left corner comes to the upper right.
    let frame = decode_picture(&jpeg_with_orientation(&picture, 6)).unwrap();
    assert_eq!(frame.size(), FrameSize { width: 16, height: 32 });
    let dark = |x: usize, y: usize| frame.rgb()[(y * 16 + x) * 3] < 60;
    assert!(dark(14, 2) && !dark(2, 2) && !dark(14, 30));
}

#[test]
fn bombs_are_refused_by_their_header_in_under_10_ms() {
    let mut jpeg = encoded(gradient(8, 8), ImageFormat::Jpeg);
    let frame_header = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    jpeg[frame_header + 5..frame_header + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    // Lossless WebP: a signature byte, then 14 bits each of width and height less one.
    let webp = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xfe\xbf\xff\x0f\0\0\0\0\0\0\0\0\0".to_vec();
    for (name, bomb) in
        [("png", png_header(20_000, 20_000)), ("wide png", png_header(8193, 1)), ("jpeg", jpeg), ("webp", webp)]
    {
        // The best of a few: another process may take the core away in the middle of one.
        let timed = || {
            let started = Instant::now();
            let error = decode_picture(&bomb).unwrap_err();
            (started.elapsed(), error)
        };
        let (took, error) = (0..5).map(|_| timed()).min_by_key(|(took, _)| *took).unwrap();
        assert!(took < Duration::from_millis(10), "{name} took {took:?}");
        assert!(matches!(error, PictureError::TooLarge { .. }), "{name}: {error}");
        assert!(error.to_string().contains("scale it down"));
    }
    // Each side is allowed, the product is not.
    assert!(matches!(decode_picture(&png_header(8000, 8000)), Err(PictureError::TooLarge { .. })));
    assert!(matches!(decode_picture(&png_header(0, 5)), Err(PictureError::Damaged(_))));
}

#[test]
fn other_formats_are_named_and_the_right_ones_suggested() {
    let svg = b"<?xml version=\"1.0\"?><svg xmlns=\"http://www.w3.org/2000/svg\"/>";
    let cases: [(&[u8], &str); 5] = [
        (b"GIF89a\x01\x00\x01\x00", "GIF"),
        (svg, "SVG"),
        (b"BM......", "BMP"),
        (b"", "empty"),
        (b"%PDF-1.7", "unknown"),
    ];
    for (bytes, name) in cases {
        let message = decode_picture(bytes).unwrap_err().to_string();
        assert!(message.contains(name) && message.ends_with("send PNG, JPEG or WebP"), "{message}");
    }
}

#[test]
fn a_picture_cut_short_is_called_damaged() {
    let png = encoded(gradient(64, 64), ImageFormat::Png);
    assert!(matches!(decode_picture(&png[..png.len() / 2]), Err(PictureError::Damaged(_))));
}

#[test]
fn previews_fit_their_bounds() {
    let thumbnail = decode_picture(&encode_webp_thumbnail(&frame(640, 360, [9, 99, 199])).unwrap()).unwrap();
    assert_eq!(thumbnail.size(), FrameSize { width: THUMBNAIL_SIDE_PX_MAX, height: 180 });
    assert_eq!(thumbnail.rgb()[..3], [9, 99, 199]);
    let small = decode_picture(&encode_webp_thumbnail(&frame(64, 36, [1, 2, 3])).unwrap()).unwrap();
    assert_eq!(small.size(), FrameSize { width: 64, height: 36 });
}

#[test]
fn a_sprite_sheet_shows_the_clip_from_its_first_frame_to_its_last() {
    let frames: Vec<Frame> = (0..48).map(|i| frame(320, 240, [5 * i, 5 * i, 5 * i])).collect();
    let sheet = decode_picture(&encode_jpeg_spritesheet(&frames).unwrap()).unwrap();
    let (tile_width, tile_height) = (SPRITE_SIDE_PX_MAX, 120);
    assert_eq!(sheet.size(), FrameSize { width: 4 * tile_width, height: 4 * tile_height });
    let level = |column: u32, row: u32| {
        let (x, y) = (column * tile_width + tile_width / 2, row * tile_height + tile_height / 2);
        sheet.rgb()[((y * sheet.size().width + x) * 3) as usize]
    };
    assert!(level(0, 0) <= 2 && level(3, 3).abs_diff(235) <= 2, "{} to {}", level(0, 0), level(3, 3));
    assert!(level(0, 0) < level(1, 0) && level(3, 0) < level(0, 1));
    let two = decode_picture(&encode_jpeg_spritesheet(&frames[..2]).unwrap()).unwrap();
    assert_eq!(two.size(), FrameSize { width: 2 * tile_width, height: tile_height });
    assert!(matches!(encode_jpeg_spritesheet(&[]), Err(PictureError::UnevenFrames)));
    let uneven = [frame(32, 32, [0; 3]), frame(32, 34, [0; 3])];
    assert!(matches!(encode_jpeg_spritesheet(&uneven), Err(PictureError::UnevenFrames)));
}

#[test]
fn png_is_lossless() {
    let picture = gradient(31, 7);
    let size = FrameSize { width: 31, height: 7 };
    let frame = Frame::new(size, picture.into_raw()).unwrap();
    assert_eq!(decode_picture(&encode_png(&frame).unwrap()).unwrap(), frame);
}
