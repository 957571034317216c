//! The initial noise of a generation: standard normal numbers that depend on the seed and on nothing else. And latents
//! as files, so that a generation can start from the noise of another program.

use crate::error::{ModelError, Result};
use crate::weights::Weights;
use kernels::Dtype;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use safetensors::tensor::TensorView;
use std::f64::consts::TAU;
use std::path::Path;

/// Shape of a latent: channels, frames, height, width. Its elements lie in that order, width fastest.
pub type LatentShape = [usize; 4];

/// `count` standard normal numbers: the first stream of `seed`. The noise that a generation starts from.
pub fn gaussian(seed: u64, count: usize) -> Vec<f32> {
    let mut noise = vec![0.0; count];
    fill_gaussian(seed, 0, &mut noise);
    noise
}

/// Fills `noise` with standard normal numbers: the ChaCha20 stream number `stream` of `seed` through the Box–Muller
/// transform, two numbers from two 32-bit words. Own arithmetic rather than a library's, so that a seed means the same
/// noise in every later version. Streams do not overlap: a sampler's step k takes stream k + 1.
pub fn fill_gaussian(seed: u64, stream: u64, noise: &mut [f32]) {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut words = ChaCha20Rng::from_seed(key);
    words.set_stream(stream);
    const WORDS: f64 = 4_294_967_296.0;
    for pair in noise.chunks_mut(2) {
        // The first is never 0, whose logarithm is not finite.
        let radius = (-2.0 * ((f64::from(words.next_u32()) + 1.0) / WORDS).ln()).sqrt();
        let (sin, cos) = (TAU * f64::from(words.next_u32()) / WORDS).sin_cos();
        for (x, side) in pair.iter_mut().zip([cos, sin]) {
            *x = (radius * side) as f32;
        }
    }
}

/// The f32 tensor `name` of `shape` from a safetensors file; a leading batch dimension of 1 is allowed.
pub fn load_latent(path: &Path, name: &str, shape: LatentShape) -> Result<Vec<f32>> {
    let file = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| ModelError::File { file: file.clone(), source })?;
    let weights = Weights::from_bytes(&file, bytes)?;
    let batched = [&[1], shape.as_slice()].concat();
    let stored = if weights.shape(name) == Some(&batched) { batched.as_slice() } else { shape.as_slice() };
    Ok(weights.tensor(name, stored, Dtype::F32)?.to_vec_f32())
}

/// Writes `latent` as the f32 tensor `name` of a new safetensors file.
pub fn save_latent(path: &Path, name: &str, shape: LatentShape, latent: &[f32]) -> Result<()> {
    let file = || path.display().to_string();
    let bytes: Vec<u8> = latent.iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &bytes)
        .map_err(|e| ModelError::Input(format!("latent {shape:?} with {} values: {e}", latent.len())))?;
    let encoded = safetensors::serialize([(name, view)], None)
        .map_err(|e| ModelError::Input(format!("{}: cannot be encoded: {e}", file())))?;
    std::fs::write(path, encoded).map_err(|e| ModelError::Input(format!("{}: cannot be written: {e}", file())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_the_same_noise_for_ever() {
        // Changing these numbers changes every video that a tenant has reproduced from a seed.
        // They agree with ChaCha20 as written down in RFC 8439, computed elsewhere.
        let pinned = [
            [-0.810_606_5, -0.341_418_15, 0.253_044_63, 0.394_022_7],
            [-0.090_030_65, 0.794_951_8, 1.718_513_7, 0.605_216_4],
        ];
        for (seed, expected) in [0, 7].into_iter().zip(pinned) {
            for (a, b) in gaussian(seed, 4).iter().zip(expected) {
                assert!((a - b).abs() < 1e-6, "seed {seed}: {:?}", gaussian(seed, 4));
            }
        }
    }

    #[test]
    fn a_longer_latent_starts_with_the_shorter_one() {
        let long = gaussian(3, 1001);
        assert_eq!(gaussian(3, 501), long[..501]);
        assert!(gaussian(4, 501).iter().zip(&long).filter(|(a, b)| a == b).count() < 3);
    }

    #[test]
    fn streams_of_a_seed_are_strangers() {
        let n = 10_000;
        let (first, mut second) = (gaussian(3, n), vec![0.0; n]);
        fill_gaussian(3, 1, &mut second);
        let correlation = first.iter().zip(&second).map(|(a, b)| f64::from(a * b)).sum::<f64>() / n as f64;
        assert!(correlation.abs() < 5.0 / (n as f64).sqrt(), "{correlation}");
    }

    #[test]
    fn the_noise_is_standard_normal() {
        let n = 200_000;
        let noise = gaussian(42, n);
        let moment = |k: i32| noise.iter().map(|x| f64::from(*x).powi(k)).sum::<f64>() / n as f64;
        // Five standard errors of each moment: sqrt(1/n), sqrt(2/n), sqrt(15/n), sqrt(96/n).
        for (k, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let error = (moment(k) - expected).abs();
            assert!(error < 5.0 * (variance / n as f64).sqrt(), "moment {k} is {}", moment(k));
        }
        let neighbours = noise.windows(2).map(|w| f64::from(w[0] * w[1])).sum::<f64>() / n as f64;
        assert!(neighbours.abs() < 5.0 / (n as f64).sqrt());
    }

    #[test]
    fn latents_survive_a_file_and_a_wrong_shape_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("noise.safetensors");
        let noise = gaussian(1, 24);
        save_latent(&path, "noise", [2, 1, 3, 4], &noise).unwrap();
        assert_eq!(load_latent(&path, "noise", [2, 1, 3, 4]).unwrap(), noise);
        assert!(load_latent(&path, "noise", [2, 1, 4, 3]).is_err());
        assert!(load_latent(&path, "latents", [2, 1, 3, 4]).is_err());
        assert!(save_latent(&path, "noise", [2, 1, 3, 5], &noise).is_err());
    }
}
