//! What a sampler needs between two answers of a network: weighted sums of whole latents in one pass, their inner products,
//! and whether all went well.

use super::cuda;
use crate::buffer::Buffer;
use crate::cuda::device_of;
use crate::error::{Result, argument_error, dtype_error, shape_error};
use crate::parallel;
use crate::tensor::{Storage, Tensor};

/// Tensors that [`combine_step`] reads and makes at most.
pub(super) const INPUTS_MAX: usize = 8;
pub(super) const OUTPUTS_MAX: usize = 4;
/// Tensors that [`gram`] takes at most, and the numbers that it makes of them.
pub(super) const GRAM_INPUTS_MAX: usize = 4;
pub(super) const GRAM_SUMS: usize = GRAM_INPUTS_MAX * (GRAM_INPUTS_MAX + 3) / 2;

/// Elements that one task handles. Sums depend on it in their last bits, so it does not depend on the number of threads.
const PIECE: usize = 16 * 1024;

/// Several weighted sums of the same tensors: result `o` is Σ `weights[o][i]` · `inputs[i]`, summed in f64 and rounded once.
///
/// A whole step of a guided sampler is one call: from the latent, the answers with and without the prompt and the remembered
/// predictions to the new latent, the guided answer and the prediction to remember, all of which are such sums.
/// One to 8 inputs, f32 and of one shape; one to 4 rows of weights, each as long as `inputs`. An input of weight 0 is not looked
/// at, so that what is not finite in it does no harm.
pub fn combine_step(inputs: &[&Tensor], weights: &[&[f64]]) -> Result<Vec<Tensor>> {
    const OP: &str = "combine_step";
    check_inputs(OP, inputs, INPUTS_MAX)?;
    if weights.is_empty() || weights.len() > OUTPUTS_MAX || weights.iter().any(|row| row.len() != inputs.len()) {
        let lengths: Vec<usize> = weights.iter().map(|row| row.len()).collect();
        let needed = format!("1 to {OUTPUTS_MAX} rows of {} weights are needed", inputs.len());
        return argument_error(OP, format!("{needed}, their lengths are {lengths:?}"));
    }
    if let Some(device) = device_of(OP, inputs)? {
        return cuda::combine_step(&device, inputs, weights);
    }
    let values: Vec<&[f32]> = inputs.iter().filter_map(|x| x.as_f32()).collect();
    let sum = |row: &&[f64]| Tensor::new(Storage::F32(weighted_sum(row, &values)), inputs[0].shape());
    Ok(weights.iter().map(sum).collect())
}

fn weighted_sum(weights: &[f64], inputs: &[&[f32]]) -> Buffer<f32> {
    let len = inputs[0].len();
    let mut out = Buffer::zeros(len);
    parallel::for_each_piece(&mut out, PIECE, len * inputs.len(), |piece, out| {
        // A block at a time, so that the sums stay in the nearest cache and each pass is a plain vector loop.
        const BLOCK: usize = 512;
        let mut sums = [0.0f64; BLOCK];
        for (i, out) in out.chunks_mut(BLOCK).enumerate() {
            let sums = &mut sums[..out.len()];
            sums.fill(0.0);
            for (weight, input) in weights.iter().zip(inputs).filter(|(weight, _)| **weight != 0.0) {
                for (sum, x) in sums.iter_mut().zip(&input[piece * PIECE + i * BLOCK..]) {
                    *sum += weight * f64::from(*x);
                }
            }
            for (out, sum) in out.iter_mut().zip(&*sums) {
                *out = *sum as f32;
            }
        }
    });
    out
}

/// Sums and inner products of a few tensors, from which those of all their weighted sums follow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gram {
    /// Σ xᵢ
    sums: [f64; GRAM_INPUTS_MAX],
    /// ⟨xᵢ, xⱼ⟩
    products: [[f64; GRAM_INPUTS_MAX]; GRAM_INPUTS_MAX],
    /// Elements of each tensor.
    len: usize,
}

impl Gram {
    fn new(sums: &[f64; GRAM_SUMS], len: usize) -> Self {
        let (first, rest) = sums.split_at(GRAM_INPUTS_MAX);
        let mut gram = Self { sums: [0.0; 4], products: [[0.0; 4]; 4], len };
        gram.sums.copy_from_slice(first);
        let pairs = (0..GRAM_INPUTS_MAX).flat_map(|a| (a..GRAM_INPUTS_MAX).map(move |b| (a, b)));
        for ((a, b), product) in pairs.zip(rest) {
            (gram.products[a][b], gram.products[b][a]) = (*product, *product);
        }
        gram
    }

    /// ⟨a, b⟩ of the tensors' sums with weights `a` and `b`, which may be shorter than there are tensors.
    pub fn dot(&self, a: &[f64], b: &[f64]) -> f64 {
        let row = |products: &[f64; GRAM_INPUTS_MAX]| b.iter().zip(products).map(|(b, p)| b * p).sum::<f64>();
        a.iter().zip(&self.products).map(|(a, products)| a * row(products)).sum()
    }

    /// Standard deviation (of a sample: divided by n − 1) of the elements of the tensors' sum with `weights`.
    pub fn standard_deviation(&self, weights: &[f64]) -> f64 {
        let count = self.len as f64;
        let mean = weights.iter().zip(&self.sums).map(|(w, s)| w * s).sum::<f64>() / count;
        let variance = (self.dot(weights, weights) - count * mean * mean) / (count - 1.0).max(1.0);
        variance.max(0.0).sqrt()
    }
}

/// Sums and inner products of one to 4 f32 tensors of one shape in one pass, in f64 and in an order that depends only on their
/// length; waits for a device.
pub fn gram(inputs: &[&Tensor]) -> Result<Gram> {
    const OP: &str = "gram";
    check_inputs(OP, inputs, GRAM_INPUTS_MAX)?;
    let len = inputs[0].len();
    if let Some(device) = device_of(OP, inputs)? {
        return Ok(Gram::new(&cuda::gram(&device, inputs)?, len));
    }
    let values: Vec<&[f32]> = inputs.iter().filter_map(|x| x.as_f32()).collect();
    let mut parts = vec![[0.0; GRAM_SUMS]; len.div_ceil(PIECE)];
    parallel::for_each_piece(&mut parts, 1, len * GRAM_SUMS, |piece, part| {
        let range = piece * PIECE..((piece + 1) * PIECE).min(len);
        let cut: Vec<&[f32]> = values.iter().map(|values| &values[range.clone()]).collect();
        part[0] = sums_of(&cut);
    });
    let mut sums = [0.0; GRAM_SUMS];
    for part in &parts {
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    Ok(Gram::new(&sums, len))
}

/// The tensors' sums, then the products of each with itself and those behind it; zeros for absent tensors.
fn sums_of(inputs: &[&[f32]]) -> [f64; GRAM_SUMS] {
    let mut sums = [0.0; GRAM_SUMS];
    let mut at = GRAM_INPUTS_MAX;
    for a in 0..GRAM_INPUTS_MAX {
        for b in a..GRAM_INPUTS_MAX {
            if let (Some(x), Some(y)) = (inputs.get(a), inputs.get(b)) {
                sums[at] = sum(x.iter().zip(*y), |(x, y)| f64::from(*x) * f64::from(*y));
            }
            at += 1;
        }
        sums[a] = inputs.get(a).map_or(0.0, |x| sum(x.iter(), |x| f64::from(*x)));
    }
    sums
}

/// Sixteen sums in turn, so that a core has something to do while it waits for the last addition.
fn sum<T>(mut values: impl ExactSizeIterator<Item = T>, of: impl Fn(T) -> f64) -> f64 {
    const LANES: usize = 16;
    let mut sums = [0.0f64; LANES];
    for _ in 0..values.len() / LANES {
        for (sum, value) in sums.iter_mut().zip(values.by_ref().take(LANES)) {
            *sum += of(value);
        }
    }
    sums.iter().sum::<f64>() + values.map(of).sum::<f64>()
}

/// Whether no element is infinite or not a number; waits for a device.
pub fn all_finite(x: &Tensor) -> Result<bool> {
    if let Some(device) = device_of("all_finite", &[x])? {
        return cuda::all_finite(&device, x);
    }
    Ok(match (x.as_f32(), x.as_bf16()) {
        (Some(values), _) => values.iter().all(|v| v.is_finite()),
        (_, Some(values)) => values.iter().all(|v| v.is_finite()),
        _ => unreachable!("a tensor in host memory is f32 or bf16"),
    })
}

/// One to `count_max` f32 tensors of one shape.
fn check_inputs(op: &'static str, inputs: &[&Tensor], count_max: usize) -> Result<()> {
    let Some(first) = inputs.first().filter(|_| inputs.len() <= count_max) else {
        return argument_error(op, format!("{} tensors, 1 to {count_max} are needed", inputs.len()));
    };
    if let Some(odd) = inputs.iter().find(|x| x.shape() != first.shape()) {
        return shape_error(op, format!("{:?} and {:?} differ", first.shape(), odd.shape()));
    }
    match inputs.iter().all(|x| x.dtype() == crate::Dtype::F32) {
        true => Ok(()),
        false => dtype_error(op, "all tensors must be f32"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    fn wave(len: usize, step: f32) -> Tensor {
        Tensor::from_vec((0..len).map(|i| (i as f32 * step).sin() + 0.25).collect(), &[len]).unwrap()
    }

    #[test]
    fn a_step_makes_every_sum_and_skips_what_has_no_weight() {
        let (a, b) = (wave(40_001, 0.7), wave(40_001, 0.3));
        let broken = Tensor::from_vec(vec![f32::NAN; 40_001], &[40_001]).unwrap();
        let made = combine_step(&[&a, &b, &broken], &[&[2.0, -0.5, 0.0], &[0.0, 1.0, 0.0]]).unwrap();
        let [a, b] = [a.to_vec_f32(), b.to_vec_f32()];
        let expected: Vec<f32> =
            a.iter().zip(&b).map(|(a, b)| (2.0 * f64::from(*a) - 0.5 * f64::from(*b)) as f32).collect();
        assert_eq!((made[0].to_vec_f32(), made[1].to_vec_f32()), (expected, b));
    }

    #[test]
    fn a_gram_tells_products_and_deviations_of_any_sum() {
        let (x, y) = (wave(50_003, 0.7), wave(50_003, 0.3));
        let gram = gram(&[&x, &y]).unwrap();
        let (x, y) = (x.to_vec_f32(), y.to_vec_f32());
        let sum: Vec<f64> = x.iter().zip(&y).map(|(x, y)| 3.0 * f64::from(*x) - f64::from(*y)).collect();
        let dot: f64 = sum.iter().zip(&y).map(|(s, y)| s * f64::from(*y)).sum();
        assert!((gram.dot(&[3.0, -1.0], &[0.0, 1.0]) - dot).abs() < 1e-9 * dot.abs());
        let mean = sum.iter().sum::<f64>() / sum.len() as f64;
        let variance = sum.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (sum.len() - 1) as f64;
        assert!((gram.standard_deviation(&[3.0, -1.0]) - variance.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn one_number_that_is_not_finite_is_found_wherever_it_is() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut values = vec![1e30f32; 1000];
            let finite =
                |values: &[f32]| all_finite(&Tensor::from_f32(values, &[1000]).unwrap().to_dtype(dtype)).unwrap();
            assert!(finite(&values));
            values[999] = f32::NEG_INFINITY;
            assert!(!finite(&values));
            values[999] = 0.0;
            values[3] = f32::NAN;
            assert!(!finite(&values));
        }
    }

    #[test]
    fn steps_refuse_what_does_not_fit_together() {
        let (a, b) = (wave(4, 1.0), wave(5, 1.0));
        assert!(combine_step(&[&a, &b], &[&[1.0, 1.0]]).is_err());
        assert!(combine_step(&[&a], &[&[1.0, 1.0]]).is_err() && combine_step(&[&a], &[]).is_err());
        assert!(combine_step(&[&a; 9], &[&[1.0; 9]]).is_err() && combine_step(&[], &[&[]]).is_err());
        assert!(gram(&[&a.to_dtype(Dtype::Bf16)]).is_err() && gram(&[&a; 5]).is_err());
    }
}
