//! Pictures at other sizes, byte for byte as Pillow makes them: the reference pipelines resize with it, and encoders were
//! trained on what it gives. A resampler with 15-bit weights is off by one in about one byte of a hundred, which the parity
//! of the image-to-video pipelines does not allow; Pillow's weights have 22 bits.
//!
//! Method: separable convolution, across and then down, with the filter widened when shrinking; bytes in between.

use pipeline::{Frame, FrameSize};
use rayon::prelude::*;
use std::f64::consts::PI;

/// A filter of Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Cubic with a = −0.5 (Catmull-Rom): CLIP's.
    Bicubic,
    /// Sinc windowed to three lobes: for pictures that go through a VAE.
    Lanczos,
}

impl Filter {
    fn radius(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        let distance = x.abs();
        match self {
            Self::Bicubic if distance < 1.0 => (1.5 * distance - 2.5) * distance * distance + 1.0,
            Self::Bicubic if distance < 2.0 => (((distance - 5.0) * distance + 8.0) * distance - 4.0) * -0.5,
            Self::Lanczos if distance < 3.0 => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

/// `frame` at `size`, stretched to its proportions.
pub fn resample(frame: &Frame, size: FrameSize, filter: Filter) -> Frame {
    let from = frame.size();
    let mut rgb = frame.rgb().to_vec();
    if rgb.is_empty() {
        rgb = vec![0; size.rgb_bytes()];
    } else {
        if from.width != size.width {
            rgb = across(&rgb, from.width as usize, &windows(from.width, size.width, filter));
        }
        if from.height != size.height {
            rgb = down(&rgb, size.width as usize, &windows(from.height, size.height, filter));
        }
    }
    Frame::new(size, rgb).expect("every pass leaves whole pixels of the size that it is given")
}

/// Bits of a weight's fraction: eight are the byte's, two are room for sums beyond it.
const WEIGHT_BITS: u32 = 32 - 8 - 2;

/// The source pixels that one target pixel is made of.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

fn windows(from: u32, to: u32, filter: Filter) -> Vec<Window> {
    let scale = f64::from(from) / f64::from(to);
    let widening = scale.max(1.0);
    let radius = filter.radius() * widening;
    let window = |i: u32| {
        let centre = (f64::from(i) + 0.5) * scale;
        let start = (centre - radius + 0.5).max(0.0) as usize;
        let end = ((centre + radius + 0.5) as usize).min(from as usize);
        let weight = |x: usize| filter.at((x as f64 - centre + 0.5) / widening);
        let weights: Vec<f64> = (start..end).map(weight).collect();
        let total: f64 = weights.iter().sum();
        let fixed = |weight: &f64| (weight / total * f64::from(1u32 << WEIGHT_BITS)).round() as i32;
        Window { start, weights: weights.iter().map(fixed).collect() }
    };
    (0..to).map(window).collect()
}

/// Sums of weighted bytes start at a half, so that cutting off the fraction rounds.
const HALF: i32 = 1 << (WEIGHT_BITS - 1);

fn byte(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

fn across(rgb: &[u8], width: usize, windows: &[Window]) -> Vec<u8> {
    let mut out = vec![0; rgb.len() / width * windows.len()];
    out.par_chunks_exact_mut(windows.len() * 3).zip(rgb.par_chunks_exact(width * 3)).for_each(|(out, row)| {
        for (pixel, window) in out.chunks_exact_mut(3).zip(windows) {
            let mut sums = [HALF; 3];
            for (source, weight) in row[window.start * 3..].chunks_exact(3).zip(&window.weights) {
                sums.iter_mut().zip(source).for_each(|(sum, value)| *sum += i32::from(*value) * weight);
            }
            pixel.iter_mut().zip(sums).for_each(|(value, sum)| *value = byte(sum));
        }
    });
    out
}

fn down(rgb: &[u8], width: usize, windows: &[Window]) -> Vec<u8> {
    let row_bytes = width * 3;
    let mut out = vec![0; row_bytes * windows.len()];
    out.par_chunks_exact_mut(row_bytes).zip(windows).for_each(|(out, window)| {
        let mut sums = vec![HALF; row_bytes];
        for (row, weight) in rgb[window.start * row_bytes..].chunks_exact(row_bytes).zip(&window.weights) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += i32::from(*value) * weight);
        }
        out.iter_mut().zip(sums).for_each(|(value, sum)| *value = byte(sum));
    });
    out
}
