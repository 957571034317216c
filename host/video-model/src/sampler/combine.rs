//! The one loop of all update rules: a weighted sum of latents.

/// Weights and latents of the length of the result.
pub(super) type Terms<'a> = [(f64, &'a [f32])];

/// `target` becomes factor·target + Σ weight·term, summed in f64 and rounded once. A block at a time, so that the sums
/// stay in the nearest cache and each pass is a plain vector loop.
pub(super) fn combine(target: &mut [f32], factor: f64, terms: &Terms<'_>) {
    const BLOCK: usize = 512;
    let mut sums = [0.0f64; BLOCK];
    for (index, block) in target.chunks_mut(BLOCK).enumerate() {
        let sums = &mut sums[..block.len()];
        for (sum, x) in sums.iter_mut().zip(&*block) {
            *sum = factor * f64::from(*x);
        }
        for (weight, term) in terms {
            for (sum, x) in sums.iter_mut().zip(&term[index * BLOCK..]) {
                *sum += weight * f64::from(*x);
            }
        }
        for (x, sum) in block.iter_mut().zip(&*sums) {
            *x = *sum as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_over_more_than_a_block_is_right_to_the_end() {
        let mut x: Vec<f32> = (0..1030).map(|i| i as f32).collect();
        let y: Vec<f32> = (0..1030).map(|i| (i * i) as f32).collect();
        combine(&mut x, 2.0, &[(0.5, &y), (-1.0, &y)]);
        assert!(x.iter().enumerate().all(|(i, x)| *x == 2.0 * i as f32 - 0.5 * (i * i) as f32));
    }
}
