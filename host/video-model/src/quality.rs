//! How close one frame sequence is to another.

use pipeline::Frame;
use thiserror::Error;

/// Two sequences cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the sequences do not match: {0}")]
pub struct Mismatch(String);

/// Means over all frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Peak signal-to-noise ratio in dB: of each frame over all pixels and channels, then averaged. Identical frames
    /// count as 100 dB.
    pub psnr_db: f64,
    /// Structural similarity (Wang et al. 2004), from −1 to 1: of each channel with a Gaussian window of 11×11 pixels,
    /// σ 1.5, K = (0.01, 0.03), over the positions where the window fits; averaged over channels and frames. A frame
    /// smaller than the window is compared as one window of its own size.
    pub ssim: f64,
}

/// What identical frames count as: their ratio is infinite and would hide all others in a mean.
const PSNR_OF_EQUALS_DB: f64 = 100.0;

/// Compares two sequences frame by frame.
pub fn compare(reference: &[Frame], other: &[Frame]) -> Result<Quality, Mismatch> {
    if reference.len() != other.len() || reference.is_empty() {
        return Err(Mismatch(format!("{} frames against {}", reference.len(), other.len())));
    }
    let mut sum = Quality { psnr_db: 0.0, ssim: 0.0 };
    for (index, (a, b)) in reference.iter().zip(other).enumerate() {
        if a.size() != b.size() {
            return Err(Mismatch(format!("frame {index} is {} in one and {} in the other", a.size(), b.size())));
        }
        sum.psnr_db += psnr_db(a, b);
        sum.ssim += ssim(a, b);
    }
    let n = reference.len() as f64;
    Ok(Quality { psnr_db: sum.psnr_db / n, ssim: sum.ssim / n })
}

/// 10·log₁₀(255² / mean squared error) of two frames of one size.
fn psnr_db(a: &Frame, b: &Frame) -> f64 {
    let squares: u64 = a.rgb().iter().zip(b.rgb()).map(|(x, y)| u64::from(x.abs_diff(*y)).pow(2)).sum();
    if squares == 0 {
        return PSNR_OF_EQUALS_DB;
    }
    10.0 * (255.0f64.powi(2) * a.rgb().len() as f64 / squares as f64).log10()
}

fn ssim(a: &Frame, b: &Frame) -> f64 {
    (0..3).map(|channel| ssim_of_channel(&Plane::of(a, channel), &Plane::of(b, channel))).sum::<f64>() / 3.0
}

struct Plane {
    width: usize,
    height: usize,
    values: Vec<f32>,
}

impl Plane {
    fn of(frame: &Frame, channel: usize) -> Self {
        let values = frame.rgb().iter().skip(channel).step_by(3).map(|&v| f32::from(v)).collect();
        Self { width: frame.size().width as usize, height: frame.size().height as usize, values }
    }

    fn product(&self, other: &Self) -> Self {
        let values = self.values.iter().zip(&other.values).map(|(x, y)| x * y).collect();
        Self { width: self.width, height: self.height, values }
    }

    /// Weighted means of every window that fits, horizontally and then vertically.
    fn window_means(&self, across: &[f32], down: &[f32]) -> Vec<f32> {
        let width = self.width + 1 - across.len();
        let mut rows = Vec::with_capacity(width * self.height);
        for row in self.values.chunks_exact(self.width) {
            rows.extend(row.windows(across.len()).map(|w| w.iter().zip(across).map(|(x, g)| x * g).sum::<f32>()));
        }
        let height = self.height + 1 - down.len();
        let mut means = vec![0.0; width * height];
        for (y, out) in means.chunks_exact_mut(width).enumerate() {
            for (k, g) in down.iter().enumerate() {
                for (mean, x) in out.iter_mut().zip(&rows[(y + k) * width..]) {
                    *mean += g * x;
                }
            }
        }
        means
    }
}

fn gaussian_window(side: usize) -> Vec<f32> {
    const SIGMA: f64 = 1.5;
    let centre = (side - 1) as f64 / 2.0;
    let raw: Vec<f64> = (0..side).map(|i| (-0.5 * ((i as f64 - centre) / SIGMA).powi(2)).exp()).collect();
    let sum: f64 = raw.iter().sum();
    raw.into_iter().map(|g| (g / sum) as f32).collect()
}

fn ssim_of_channel(a: &Plane, b: &Plane) -> f64 {
    const WINDOW: usize = 11;
    const C1: f64 = (0.01 * 255.0) * (0.01 * 255.0);
    const C2: f64 = (0.03 * 255.0) * (0.03 * 255.0);
    let (across, down) = (gaussian_window(WINDOW.min(a.width)), gaussian_window(WINDOW.min(a.height)));
    let means = |plane: &Plane| plane.window_means(&across, &down);
    let (mean_a, mean_b) = (means(a), means(b));
    let (aa, bb, ab) = (means(&a.product(a)), means(&b.product(b)), means(&a.product(b)));
    let mut sum = 0.0;
    for i in 0..mean_a.len() {
        let (ma, mb) = (f64::from(mean_a[i]), f64::from(mean_b[i]));
        let variances = (f64::from(aa[i]) - ma * ma) + (f64::from(bb[i]) - mb * mb);
        let covariance = f64::from(ab[i]) - ma * mb;
        sum += (2.0 * ma * mb + C1) * (2.0 * covariance + C2) / ((ma * ma + mb * mb + C1) * (variances + C2));
    }
    sum / mean_a.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipeline::FrameSize;

    fn frame(width: u32, height: u32, pixel: impl Fn(u32, u32, u32) -> u8) -> Frame {
        let at = |i: u32| pixel(i / 3 % width, i / 3 / width, i % 3);
        Frame::new(FrameSize { width, height }, (0..width * height * 3).map(at).collect()).unwrap()
    }

    fn texture() -> Frame {
        frame(40, 24, |x, y, c| ((x * 37 + y * 91 + c * 53) * (x + 3) % 251) as u8)
    }

    #[test]
    fn equal_sequences_are_perfect() {
        let q = compare(&[texture(), texture()], &[texture(), texture()]).unwrap();
        assert_eq!(q.psnr_db, 100.0);
        assert!((q.ssim - 1.0).abs() < 1e-4);
    }

    #[test]
    fn a_uniform_error_of_ten_levels_is_28_13_db() {
        let a = frame(16, 16, |_, _, _| 100);
        let b = frame(16, 16, |_, _, _| 110);
        let q = compare(&[a], &[b]).unwrap();
        assert!((q.psnr_db - 28.1308).abs() < 1e-3);
        // No structure: only the luminance term (2·100·110 + C1) / (100² + 110² + C1) is left.
        assert!((q.ssim - 0.99548).abs() < 1e-4, "{}", q.ssim);
    }

    #[test]
    fn ssim_agrees_with_scikit_image() {
        let (a, b) = (
            texture(),
            frame(40, 24, |x, y, c| ((x * 37 + y * 91 + c * 53) * (x + 3) % 251) as u8 / 2 + (x * y % 64) as u8),
        );
        // skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        // data_range=255, channel_axis=2), whose windows are 11 wide and whose border of 5 is left out as here.
        assert!((compare(&[a], &[b]).unwrap().ssim - 0.729_499_1).abs() < 2e-5);
    }

    #[test]
    fn sequences_that_do_not_match_are_refused() {
        assert!(compare(&[], &[]).is_err());
        assert!(compare(&[texture()], &[]).is_err());
        assert!(compare(&[texture()], &[frame(24, 40, |_, _, _| 0)]).is_err());
    }

    #[test]
    fn frames_smaller_than_the_window_are_one_window() {
        let a = frame(4, 2, |x, _, _| x as u8 * 10);
        assert!((compare(std::slice::from_ref(&a), std::slice::from_ref(&a)).unwrap().ssim - 1.0).abs() < 1e-4);
    }
}
