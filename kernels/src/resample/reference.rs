//! Plain resampling, one output value at a time.

/// [f, h, w, c] → [f, 2h, 2w, c].
pub(super) fn upsample_nearest2x(x: &[f32], [f, h, w, c]: [usize; 4]) -> Vec<f32> {
    let mut out = Vec::with_capacity(4 * x.len());
    for row in 0..f * 2 * h {
        let source = row / (2 * h) * h + row % (2 * h) / 2;
        for col in 0..2 * w {
            out.extend_from_slice(&x[(source * w + col / 2) * c..][..c]);
        }
    }
    out
}

/// [f, h, w, c] → [f, height, width, c].
pub(super) fn resize_bilinear(x: &[f32], [f, h, w, c]: [usize; 4], height: usize, width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(f * height * width * c);
    for frame in x.chunks_exact(h * w * c).take(f) {
        for row in 0..height {
            let (y0, y1, fy) = neighbours(row, h, height);
            for col in 0..width {
                let (x0, x1, fx) = neighbours(col, w, width);
                for channel in 0..c {
                    let at = |y: usize, x: usize| frame[(y * w + x) * c + channel];
                    let top = at(y0, x0) + fx * (at(y0, x1) - at(y0, x0));
                    let bottom = at(y1, x0) + fx * (at(y1, x1) - at(y1, x0));
                    out.push(top + fy * (bottom - top));
                }
            }
        }
    }
    out
}

/// The two source positions under output position `i`, and the weight of the second.
pub(super) fn neighbours(i: usize, from: usize, to: usize) -> (usize, usize, f32) {
    let position = ((i as f32 + 0.5) * (from as f32 / to as f32) - 0.5).max(0.0);
    let first = (position as usize).min(from - 1);
    (first, (first + 1).min(from - 1), position - first as f32)
}

/// [f, h, w, c] → [f, 2h, 2w, c / 4].
pub(super) fn pixel_shuffle2x(x: &[f32], [f, h, w, c]: [usize; 4]) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in 0..f * 2 * h {
        for col in 0..2 * w {
            let pixel = &x[(row / 2 * w + col / 2) * c..][..c];
            out.extend(pixel.iter().skip(row % 2 * 2 + col % 2).step_by(4));
        }
    }
    out
}

/// image [h, w, c], flow [h, w, 2] → [h, w, c]. A flow that is not a number reads row or column 0.
pub(super) fn backward_warp(image: &[f32], [h, w, c]: [usize; 3], flow: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(image.len());
    for i in 0..h * w {
        let clamp = |v: f32, n: usize| v.max(0.0).min((n - 1) as f32);
        let x = clamp((i % w) as f32 + flow[2 * i], w);
        let y = clamp((i / w) as f32 + flow[2 * i + 1], h);
        let (x0, y0) = (x as usize, y as usize);
        let (x1, y1) = ((x0 + 1).min(w - 1), (y0 + 1).min(h - 1));
        let (fx, fy) = (x - x0 as f32, y - y0 as f32);
        for channel in 0..c {
            let at = |y: usize, x: usize| image[(y * w + x) * c + channel];
            let top = at(y0, x0) * (1.0 - fx) + at(y0, x1) * fx;
            let bottom = at(y1, x0) * (1.0 - fx) + at(y1, x1) * fx;
            out.push(top * (1.0 - fy) + bottom * fy);
        }
    }
    out
}

/// a, b [pixels, c], mask `[pixels]` of logits → [pixels, c].
pub(super) fn blend_mask(a: &[f32], b: &[f32], mask: &[f32], c: usize) -> Vec<f32> {
    let weight = |i: usize| 1.0 / (1.0 + (-mask[i / c]).exp());
    a.iter().zip(b).enumerate().map(|(i, (a, b))| a * weight(i) + b * (1.0 - weight(i))).collect()
}
