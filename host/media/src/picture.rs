//! Pictures: uploads become frames, frames become previews.
//!
//! An upload is trusted with nothing. Its format is read from its first bytes, its size from its header, and both are
//! refused before the first pixel is decoded, so a picture that unpacks to gigabytes costs microseconds.

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::codecs::webp::WebPEncoder;
use image::imageops;
use image::{
    ColorType, DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageFormat, ImageReader, RgbImage,
};
use pipeline::{Frame, FrameSize, limits};
use std::io::Cursor;
use thiserror::Error;

/// Largest side of the WebP thumbnail.
pub const THUMBNAIL_SIDE_PX_MAX: u32 = 320;
/// Largest side of one tile of the sprite sheet.
pub const SPRITE_SIDE_PX_MAX: u32 = 160;
/// Most tiles of a sprite sheet.
pub const SPRITES_MAX: usize = 16;
/// Tiles in a row of the sprite sheet.
pub const SPRITE_COLUMNS: usize = 4;
const SPRITESHEET_JPEG_QUALITY: u8 = 85;
/// Memory that one decode may take: the largest allowed picture as 16-bit RGBA, and its 8-bit RGB copy.
const DECODE_BYTES_MAX: u64 = limits::IMAGE_PX_MAX * (8 + 3);

/// Why a picture was refused, or not written.
#[derive(Debug, Error)]
pub enum PictureError {
    /// Not one of the three formats.
    #[error("this is not a picture that can be read ({found}): send PNG, JPEG or WebP")]
    UnknownFormat {
        /// What the bytes look like.
        found: &'static str,
    },
    /// Too many bytes.
    #[error(
        "the picture has {bytes} bytes; at most {} are taken: compress it or make it smaller",
        limits::IMAGE_BYTES_MAX
    )]
    TooManyBytes {
        /// Length of the upload.
        bytes: usize,
    },
    /// Too many pixels.
    #[error(
        "the picture is {width}x{height} pixels; at most {} on a side and {} in all are taken: scale it down",
        limits::IMAGE_SIDE_PX_MAX,
        limits::IMAGE_PX_MAX
    )]
    TooLarge {
        /// Pixels in a row, as the header says.
        width: u32,
        /// Rows, likewise.
        height: u32,
    },
    /// The file is broken.
    #[error("the picture is damaged or cut short: {0}")]
    Damaged(#[source] image::ImageError),
    /// The frames do not fit together.
    #[error("a sprite sheet needs at least one frame, and all of one size")]
    UnevenFrames,
    /// The encoder refused the frame.
    #[error("the picture could not be encoded: {0}")]
    Encode(#[source] image::ImageError),
}

/// Decodes an upload to RGB.
///
/// * Transparency is laid over white, as most viewers show it; 16-bit and grey pictures become 8-bit RGB.
/// * The EXIF orientation is applied, so the frame looks as the camera's owner saw it.
/// * Of an animation, the first picture. Sides may be odd; at least one pixel.
pub fn decode_picture(bytes: &[u8]) -> Result<Frame, PictureError> {
    if bytes.len() > limits::IMAGE_BYTES_MAX {
        return Err(PictureError::TooManyBytes { bytes: bytes.len() });
    }
    let format = sniff(bytes)?;
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    // The caps are ours, with our message; the library's own limits stay as a second fence around its buffers.
    let mut library_limits = image::Limits::default();
    library_limits.max_alloc = Some(DECODE_BYTES_MAX);
    reader.limits(library_limits);
    let mut decoder = reader.into_decoder().map_err(PictureError::Damaged)?;
    let (width, height) = decoder.dimensions();
    let side_max = limits::IMAGE_SIDE_PX_MAX;
    if width > side_max || height > side_max || u64::from(width) * u64::from(height) > limits::IMAGE_PX_MAX {
        return Err(PictureError::TooLarge { width, height });
    }
    // A broken EXIF block is no reason to refuse the pixels.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(PictureError::Damaged)?;
    picture.apply_orientation(orientation);
    Ok(frame_of(over_white(picture)))
}

fn sniff(bytes: &[u8]) -> Result<ImageFormat, PictureError> {
    match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => Ok(format),
        Ok(ImageFormat::Gif) => Err(PictureError::UnknownFormat { found: "GIF" }),
        Ok(ImageFormat::Avif) => Err(PictureError::UnknownFormat { found: "AVIF" }),
        Ok(ImageFormat::Tiff) => Err(PictureError::UnknownFormat { found: "TIFF" }),
        Ok(ImageFormat::Bmp) => Err(PictureError::UnknownFormat { found: "BMP" }),
        _ if bytes.is_empty() => Err(PictureError::UnknownFormat { found: "an empty file" }),
        _ if looks_like_svg(bytes) => Err(PictureError::UnknownFormat { found: "SVG" }),
        _ => Err(PictureError::UnknownFormat { found: "unknown format" }),
    }
}

fn looks_like_svg(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(512)];
    head.windows(4).any(|window| window.eq_ignore_ascii_case(b"<svg"))
}

fn over_white(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let rgba = picture.into_rgba8();
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (from, to) in rgba.pixels().zip(rgb.pixels_mut()) {
        let alpha = u16::from(from.0[3]);
        for channel in 0..3 {
            let mixed = u16::from(from.0[channel]) * alpha + 255 * (255 - alpha);
            to.0[channel] = ((mixed + 127) / 255) as u8;
        }
    }
    rgb
}

fn frame_of(picture: RgbImage) -> Frame {
    let size = FrameSize { width: picture.width(), height: picture.height() };
    Frame::new(size, picture.into_raw()).expect("an RGB image holds width x height x 3 bytes")
}

fn scaled_to_fit(frame: &Frame, side_px_max: u32) -> RgbImage {
    let FrameSize { width, height } = frame.size();
    let picture =
        RgbImage::from_raw(width, height, frame.rgb().to_vec()).expect("a frame holds width x height x 3 bytes");
    let longest = width.max(height);
    if longest <= side_px_max {
        return picture;
    }
    let fit = |side: u32| (u64::from(side) * u64::from(side_px_max) / u64::from(longest)).max(1) as u32;
    // Averages over areas: no shimmer from skipped pixels.
    imageops::thumbnail(&picture, fit(width), fit(height))
}

/// The frame as PNG, without loss.
pub fn encode_png(frame: &Frame) -> Result<Vec<u8>, PictureError> {
    let mut png = Vec::new();
    // Fast still finds the long runs of flat pictures, and a folder of frames is written many times faster.
    PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::Adaptive)
        .write_image(frame.rgb(), frame.size().width, frame.size().height, ExtendedColorType::Rgb8)
        .map_err(PictureError::Encode)?;
    Ok(png)
}

/// The frame as lossless WebP, scaled down to [`THUMBNAIL_SIDE_PX_MAX`] if it is larger.
pub fn encode_webp_thumbnail(frame: &Frame) -> Result<Vec<u8>, PictureError> {
    let small = scaled_to_fit(frame, THUMBNAIL_SIDE_PX_MAX);
    let mut webp = Vec::new();
    WebPEncoder::new_lossless(&mut webp)
        .encode(small.as_raw(), small.width(), small.height(), ExtendedColorType::Rgb8)
        .map_err(PictureError::Encode)?;
    Ok(webp)
}

/// Up to [`SPRITES_MAX`] frames, evenly spread from the first to the last, as a JPEG grid of [`SPRITE_COLUMNS`] columns.
/// The tiles run from left to right, then down; each fits into [`SPRITE_SIDE_PX_MAX`]; unused tiles are black.
pub fn encode_jpeg_spritesheet(frames: &[Frame]) -> Result<Vec<u8>, PictureError> {
    let first = frames.first().ok_or(PictureError::UnevenFrames)?;
    if frames.iter().any(|frame| frame.size() != first.size()) {
        return Err(PictureError::UnevenFrames);
    }
    let count = frames.len().min(SPRITES_MAX);
    let tiles: Vec<RgbImage> =
        (0..count).map(|i| scaled_to_fit(&frames[spread(i, count, frames.len())], SPRITE_SIDE_PX_MAX)).collect();
    let (width, height) = tiles[0].dimensions();
    let (columns, rows) = (count.min(SPRITE_COLUMNS) as u32, count.div_ceil(SPRITE_COLUMNS) as u32);
    let mut sheet = RgbImage::new(width * columns, height * rows);
    for (index, tile) in (0_u32..).zip(&tiles) {
        imageops::replace(&mut sheet, tile, (index % columns * width).into(), (index / columns * height).into());
    }
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, SPRITESHEET_JPEG_QUALITY)
        .write_image(sheet.as_raw(), sheet.width(), sheet.height(), ColorType::Rgb8.into())
        .map_err(PictureError::Encode)?;
    Ok(jpeg)
}

/// Which of `len` frames the `index`-th of `count` samples shows: the first shows the first, the last the last.
fn spread(index: usize, count: usize, len: usize) -> usize {
    if count <= 1 { 0 } else { index * (len - 1) / (count - 1) }
}
