//! Launches of `cuda/elementwise.cu`.

use super::step::{GRAM_INPUTS_MAX, GRAM_SUMS, INPUTS_MAX, OUTPUTS_MAX};
use crate::activation::Activation;
use crate::cuda::{CudaDevice, Fields, Module};
use crate::error::{Result, dtype_error};
use crate::tensor::{Dtype, Tensor};

/// Threads of a block, groups of values that a thread of `activate` and `clamp` moves, terms of a combination.
const THREADS: usize = 256;
const IN_FLIGHT: usize = 4;
const TERMS_MAX: usize = 16;
/// Blocks of sums over a whole tensor at most.
const SUM_BLOCKS_MAX: usize = 256;

/// Values of 16 bytes of the narrower of two dtypes, or of f32.
fn group(a: Dtype, b: Dtype) -> usize {
    if (a, b) == (Dtype::Bf16, Dtype::Bf16) { 8 } else { 4 }
}

fn blocks(len: usize, per_thread: usize) -> [usize; 3] {
    [len.div_ceil(THREADS * per_thread), 1, 1]
}

/// Blocks of a sum over `len` values: the same on every device, because the last bits of a sum depend on it.
fn sum_blocks(len: usize, per_thread: usize) -> usize {
    len.div_ceil(THREADS * per_thread).clamp(1, SUM_BLOCKS_MAX)
}

/// The activation of x, as `out`.
pub(super) fn activate(device: &CudaDevice, x: &Tensor, activation: Activation, out: Dtype) -> Result<Tensor> {
    const NAMES: [[&str; 2]; 2] =
        [["activate_f32_f32", "activate_f32_bf16"], ["activate_bf16_f32", "activate_bf16_bf16"]];
    let y = device.empty(x.shape(), out)?;
    let (code, slope) = activation.device_code();
    device
        .kernel(Module::Elementwise, NAMES[x.dtype().index()][out.index()])?
        .tensor(x)
        .tensor(&y)
        .long(x.len())
        .signed(code)
        .float(slope)
        .blocks(blocks(x.len(), IN_FLIGHT * group(x.dtype(), out)))
        .threads(THREADS)
        .run()?;
    Ok(y)
}

/// In place.
pub(super) fn clamp(device: &CudaDevice, mut x: Tensor, low: f32, high: f32) -> Result<Tensor> {
    const OP: &str = "clamp";
    if x.dtype() != Dtype::F32 {
        return dtype_error(OP, "the tensor written to must be f32");
    }
    x.unique(OP)?;
    device
        .kernel(Module::Elementwise, "clamp_f32")?
        .tensor(&x)
        .long(x.len())
        .float(low)
        .float(high)
        .blocks(blocks(x.len(), IN_FLIGHT * 4))
        .threads(THREADS)
        .run()?;
    Ok(x)
}

/// a·b in a's dtype.
pub(super) fn multiply(device: &CudaDevice, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    const NAMES: [[&str; 2]; 2] =
        [["multiply_f32_f32", "multiply_f32_bf16"], ["multiply_bf16_f32", "multiply_bf16_bf16"]];
    let y = device.empty(a.shape(), a.dtype())?;
    device
        .kernel(Module::Elementwise, NAMES[a.dtype().index()][b.dtype().index()])?
        .tensor(a)
        .tensor(b)
        .tensor(&y)
        .long(a.len())
        .blocks(blocks(a.len(), IN_FLIGHT / 2 * group(a.dtype(), b.dtype())))
        .threads(THREADS)
        .run()?;
    Ok(y)
}

/// What a term's values are to the kernel.
#[derive(Clone, Copy)]
enum TermKind {
    F32 = 0,
    Bf16 = 1,
    /// f32, to be rounded to bf16 before they are summed.
    F32ToBf16 = 2,
}

/// Σ factor·term in the dtype of the first term, to which the others are rounded.
pub(super) fn linear_combination(device: &CudaDevice, terms: &[(f32, &Tensor)], like: &Tensor) -> Result<Tensor> {
    let kind = |dtype| match (dtype, like.dtype()) {
        (Dtype::Bf16, _) => TermKind::Bf16,
        (Dtype::F32, Dtype::F32) => TermKind::F32,
        (Dtype::F32, Dtype::Bf16) => TermKind::F32ToBf16,
    };
    let mut terms: Vec<(f32, Tensor, TermKind)> =
        terms.iter().map(|&(factor, t)| (factor, t.clone(), kind(t.dtype()))).collect();
    // More than a kernel takes: sums in f32, which then are a term of their own.
    while terms.len() > TERMS_MAX {
        let sum = combine(device, &terms[..TERMS_MAX], Dtype::F32)?;
        terms.splice(..TERMS_MAX, [(1.0, sum, TermKind::F32)]);
    }
    combine(device, &terms, like.dtype())
}

fn combine(device: &CudaDevice, terms: &[(f32, Tensor, TermKind)], out: Dtype) -> Result<Tensor> {
    const NAMES: [&str; 2] = ["linear_combination_f32", "linear_combination_bf16"];
    let like = &terms[0].1;
    let y = device.empty(like.shape(), out)?;
    let fields = Fields::default()
        .tensors(TERMS_MAX, terms.iter().map(|(_, values, _)| values))
        .floats(TERMS_MAX, terms.iter().map(|(factor, ..)| *factor))
        .ints(TERMS_MAX, terms.iter().map(|(.., kind)| *kind as i32))
        .ints(1, [terms.len() as i32]);
    device
        .kernel(Module::Elementwise, NAMES[out.index()])?
        .bytes(fields.bytes())
        .tensor(&y)
        .long(like.len())
        .blocks(blocks(like.len(), group(out, out)))
        .threads(THREADS)
        .run()?;
    Ok(y)
}

/// The sums that [`super::combine_step`] describes, of which the caller has checked the counts.
pub(super) fn combine_step(device: &CudaDevice, inputs: &[&Tensor], weights: &[&[f64]]) -> Result<Vec<Tensor>> {
    let like = inputs[0];
    let outputs = weights.iter().map(|_| device.empty(like.shape(), Dtype::F32)).collect::<Result<Vec<Tensor>>>()?;
    let padded = |row: &&[f64]| row.iter().copied().chain(std::iter::repeat(0.0)).take(INPUTS_MAX).collect::<Vec<_>>();
    let fields = Fields::default()
        .tensors(INPUTS_MAX, inputs.iter().copied())
        .tensors(OUTPUTS_MAX, &outputs)
        .doubles(OUTPUTS_MAX * INPUTS_MAX, weights.iter().flat_map(padded))
        .ints(2, [inputs.len() as i32, weights.len() as i32]);
    device
        .kernel(Module::Elementwise, "combine_step")?
        .bytes(fields.bytes())
        .long(like.len())
        .blocks(blocks(like.len(), 4))
        .threads(THREADS)
        .run()?;
    Ok(outputs)
}

/// Sums of the inputs and of their products, in the order of the kernel; waits for the device.
pub(super) fn gram(device: &CudaDevice, inputs: &[&Tensor]) -> Result<[f64; GRAM_SUMS]> {
    const OP: &str = "gram";
    let blocks = sum_blocks(inputs[0].len(), 4);
    let parts = device.buffer(OP, blocks * GRAM_SUMS * size_of::<f64>())?;
    let fields = Fields::default().tensors(GRAM_INPUTS_MAX, inputs.iter().copied()).ints(1, [inputs.len() as i32]);
    device
        .kernel(Module::Elementwise, "gram")?
        .bytes(fields.bytes())
        .buffer(&parts)
        .long(inputs[0].len())
        .blocks([blocks, 1, 1])
        .threads(THREADS)
        .run()?;
    let mut sums = [0.0; GRAM_SUMS];
    // Doubles are read as pairs of words.
    let words = parts.read::<u32>(OP, 0, blocks * GRAM_SUMS * 2)?;
    for block in words.chunks_exact(2 * GRAM_SUMS) {
        for (sum, word) in sums.iter_mut().zip(block.chunks_exact(2)) {
            *sum += f64::from_bits(u64::from(word[0]) | u64::from(word[1]) << 32);
        }
    }
    Ok(sums)
}

/// Whether every element is finite; waits for the device.
pub(super) fn all_finite(device: &CudaDevice, x: &Tensor) -> Result<bool> {
    const OP: &str = "all_finite";
    const NAMES: [&str; 2] = ["count_infinite_f32", "count_infinite_bf16"];
    let blocks = sum_blocks(x.len(), group(x.dtype(), x.dtype()));
    let parts = device.buffer(OP, blocks * size_of::<f32>())?;
    device
        .kernel(Module::Elementwise, NAMES[x.dtype().index()])?
        .tensor(x)
        .buffer(&parts)
        .long(x.len())
        .blocks([blocks, 1, 1])
        .threads(THREADS)
        .run()?;
    Ok(parts.read::<f32>(OP, 0, blocks)?.iter().all(|&found| found == 0.0))
}
