//! Resampling in float64.

use super::{Checker, DTYPES, dtype_name};
use crate::error::Result;
use crate::resample::{
    SizeFactors, add_averaged, add_repeated, backward_warp, blend_mask, pixel_shuffle2x, resize_bilinear,
    rgb_to_yuv420, upsample_nearest2x, warp_blend,
};
use crate::tensor::{Dtype, Tensor};

pub(super) fn check(to: &mut Checker<'_>) -> Result<()> {
    for dtype in DTYPES {
        for [h, w, c] in [[5, 7, 3], [19, 33, 8], [13, 41, 7], [1, 9, 16]] {
            warps(to, dtype, [h, w, c])?;
            sizes(to, dtype, [h, w, c])?;
        }
        shortcuts(to, dtype)?;
        planes(to, dtype)?;
    }
    Ok(())
}

/// Channel `c` of a picture [h, w, channels] at a place between its pixels, which is clamped to them.
fn sample(x: &[f64], [h, w, channels]: [usize; 3], c: usize, [row, column]: [f64; 2]) -> f64 {
    let split = |at: f64, n: usize| {
        let at = at.clamp(0.0, (n - 1) as f64);
        (at as usize, (at as usize + 1).min(n - 1), at.fract())
    };
    let ((y0, y1, fy), (x0, x1, fx)) = (split(row, h), split(column, w));
    let pixel = |y: usize, column: usize| x[(y * w + column) * channels + c];
    let line = |y: usize| pixel(y, x0) * (1.0 - fx) + pixel(y, x1) * fx;
    line(y0) * (1.0 - fy) + line(y1) * fy
}

fn warped(x: &[f64], [h, w, c]: [usize; 3], flow: &[f64]) -> Vec<f64> {
    let value = |i: usize| {
        let pixel = i / c;
        let place = [(pixel / w) as f64 + flow[2 * pixel + 1], (pixel % w) as f64 + flow[2 * pixel]];
        sample(x, [h, w, c], i % c, place)
    };
    (0..h * w * c).map(value).collect()
}

fn blended(a: &[f64], b: &[f64], mask: &[f64], c: usize) -> Vec<f64> {
    let weight = |i: usize| 1.0 / (1.0 + (-mask[i / c]).exp());
    (0..a.len()).map(|i| a[i] * weight(i) + b[i] * (1.0 - weight(i))).collect()
}

fn warps(to: &mut Checker<'_>, dtype: Dtype, [h, w, c]: [usize; 3]) -> Result<()> {
    let ((a, x), (b, y)) = (to.inputs.tensor(&[h, w, c], dtype)?, to.inputs.tensor(&[h, w, c], dtype)?);
    let reach = Dtype::F32;
    let (to_a, flow_a) = to.inputs.scaled(&[h, w, 2], reach, 6.0)?;
    let (to_b, flow_b) = to.inputs.scaled(&[h, w, 2], reach, 6.0)?;
    let (mask, logits) = to.inputs.scaled(&[h, w, 1], reach, 5.0)?;
    let (warped_a, warped_b) = (warped(&x, [h, w, c], &flow_a), warped(&y, [h, w, c], &flow_b));
    to.close(format!("backward_warp {h}x{w}x{c}"), dtype, &warped_a, || backward_warp(&a, &to_a))?;
    to.close(format!("blend_mask {h}x{w}x{c}"), dtype, &blended(&x, &y, &logits, c), || blend_mask(&a, &b, &mask))?;
    let expected = blended(&warped_a, &warped_b, &logits, c);
    to.close(format!("warp_blend {h}x{w}x{c}"), dtype, &expected, || warp_blend(&a, &b, &to_a, &to_b, &mask))
}

fn sizes(to: &mut Checker<'_>, dtype: Dtype, [h, w, c]: [usize; 3]) -> Result<()> {
    let (x, xs) = to.inputs.tensor(&[h, w, c], dtype)?;
    for [height, width] in [[2 * h, 2 * w], [h.div_ceil(2), w / 2], [h + 3, w - 2]] {
        let place = |i: usize, from: usize, to: usize| (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let value = |i: usize| {
            let (row, column) = (i / c / width, i / c % width);
            sample(&xs, [h, w, c], i % c, [place(row, h, height), place(column, w, width)])
        };
        let expected: Vec<f64> = (0..height * width * c).map(value).collect();
        to.close(format!("resize_bilinear {h}x{w}x{c} to {height}x{width}"), dtype, &expected, || {
            resize_bilinear(&x, height, width)
        })?;
    }
    let name = |op: &str| format!("{op} {h}x{w}x{c} {}", dtype_name(dtype));
    let pixel = |i: usize| (i / c / (2 * w) / 2 * w + i / c % (2 * w) / 2) * c + i % c;
    let expected: Vec<f64> = (0..4 * xs.len()).map(|i| xs[pixel(i)]).collect();
    to.within(name("upsample_nearest2x"), 0.0, &expected, || upsample_nearest2x(&x))?;
    let (x, xs) = to.inputs.tensor(&[h, w, 4 * c], dtype)?;
    let value = |i: usize| {
        let (row, column) = (i / c / (2 * w), i / c % (2 * w));
        xs[((row / 2) * w + column / 2) * 4 * c + i % c * 4 + row % 2 * 2 + column % 2]
    };
    let expected: Vec<f64> = (0..xs.len()).map(value).collect();
    to.within(name("pixel_shuffle2x"), 0.0, &expected, || pixel_shuffle2x(&x))
}

fn shortcuts(to: &mut Checker<'_>, dtype: Dtype) -> Result<()> {
    let (time, side) = (2, 2);
    let factors = SizeFactors { time, side };
    // The larger clip, and the smaller one's channels: the same pixels seen from both sides.
    for ([f, h, w, cin], cout) in [([3, 4, 6, 8], 16), ([4, 2, 2, 6], 12), ([1, 6, 4, 16], 8)] {
        let ((large, values), small_shape) =
            (to.inputs.tensor(&[f, h, w, cin], dtype)?, [f.div_ceil(time), h / side, w / side, cout]);
        let (small, smalls) = to.inputs.tensor(&small_shape, dtype)?;
        let [frames, height, width, _] = small_shape;
        let (volume, missing) = (time * side * side, f.next_multiple_of(time) - f);
        // Value `k` of the cin · volume that meet in a pixel of the smaller clip, in the order (channel, time, row, column).
        let met = |pixel: usize, k: usize| {
            let (channel, phase) = (k / volume, k % volume);
            let (frame, row, column) = (pixel / (height * width), pixel / width % height, pixel % width);
            let frame = (frame * time + phase / (side * side)).checked_sub(missing)?;
            let (row, column) = (row * side + phase / side % side, column * side + phase % side);
            Some(((frame * h + row) * w + column) * cin + channel)
        };
        let group = cin * volume / cout;
        let mean = |i: usize| {
            let taps = (i % cout * group..(i % cout + 1) * group).filter_map(|k| met(i / cout, k));
            smalls[i] + taps.map(|at| values[at]).sum::<f64>() / group as f64
        };
        let expected: Vec<f64> = (0..smalls.len()).map(mean).collect();
        to.close(format!("add_averaged {f}x{h}x{w}x{cin} to {cout}"), dtype, &expected, || {
            add_averaged(&small, &large, factors)
        })?;
        let repeats = cin * volume / cout;
        let mut expected = values.clone();
        for pixel in 0..frames * height * width {
            for k in 0..cin * volume {
                if let Some(at) = met(pixel, k) {
                    expected[at] += smalls[pixel * cout + k / repeats];
                }
            }
        }
        to.close(format!("add_repeated {cout} to {f}x{h}x{w}x{cin}"), dtype, &expected, || {
            add_repeated(&large, &small, factors)
        })?;
    }
    Ok(())
}

/// Codes of the planes by the equations of BT.709, not rounded.
fn planes(to: &mut Checker<'_>, dtype: Dtype) -> Result<()> {
    let (h, w) = (6, 16);
    let (half, _) = to.inputs.scaled(&[h, w, 3], dtype, 0.5)?;
    let grey = Tensor::from_vec(vec![0.5; h * w * 3], &[h, w, 3])?.to_dtype(dtype);
    let rgb = crate::elementwise::add(&half, &grey)?;
    let values: Vec<f64> = rgb.to_vec_f32().into_iter().map(f64::from).collect();
    let luma = |[r, g, b]: [f64; 3]| 0.2126 * r + 0.7152 * g + 0.0722 * b;
    let pixel = |i: usize| [values[3 * i], values[3 * i + 1], values[3 * i + 2]];
    let mut expected: Vec<f64> = (0..h * w).map(|i| 16.0 + 219.0 * luma(pixel(i))).collect();
    for (channel, own) in [(2, 0.0722), (0, 0.2126)] {
        expected.extend((0..h * w / 4).map(|i| {
            let first = i / (w / 2) * 2 * w + i % (w / 2) * 2;
            let four = [first, first + 1, first + w, first + w + 1].map(pixel);
            let mean = [0, 1, 2].map(|c| four.iter().map(|p| p[c]).sum::<f64>() / 4.0);
            128.0 + 224.0 * (mean[channel] - luma(mean)) / (2.0 * (1.0 - own))
        }));
    }
    // Bytes: half a code of around a hundred, twice.
    to.within(format!("rgb_to_yuv420 {h}x{w} {}", dtype_name(dtype)), 1e-2, &expected, || {
        let bytes = rgb_to_yuv420(&rgb)?;
        Tensor::from_vec(bytes.iter().map(|byte| f32::from(*byte)).collect(), &[bytes.len()])
    })
}
