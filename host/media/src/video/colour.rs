//! RGB to 4:2:0 and back, in integers.
//!
//! Chroma is the mean of each 2x2 block on the way in and repeated over the block on the way out. The two are exact
//! inverses of each other, so chroma does not blur further when a video is read, changed and written again.
//! Matrices and ranges: ITU-T H.273, tables 3 and 4.

use super::sps::ColourDescription;
use openh264::formats::YUVSource;
use pipeline::{Frame, FrameSize};

const FRACTION_BITS: u32 = 16;
const ONE: f64 = (1 << FRACTION_BITS) as f64;

/// Weights of red and blue in luma.
#[derive(Debug, Clone, Copy, PartialEq)]
struct LumaWeights {
    red: f64,
    blue: f64,
}

const BT709: LumaWeights = LumaWeights { red: 0.2126, blue: 0.0722 };
const BT601: LumaWeights = LumaWeights { red: 0.299, blue: 0.114 };
const BT2020: LumaWeights = LumaWeights { red: 0.2627, blue: 0.0593 };

fn fixed(value: f64) -> i32 {
    (value * ONE).round() as i32
}

/// Turns RGB into BT.709 limited-range planes.
pub(super) struct Encoding {
    luma: [i32; 3],
    blue: [i32; 3],
    red: [i32; 3],
}

impl Encoding {
    pub(super) fn bt709() -> Self {
        let LumaWeights { red: kr, blue: kb } = BT709;
        let kg = 1.0 - kr - kb;
        let luma = [kr, kg, kb].map(|k| fixed(k * 219.0 / 255.0));
        let chroma = 112.0 / 255.0;
        let blue = [-kr / (1.0 - kb) * chroma, -kg / (1.0 - kb) * chroma, chroma].map(fixed);
        let red = [chroma, -kg / (1.0 - kr) * chroma, -kb / (1.0 - kr) * chroma].map(fixed);
        Self { luma, blue, red }
    }

    /// Fills `planes` (Y, then U, then V, without padding). The sides of `size` are even.
    pub(super) fn encode(&self, rgb: &[u8], size: FrameSize, planes: &mut [u8]) {
        let (width, height) = (size.width as usize, size.height as usize);
        let (y_plane, chroma) = planes.split_at_mut(width * height);
        let (u_plane, v_plane) = chroma.split_at_mut(width * height / 4);
        let rows = rgb.chunks_exact(2 * width * 3).zip(y_plane.chunks_exact_mut(2 * width));
        let chroma_rows = u_plane.chunks_exact_mut(width / 2).zip(v_plane.chunks_exact_mut(width / 2));
        for ((rgb, luma), (u_row, v_row)) in rows.zip(chroma_rows) {
            for (pixel, y) in rgb.chunks_exact(3).zip(luma) {
                let half = (16 << FRACTION_BITS) + (1 << (FRACTION_BITS - 1));
                *y = ((weigh(self.luma, [pixel[0], pixel[1], pixel[2]].map(i32::from)) + half) >> FRACTION_BITS) as u8;
            }
            let (upper, lower) = rgb.split_at(width * 3);
            let blocks = upper.chunks_exact(6).zip(lower.chunks_exact(6));
            for ((above, below), (u, v)) in blocks.zip(u_row.iter_mut().zip(v_row)) {
                let sum =
                    [0, 1, 2].map(|c| [above[c], above[c + 3], below[c], below[c + 3]].map(i32::from).iter().sum());
                // Sums of four pixels carry two more bits.
                let half = (128 << (FRACTION_BITS + 2)) + (1 << (FRACTION_BITS + 1));
                *u = ((weigh(self.blue, sum) + half) >> (FRACTION_BITS + 2)) as u8;
                *v = ((weigh(self.red, sum) + half) >> (FRACTION_BITS + 2)) as u8;
            }
        }
    }
}

fn weigh(weights: [i32; 3], rgb: [i32; 3]) -> i32 {
    weights[0] * rgb[0] + weights[1] * rgb[1] + weights[2] * rgb[2]
}

/// Turns 4:2:0 planes into RGB.
pub(super) struct Decoding {
    luma_offset: i32,
    luma: i32,
    red_of_v: i32,
    green_of_u: i32,
    green_of_v: i32,
    blue_of_u: i32,
}

impl Decoding {
    /// The conversion that a stream asks for. An untagged stream is read as BT.601, as ffmpeg does.
    pub(super) fn of(description: ColourDescription) -> Self {
        let weights = match description.matrix_coefficients {
            1 => BT709,
            9 | 10 => BT2020,
            _ => BT601,
        };
        let (luma_offset, luma, chroma) =
            if description.full_range { (0, 1.0, 1.0) } else { (16, 255.0 / 219.0, 255.0 / 224.0) };
        let LumaWeights { red: kr, blue: kb } = weights;
        let kg = 1.0 - kr - kb;
        Self {
            luma_offset,
            luma: fixed(luma),
            red_of_v: fixed(2.0 * (1.0 - kr) * chroma),
            green_of_u: fixed(-2.0 * (1.0 - kb) * kb / kg * chroma),
            green_of_v: fixed(-2.0 * (1.0 - kr) * kr / kg * chroma),
            blue_of_u: fixed(2.0 * (1.0 - kb) * chroma),
        }
    }

    /// The picture as RGB.
    pub(super) fn decode(&self, picture: &impl YUVSource) -> Frame {
        let (width, height) = picture.dimensions();
        let (y_stride, u_stride, v_stride) = picture.strides();
        let size = FrameSize { width: width as u32, height: height as u32 };
        let mut rgb = vec![0; size.rgb_bytes()];
        for (row, out) in rgb.chunks_exact_mut(width * 3).enumerate() {
            let luma = &picture.y()[row * y_stride..][..width];
            let blue = &picture.u()[row / 2 * u_stride..][..width.div_ceil(2)];
            let red = &picture.v()[row / 2 * v_stride..][..width.div_ceil(2)];
            let blocks = out.chunks_mut(6).zip(luma.chunks(2)).zip(blue.iter().zip(red));
            for ((out, luma), (&u, &v)) in blocks {
                let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
                let shift = [self.red_of_v * v, self.green_of_u * u + self.green_of_v * v, self.blue_of_u * u];
                for (pixel, &y) in out.chunks_exact_mut(3).zip(luma) {
                    let y = self.luma * (i32::from(y) - self.luma_offset) + (1 << (FRACTION_BITS - 1));
                    for (channel, shift) in pixel.iter_mut().zip(shift) {
                        *channel = ((y + shift) >> FRACTION_BITS).clamp(0, 255) as u8;
                    }
                }
            }
        }
        Frame::new(size, rgb).expect("the buffer was made for this size")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openh264::formats::YUVBuffer;
    use proptest::prelude::*;

    const SIZE: FrameSize = FrameSize { width: 2, height: 2 };

    fn planes_of(rgb: [u8; 3]) -> [u8; 3] {
        let mut planes = [0; 6];
        Encoding::bt709().encode(&rgb.repeat(4), SIZE, &mut planes);
        [planes[0], planes[4], planes[5]]
    }

    fn through(rgb: [u8; 3]) -> Vec<u8> {
        let mut planes = vec![0; 6];
        Encoding::bt709().encode(&rgb.repeat(4), SIZE, &mut planes);
        let tagged = ColourDescription { matrix_coefficients: 1, full_range: false };
        Decoding::of(tagged).decode(&YUVBuffer::from_vec(planes, 2, 2)).into_rgb()
    }

    #[test]
    fn the_corners_of_the_cube_have_the_codes_of_bt709() {
        // Y, Cb, Cr of BT.709 limited range, from the equations of ITU-R BT.709-6 part 3.
        let known = [
            ([0, 0, 0], [16, 128, 128]),
            ([255, 255, 255], [235, 128, 128]),
            ([255, 0, 0], [63, 102, 240]),
            ([0, 255, 0], [173, 42, 26]),
            ([0, 0, 255], [32, 240, 118]),
        ];
        for (rgb, yuv) in known {
            assert_eq!(planes_of(rgb), yuv, "{rgb:?}");
        }
    }

    #[test]
    fn full_range_grey_is_itself_and_limited_range_is_stretched() {
        let grey = |luma, full_range| {
            let planes = YUVBuffer::from_vec(vec![luma, luma, luma, luma, 128, 128], 2, 2);
            Decoding::of(ColourDescription { matrix_coefficients: 2, full_range }).decode(&planes).rgb()[0]
        };
        assert_eq!([grey(0, true), grey(77, true), grey(255, true)], [0, 77, 255]);
        assert_eq!([grey(16, false), grey(126, false), grey(235, false), grey(255, false)], [0, 128, 255, 255]);
    }

    proptest! {
        #[test]
        fn a_flat_colour_survives_both_ways_within_the_rounding_of_8_bits(rgb: [u8; 3]) {
            // One step of limited-range chroma is worth up to 2.1 steps of blue, and luma adds 1.2: halves of each.
            for (before, after) in rgb.repeat(4).iter().zip(through(rgb)) {
                prop_assert!(before.abs_diff(after) <= 2, "{before} became {after}");
            }
        }
    }
}
