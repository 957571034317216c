//! Pictures at other sizes: finished frames by Catmull-Rom, pictures for a network exactly as Pillow resizes them.

mod resample;

pub use resample::{Filter, resample};

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use pipeline::{Frame, FrameSize, StageError, StageResult};

/// `frame` within `size`, whole, in its own proportions; what is left free repeats its outermost pixels.
pub fn contain(frame: &Frame, size: FrameSize) -> StageResult<Frame> {
    let inner = largest_within(frame.size(), size);
    let scaled = scale(frame, inner)?;
    if inner == size { Ok(scaled) } else { Ok(replicate_edges(&scaled, size)) }
}

/// The middle of `frame` that has the proportions of `size`, brought to it by Pillow's Lanczos: what goes into a VAE.
pub fn cover(frame: &Frame, size: FrameSize) -> Frame {
    resample(&centre(frame, largest_within(size, frame.size())), size, Filter::Lanczos)
}

/// The middle of `frame`; `size` must be nowhere larger.
pub(crate) fn centre(frame: &Frame, size: FrameSize) -> Frame {
    let FrameSize { width, height } = frame.size();
    if frame.size() == size {
        return frame.clone();
    }
    let (left, top) = ((width - size.width) as usize / 2, (height - size.height) as usize / 2);
    let rows = frame.rgb().chunks_exact(width as usize * 3).skip(top).take(size.height as usize);
    let rgb = rows.flat_map(|row| &row[left * 3..][..size.width as usize * 3]).copied().collect();
    Frame::new(size, rgb).expect("as many rows and columns as asked for")
}

/// The largest size with the proportions of `shape` that fits into `outer`; at least one pixel each way.
fn largest_within(shape: FrameSize, outer: FrameSize) -> FrameSize {
    let scaled = |side: u32, by: u32, over: u32| {
        ((u64::from(side) * u64::from(by) + u64::from(over) / 2) / u64::from(over.max(1))).max(1) as u32
    };
    if u64::from(shape.width) * u64::from(outer.height) > u64::from(outer.width) * u64::from(shape.height) {
        FrameSize { width: outer.width, height: scaled(shape.height, outer.width, shape.width).min(outer.height) }
    } else {
        FrameSize { width: scaled(shape.width, outer.height, shape.height).min(outer.width), height: outer.height }
    }
}

fn scale(frame: &Frame, size: FrameSize) -> StageResult<Frame> {
    if frame.size() == size {
        return Ok(frame.clone());
    }
    let failed = |e: &dyn std::error::Error| {
        StageError::Internal(format!("a picture of {} could not be scaled to {size}: {e}", frame.size()))
    };
    let FrameSize { width, height } = frame.size();
    let source = ImageRef::new(width, height, frame.rgb(), PixelType::U8x3).map_err(|e| failed(&e))?;
    let mut target = Image::new(size.width, size.height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    Resizer::new().resize(&source, &mut target, &options).map_err(|e| failed(&e))?;
    Frame::new(size, target.into_vec()).ok_or_else(|| StageError::Internal("a scaled picture lost pixels".into()))
}

/// `inner` in the middle of `size`, which is nowhere smaller; each free pixel is the nearest pixel of `inner`.
fn replicate_edges(inner: &Frame, size: FrameSize) -> Frame {
    let FrameSize { width, height } = inner.size();
    let (left, top) = ((size.width - width) / 2, (size.height - height) / 2);
    let mut frame = Frame::new(size, vec![0; size.rgb_bytes()]).expect("the buffer has the size's own length");
    let (row_in, row_out) = (width as usize * 3, size.width as usize * 3);
    for (y, out) in frame.rgb_mut().chunks_exact_mut(row_out).enumerate() {
        let source_y = (y as u32).saturating_sub(top).min(height - 1) as usize;
        let source = &inner.rgb()[source_y * row_in..][..row_in];
        let (before, rest) = out.split_at_mut(left as usize * 3);
        let (middle, after) = rest.split_at_mut(row_in);
        middle.copy_from_slice(source);
        before.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&source[..3]));
        after.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&source[row_in - 3..]));
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(width: u32, height: u32) -> FrameSize {
        FrameSize { width, height }
    }

    fn gradient(width: u32, height: u32) -> Frame {
        let pixel = |i: u32| [(255 * (i % width) / width) as u8, (255 * (i / width) / height) as u8, 128];
        Frame::new(size(width, height), (0..width * height).flat_map(pixel).collect()).unwrap()
    }

    fn pixel(frame: &Frame, x: u32, y: u32) -> [u8; 3] {
        let at = (y * frame.size().width + x) as usize * 3;
        frame.rgb()[at..at + 3].try_into().unwrap()
    }

    #[test]
    fn a_square_in_a_wide_frame_keeps_its_proportions_and_repeats_its_edges() {
        let out = contain(&gradient(128, 128), size(1280, 720)).unwrap();
        assert_eq!(out.size(), size(1280, 720));
        for y in [0, 300, 719] {
            assert_eq!(pixel(&out, 0, y), pixel(&out, 280, y));
            assert_eq!(pixel(&out, 1279, y), pixel(&out, 999, y));
        }
        assert!(pixel(&out, 280, 5)[0] < 4 && pixel(&out, 999, 5)[0] > 246);
        assert!(pixel(&out, 640, 360)[0].abs_diff(127) < 3);
    }

    #[test]
    fn covering_cuts_the_longer_side_in_the_middle() {
        let out = cover(&gradient(640, 320), size(64, 64));
        assert!(pixel(&out, 0, 0)[0].abs_diff(64) < 3, "a quarter is cut off on the left");
        assert!(pixel(&out, 63, 63)[0].abs_diff(190) < 3, "and on the right");
        assert!(pixel(&out, 0, 63)[1] > 250, "nothing above or below");
    }

    #[test]
    fn the_same_size_is_the_same_picture() {
        assert_eq!(contain(&gradient(30, 20), size(30, 20)).unwrap(), gradient(30, 20));
        assert_eq!(cover(&gradient(30, 20), size(30, 20)), gradient(30, 20));
    }

    #[test]
    fn a_flat_colour_stays_exactly_flat() {
        let flat = Frame::new(size(7, 5), [10, 200, 255].repeat(35)).unwrap();
        for target in [size(64, 64), size(3, 9), size(1, 1)] {
            for out in [contain(&flat, target).unwrap(), cover(&flat, target)] {
                assert!(out.rgb().chunks(3).all(|p| p == [10, 200, 255]));
            }
        }
    }

    proptest! {
        #[test]
        fn any_picture_fits_any_size(w in 1u32..70, h in 1u32..70, tw in 1u32..70, th in 1u32..70) {
            let frame = gradient(w, h);
            prop_assert_eq!(contain(&frame, size(tw, th)).unwrap().size(), size(tw, th));
            prop_assert_eq!(cover(&frame, size(tw, th)).size(), size(tw, th));
        }
    }
}
