//! Rotary position embedding over interleaved pairs, with positions on up to three axes.

mod cpu;
mod cuda;
mod normed;
mod reference;

use crate::cuda::{CudaDevice, device_of};
use crate::error::{Result, argument_error, shape_error};
use crate::norm;
use crate::simd::Isa;
use crate::tensor::{Dtype, Tensor};

/// Cosines and sines of every token's rotation angles, computed in f64 and stored as f32.
#[derive(Debug, Clone)]
pub struct RopeTable {
    tokens: usize,
    head_dim: usize,
    /// [tokens, head_dim]: each cosine twice, for the two members of its pair.
    cos: Vec<f32>,
    /// [tokens, head_dim]: −sin for the first member of each pair, sin for the second.
    sin: Vec<f32>,
    copies: cuda::Copies,
}

impl RopeTable {
    /// A table from each token's position on three axes (time, height, width; fractions allowed).
    ///
    /// Axis `a` rotates `axis_dims[a]` of the head's dimensions (each even); pair `i` of it turns by
    /// `position · theta^(−2i / axis_dims[a])`.
    pub fn from_positions(theta: f64, axis_dims: [usize; 3], positions: &[[f64; 3]]) -> Result<Self> {
        if axis_dims.iter().any(|d| d % 2 == 1) {
            return argument_error("RopeTable", format!("axis dimensions {axis_dims:?} must be even"));
        }
        let head_dim: usize = axis_dims.iter().sum();
        let mut frequencies = Vec::with_capacity(head_dim / 2);
        for (axis, &dim) in axis_dims.iter().enumerate() {
            let frequency = |i: usize| (axis, theta.powf(-2.0 * i as f64 / dim as f64));
            frequencies.extend((0..dim / 2).map(frequency));
        }
        let angles = || positions.iter().flat_map(|p| frequencies.iter().map(|&(axis, f)| p[axis] * f));
        Ok(Self {
            tokens: positions.len(),
            head_dim,
            cos: angles().flat_map(|a| [a.cos() as f32; 2]).collect(),
            sin: angles().flat_map(|a| [-a.sin() as f32, a.sin() as f32]).collect(),
            copies: cuda::Copies::default(),
        })
    }

    /// Wan's table: θ = 10⁴, height and width each turn 2·(head_dim // 6) dimensions and time the rest; tokens run over
    /// `[frames, height, width]` of patches, width fastest.
    pub fn wan(head_dim: usize, [frames, height, width]: [usize; 3]) -> Result<Self> {
        let side = 2 * (head_dim / 6);
        let mut positions = Vec::with_capacity(frames * height * width);
        for t in 0..frames {
            for y in 0..height {
                positions.extend((0..width).map(|x| [t as f64, y as f64, x as f64]));
            }
        }
        Self::from_positions(1e4, [head_dim - 2 * side, side, side], &positions)
    }

    /// Copies the table to `device` unless it is there: rotation does so when it first runs, but cannot while a graph is
    /// recorded.
    pub fn copy_to(&self, device: &CudaDevice) -> Result<()> {
        self.copies.on("RopeTable::copy_to", device, self).map(drop)
    }

    /// Number of tokens the table covers.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Dimensions of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }
}

/// Rotates each pair (x₂ᵢ, x₂ᵢ₊₁) of every head by its token's angle: x [t, heads·hd] → the same shape and dtype.
pub fn rope(x: &Tensor, heads: usize, table: &RopeTable) -> Result<Tensor> {
    let fits = matches!(*x.shape(), [t, d] if t == table.tokens && d == heads * table.head_dim);
    if !fits || x.is_empty() {
        return shape_error("rope", misfit(x, heads, table, ""));
    }
    if let Some(device) = device_of("rope", &[x])? {
        return cuda::rope(&device, x, table);
    }
    if let Some(isa) = Isa::current() {
        return Ok(cpu::rope(isa, x, heads, table));
    }
    Ok(Tensor::from_result(reference::rope(&x.f32_values(), heads, table), x.shape(), x.dtype()))
}

/// [`rms_norm`](crate::rms_norm) over the whole row, across heads, and then [`rope`] of each head, in one pass and without
/// rounding in between: x [n·t, heads·hd] of n clips that follow each other, weight `[heads·hd]` → the same shape, as `out`.
pub fn rms_norm_rope(
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    heads: usize,
    table: &RopeTable,
    out: Dtype,
) -> Result<Tensor> {
    const OP: &str = "rms_norm_rope";
    norm::check_vector(OP, weight, heads * table.head_dim)?;
    let fits = matches!(*x.shape(), [rows, d] if rows % table.tokens == 0 && d == heads * table.head_dim);
    if !fits || x.is_empty() {
        return shape_error(OP, misfit(x, heads, table, "n·"));
    }
    if let Some(device) = device_of(OP, &[x, weight])? {
        return cuda::rms_norm_rope(&device, x, weight, eps, table, out);
    }
    let weight = weight.f32_values();
    if let Some(isa) = Isa::current() {
        return Ok(normed::rms_norm_rope(isa, x, normed::Spec { weight: &weight, eps, heads, table }, out));
    }
    let normed = norm::reference::rms_norm(&x.f32_values(), x.shape()[0], weight.len(), &weight, eps);
    let rotated = normed.chunks(table.tokens * weight.len()).flat_map(|clip| reference::rope(clip, heads, table));
    Ok(Tensor::from_result(rotated.collect::<Vec<_>>(), x.shape(), out))
}

fn misfit(x: &Tensor, heads: usize, table: &RopeTable, clips: &str) -> String {
    let (tokens, width) = (table.tokens, heads * table.head_dim);
    format!("x is {:?}, the table and {heads} heads need [{clips}{tokens}, {width}]", x.shape())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wan_splits_a_head_of_128_into_44_42_42() {
        let table = RopeTable::wan(128, [2, 2, 3]).unwrap();
        assert_eq!((table.tokens(), table.head_dim()), (12, 128));
        // Token 11 is (t 1, y 1, x 2): the first pair of each axis turns by its position.
        let row = &table.cos[11 * 128..];
        assert_eq!([row[0], row[44], row[86]], [1f64.cos() as f32, 1f64.cos() as f32, 2f64.cos() as f32]);
    }

    #[test]
    fn a_quarter_turn_swaps_the_pair_and_position_zero_changes_nothing() {
        let quarter = std::f64::consts::FRAC_PI_2;
        let table = RopeTable::from_positions(1e4, [2, 0, 0], &[[0.0; 3], [quarter, 0.0, 0.0]]).unwrap();
        let x = Tensor::from_f32(&[1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0], &[2, 4]).unwrap();
        let y = rope(&x, 2, &table).unwrap().to_vec_f32();
        assert_eq!(y[..4], [1.0, 2.0, 3.0, 4.0]);
        for (a, b) in y[4..].iter().zip([-2.0, 1.0, -4.0, 3.0]) {
            assert!((a - b).abs() < 1e-6);
        }
    }

    #[test]
    fn tokens_and_heads_must_fit_the_table() {
        let table = RopeTable::wan(12, [1, 2, 2]).unwrap();
        let x = Tensor::from_f32(&[0.0; 4 * 24], &[4, 24]).unwrap();
        assert!(rope(&x, 2, &table).is_ok());
        assert!(rope(&x, 1, &table).is_err());
        let weight = Tensor::from_f32(&[1.0; 24], &[24]).unwrap();
        assert!(rms_norm_rope(&x, &weight, 1e-6, 2, &table, Dtype::F32).is_ok());
        assert!(rms_norm_rope(&x, &weight, 1e-6, 1, &table, Dtype::F32).is_err());
        assert!(rms_norm_rope(&x.slice_outer(0..3).unwrap(), &weight, 1e-6, 2, &table, Dtype::F32).is_err());
        assert!(RopeTable::from_positions(1e4, [3, 2, 2], &[]).is_err());
    }
}
