//! The planes that a video encoder takes, from pictures.
//!
//! | | |
//! |---|---|
//! | meaning | each value to a byte, then luma and colour differences of BT.709 in limited range (ITU-T H.273, tables 3 and 4) |
//! | inputs | pictures [(f,) h, w, 3] f32 or bf16, red, green and blue in 0..=1, channels last; both sides even |
//! | outputs | bytes, frame by frame: Y [h, w], then U and V [h/2, w/2], the mean of 2x2 pixels |
//! | preconditions | nothing is empty |
//! | reference | itself, in integers; within 1 of the equations in f64 |
//! | bound by | memory: 12 bytes (f32) or 6 (bf16) a pixel in, 1.5 out |
//! | benchmark | `rgb_to_yuv420` |

use rayon::prelude::*;

use super::{clip_shape, cuda};
use crate::cuda::{CudaBuffer, CudaDevice, device_of};
use crate::error::{Result, argument_error, shape_error};
use crate::tensor::Tensor;

const FRACTION_BITS: u32 = 16;
/// Weights of red and blue in luma: BT.709.
const RED: f64 = 0.2126;
const BLUE: f64 = 0.0722;

/// Weights of red, green and blue in parts of 2¹⁶, as kernels take them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct YuvWeights {
    pub(super) luma: [i32; 3],
    pub(super) blue: [i32; 3],
    pub(super) red: [i32; 3],
}

impl YuvWeights {
    pub(super) fn bt709() -> Self {
        let fixed = |value: f64| (value * f64::from(1 << FRACTION_BITS)).round() as i32;
        let green = 1.0 - RED - BLUE;
        let chroma = 112.0 / 255.0;
        let difference = |weight: f64, own: f64| -weight / (1.0 - own) * chroma;
        Self {
            luma: [RED, green, BLUE].map(|k| fixed(k * 219.0 / 255.0)),
            blue: [difference(RED, BLUE), difference(green, BLUE), chroma].map(fixed),
            red: [chroma, difference(green, RED), difference(BLUE, RED)].map(fixed),
        }
    }
}

const OP: &str = "rgb_to_yuv420";

/// The planes of 4:2:0 video, BT.709 in limited range, of pictures [(f,) h, w, 3] with red, green and blue in 0..=1: for each
/// frame h·w bytes of luma, then h·w/4 each of the differences of blue and of red. Both sides must be even.
///
/// Values are rounded to bytes first, so the planes are those that an encoder makes of the finished 8-bit frames.
pub fn rgb_to_yuv420(rgb: &Tensor) -> Result<Vec<u8>> {
    let [f, h, w] = checked(rgb)?;
    if let Some(device) = device_of(OP, &[rgb])? {
        let planes = cuda::rgb_to_yuv420(&device, rgb, [f, h, w], &YuvWeights::bt709())?;
        return Ok(planes.read::<u8>(OP, 0, planes.bytes())?.to_vec());
    }
    let weights = YuvWeights::bt709();
    let mut planes = vec![0; f * h * w * 3 / 2];
    let frames = planes.chunks_exact_mut(h * w * 3 / 2);
    for (rgb, planes) in rgb.f32_values().chunks_exact(h * w * 3).zip(frames) {
        convert(rgb, w, &weights, planes);
    }
    Ok(planes)
}

/// The planes left in the memory of `device`, where `rgb` is.
pub(crate) fn yuv420_on_device(device: &CudaDevice, rgb: &Tensor) -> Result<CudaBuffer> {
    cuda::rgb_to_yuv420(device, rgb, checked(rgb)?, &YuvWeights::bt709())
}

/// Frames, height and width.
fn checked(rgb: &Tensor) -> Result<[usize; 3]> {
    let [f, h, w, c] = clip_shape(OP, rgb)?;
    if c != 3 {
        return shape_error(OP, format!("x is {:?}, its last dimension must be red, green and blue", rgb.shape()));
    }
    if h % 2 == 1 || w % 2 == 1 {
        return argument_error(OP, format!("both sides must be even, they are {h} and {w}"));
    }
    Ok([f, h, w])
}

/// One frame.
fn convert(rgb: &[f32], w: usize, weights: &YuvWeights, planes: &mut [u8]) {
    let pixels = rgb.len() / 3;
    let (luma, chroma) = planes.split_at_mut(pixels);
    let (blue, red) = chroma.split_at_mut(pixels / 4);
    let luma = luma.par_chunks_mut(2 * w);
    let chroma = blue.par_chunks_mut(w / 2).zip(red.par_chunks_mut(w / 2));
    rgb.par_chunks(6 * w).zip(luma).zip(chroma).for_each_init(
        || vec![0; 6 * w],
        |bytes, ((rgb, luma), (blue, red))| {
            bytes.iter_mut().zip(rgb).for_each(|(byte, value)| *byte = i32::from(byte_of(*value)));
            convert_pair(bytes, weights, luma, blue, red);
        },
    );
}

fn byte_of(value: f32) -> u8 {
    (value * 255.0).round().clamp(0.0, 255.0) as u8
}

/// Two rows of pixels and the row of chroma between them.
fn convert_pair(rgb: &[i32], weights: &YuvWeights, luma: &mut [u8], blue: &mut [u8], red: &mut [u8]) {
    for (pixel, luma) in rgb.chunks_exact(3).zip(luma) {
        let half = (16 << FRACTION_BITS) + (1 << (FRACTION_BITS - 1));
        *luma = ((weigh(weights.luma, pixel) + half) >> FRACTION_BITS) as u8;
    }
    let (upper, lower) = rgb.split_at(rgb.len() / 2);
    let blocks = upper.chunks_exact(6).zip(lower.chunks_exact(6));
    for ((above, below), (blue, red)) in blocks.zip(blue.iter_mut().zip(red)) {
        let sum = [0, 1, 2].map(|c| above[c] + above[c + 3] + below[c] + below[c + 3]);
        // Sums of four pixels carry two more bits.
        let half = (128 << (FRACTION_BITS + 2)) + (1 << (FRACTION_BITS + 1));
        *blue = ((weigh(weights.blue, &sum) + half) >> (FRACTION_BITS + 2)) as u8;
        *red = ((weigh(weights.red, &sum) + half) >> (FRACTION_BITS + 2)) as u8;
    }
}

fn weigh(weights: [i32; 3], rgb: &[i32]) -> i32 {
    weights[0] * rgb[0] + weights[1] * rgb[1] + weights[2] * rgb[2]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Y, Cb, Cr by the equations of ITU-R BT.709-6, part 3, of bytes.
    fn equations(rgb: [f64; 3]) -> [f64; 3] {
        let [r, g, b] = rgb.map(|v| v / 255.0);
        let y = RED * r + (1.0 - RED - BLUE) * g + BLUE * b;
        let difference = |colour: f64, own: f64| 224.0 * (colour - y) / (2.0 * (1.0 - own)) + 128.0;
        [219.0 * y + 16.0, difference(b, BLUE), difference(r, RED)]
    }

    #[test]
    fn planes_are_those_of_the_equations_to_one_code() {
        let (f, h, w) = (2, 6, 10);
        let bytes: Vec<u8> = (0..f * h * w * 3).map(|i: usize| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        let values: Vec<f32> = bytes.iter().map(|b| f32::from(*b) / 255.0).collect();
        let planes = rgb_to_yuv420(&Tensor::from_f32(&values, &[f, h, w, 3]).unwrap()).unwrap();
        for frame in 0..f {
            let pixel = |y: usize, x: usize| -> [f64; 3] {
                [0, 1, 2].map(|c| f64::from(bytes[((frame * h + y) * w + x) * 3 + c]))
            };
            let planes = &planes[frame * h * w * 3 / 2..];
            let near = |got: u8, expected: f64| assert!((f64::from(got) - expected).abs() <= 1.0, "{got}, {expected}");
            for (i, got) in planes[..h * w].iter().enumerate() {
                near(*got, equations(pixel(i / w, i % w))[0]);
            }
            for i in 0..h * w / 4 {
                let (y, x) = (i / (w / 2) * 2, i % (w / 2) * 2);
                let four = [pixel(y, x), pixel(y, x + 1), pixel(y + 1, x), pixel(y + 1, x + 1)];
                let mean = [0, 1, 2].map(|c| four.iter().map(|p| p[c]).sum::<f64>() / 4.0);
                near(planes[h * w + i], equations(mean)[1]);
                near(planes[h * w * 5 / 4 + i], equations(mean)[2]);
            }
        }
    }

    #[test]
    fn the_corners_of_the_cube_have_their_published_codes() {
        let codes = [
            ([0.0, 0.0, 0.0], [16, 128, 128]),
            ([1.0, 1.0, 1.0], [235, 128, 128]),
            ([1.0, 0.0, 0.0], [63, 102, 240]),
            ([0.0, 1.0, 0.0], [173, 42, 26]),
            ([0.0, 0.0, 1.0], [32, 240, 118]),
            // Outside of the range, or not a number: as the nearest byte, or black.
            ([-3.0, 9.0, f32::NAN], [173, 42, 26]),
        ];
        for (rgb, [y, u, v]) in codes {
            let picture = Tensor::from_vec(rgb.repeat(4), &[2, 2, 3]).unwrap();
            assert_eq!(rgb_to_yuv420(&picture).unwrap(), [y, y, y, y, u, v], "{rgb:?}");
        }
    }

    #[test]
    fn odd_sides_and_other_channels_are_refused() {
        for shape in [[3, 2, 3], [2, 3, 3], [2, 2, 4]] {
            let zeros = Tensor::zeros(&shape, crate::Dtype::F32).unwrap();
            assert!(rgb_to_yuv420(&zeros).is_err(), "{shape:?}");
        }
    }
}
