//! Random inputs, on the device of the scope and in float64.

use half::bf16;

use crate::error::Result;
use crate::tensor::{Dtype, Tensor};

/// A source of numbers; the same ones for the same seed.
pub(super) struct Inputs {
    state: u64,
}

impl Inputs {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// A number of −1..1.
    fn next(&mut self) -> f32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// A tensor of numbers between −`scale` and `scale`, and the same numbers, which `dtype` can hold.
    pub(super) fn scaled(&mut self, shape: &[usize], dtype: Dtype, scale: f32) -> Result<(Tensor, Vec<f64>)> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.next() * scale).collect();
        match dtype {
            Dtype::F32 => Ok((Tensor::from_f32(&values, shape)?, values.into_iter().map(f64::from).collect())),
            Dtype::Bf16 => {
                let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
                Ok((Tensor::from_bf16(&values, shape)?, values.into_iter().map(f64::from).collect()))
            }
        }
    }

    pub(super) fn tensor(&mut self, shape: &[usize], dtype: Dtype) -> Result<(Tensor, Vec<f64>)> {
        self.scaled(shape, dtype, 1.0)
    }

    pub(super) fn f32(&mut self, shape: &[usize]) -> Result<(Tensor, Vec<f64>)> {
        self.scaled(shape, Dtype::F32, 1.0)
    }
}
