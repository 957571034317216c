//! Weights in host memory, in the order that the CPU's products read.

use super::{bias_values, e4m3};
use crate::buffer::Buffer;
use crate::error::{Result, argument_error, shape_error};
use crate::gemm::{Scales, padded_vector};
use crate::packed::PackedMatrix;
use crate::tensor::{Dtype, Tensor};

/// The weight and bias of a linear layer in panels (see [`PackedMatrix`]).
#[derive(Debug, Clone)]
pub(super) struct HostLinear {
    pub(super) matrix: PackedMatrix,
    /// Padded to whole panels.
    pub(super) bias: Option<Buffer<f32>>,
    pub(super) int8: Option<Int8>,
    /// The scales of the outputs of an e4m3 weight, which the matrix holds as f32 without them. Such a weight is for the
    /// reference alone.
    pub(super) e4m3: Option<Vec<f32>>,
}

/// What an int8 weight has besides its bytes; both are padded to whole panels.
#[derive(Debug, Clone)]
pub(super) struct Int8 {
    /// Of each output.
    pub(super) scales: Buffer<f32>,
    /// −128 · Σ of the output's weights: activations are multiplied as bytes offset by 128.
    pub(super) corrections: Buffer<i32>,
}

impl HostLinear {
    pub(super) fn new(
        op: &'static str,
        weight: &Tensor,
        [n, k]: [usize; 2],
        bias: Option<&Tensor>,
        dtype: Dtype,
    ) -> Result<Self> {
        let bias = bias_values(op, bias, n)?.map(padded_vector);
        let values = weight.f32_values();
        let matrix = PackedMatrix::pack(k, n, dtype, |i, j| values[j * k + i]);
        Ok(Self { matrix, bias, int8: None, e4m3: None })
    }

    /// Each row is rounded to whole multiples of 1/127 of its largest magnitude.
    pub(super) fn int8(op: &'static str, weight: &Tensor, shape: [usize; 2], bias: Option<&Tensor>) -> Result<Self> {
        let [n, k] = shape;
        let values = weight.f32_values();
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return argument_error(op, format!("the weight at output {}, input {} is not finite", at / k, at % k));
        }
        let (mut quantised, mut scales) = (Vec::with_capacity(n * k), Vec::with_capacity(n));
        for row in values.chunks_exact(k.max(1)) {
            let scale = row.iter().fold(0.0f32, |largest, v| largest.max(v.abs())) / 127.0;
            let inverse = if scale < f32::MIN_POSITIVE { 0.0 } else { 1.0 / scale };
            quantised.extend(row.iter().map(|v| (v * inverse).round_ties_even() as i8));
            scales.push(scale);
        }
        Self::from_int8(op, &quantised, &scales, shape, bias)
    }

    /// The caller has checked the lengths and scales.
    pub(super) fn from_int8(
        op: &'static str,
        weight: &[i8],
        scales: &[f32],
        [n, k]: [usize; 2],
        bias: Option<&Tensor>,
    ) -> Result<Self> {
        let bias = bias_values(op, bias, n)?.map(padded_vector);
        let sum = |row: &[i8]| row.iter().map(|&w| i32::from(w)).sum::<i32>();
        let corrections = padded_vector(weight.chunks_exact(k).map(|row| -128 * sum(row)).collect::<Vec<_>>());
        let int8 = Some(Int8 { scales: padded_vector(scales), corrections });
        Ok(Self { matrix: PackedMatrix::pack_int8(k, n, |i, j| weight[j * k + i]), bias, int8, e4m3: None })
    }

    /// Each row is rounded to e4m3 with a scale that makes its largest magnitude 448.
    pub(super) fn e4m3(op: &'static str, weight: &Tensor, [n, k]: [usize; 2], bias: Option<&Tensor>) -> Result<Self> {
        let bias = bias_values(op, bias, n)?.map(padded_vector);
        let (values, scales) = e4m3::quantised_rows(&weight.f32_values(), k);
        if let Some(j) = scales.iter().position(|s| !s.is_finite()) {
            return shape_error(op, format!("the weight of output {j} is not finite"));
        }
        let matrix = PackedMatrix::pack(k, n, Dtype::F32, |i, j| values[j * k + i]);
        Ok(Self { matrix, bias, int8: None, e4m3: Some(scales) })
    }

    pub(super) fn n(&self) -> usize {
        self.matrix.n()
    }

    pub(super) fn k(&self) -> usize {
        self.matrix.k()
    }

    pub(super) fn dtype(&self) -> Dtype {
        if self.e4m3.is_some() { Dtype::Bf16 } else { self.matrix.dtype() }
    }

    pub(super) fn stored_bytes(&self) -> usize {
        let vectors = self.bias.as_ref().map_or(0, |b| b.len()) + self.int8.as_ref().map_or(0, |i| 2 * i.scales.len());
        self.matrix.stored_bytes() + 4 * (vectors + self.e4m3.as_ref().map_or(0, Vec::len))
    }

    /// The scales of an int8 weight, without those of the rows.
    pub(super) fn scales(&self) -> Option<Scales<'_>> {
        self.int8.as_ref().map(|i| Scales { rows: &[], columns: &i.scales, corrections: &i.corrections })
    }

    /// x in the dtype that the product reads.
    pub(super) fn input(&self, x: &Tensor) -> Tensor {
        if self.int8.is_some() || self.e4m3.is_some() { x.clone() } else { x.to_dtype(self.dtype()) }
    }
}
