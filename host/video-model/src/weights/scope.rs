//! Modules: tensors under a common prefix.

use super::{Int8Matrix, Weights};
use crate::error::Result;
use kernels::{Dtype, PackedLinear, Tensor};
use std::fmt;

/// A module's weights: names relative to a prefix, as the nested modules of a checkpoint have them.
#[derive(Debug, Clone)]
pub struct Scope<'w> {
    pub(super) weights: &'w Weights,
    pub(super) prefix: String,
}

impl<'w> Scope<'w> {
    /// The module `name` (or a list's index) within this one.
    pub fn at(&self, name: impl fmt::Display) -> Scope<'w> {
        Scope { weights: self.weights, prefix: self.full(name) }
    }

    /// Whether the module has a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.weights.tensors.contains_key(&self.full(name))
    }

    /// Like [`Weights::tensor`], for `name` within this module.
    pub fn tensor(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<Tensor> {
        self.weights.tensor(&self.full(name), shape, dtype)
    }

    /// A vector in f32: a bias or the weight of a norm.
    pub fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        self.tensor(name, &[len], Dtype::F32)
    }

    /// Like [`Weights::int8`], for the `weight` [outputs, inputs] of the linear layer `name`.
    pub fn int8(&self, name: &str, [outputs, inputs]: [usize; 2]) -> Result<Option<Int8Matrix>> {
        self.weights.int8(&self.at(name).full("weight"), [outputs, inputs])
    }

    /// The linear layer `name` with `weight` `[outputs, inputs]` and `bias` `[outputs]`, packed for products in `dtype`.
    pub fn linear(&self, name: &str, inputs: usize, outputs: usize, dtype: Dtype) -> Result<PackedLinear> {
        let layer = self.at(name);
        let weight = layer.tensor("weight", &[outputs, inputs], dtype)?;
        let bias = layer.vector("bias", outputs)?;
        Ok(PackedLinear::new(&weight, Some(&bias), dtype)?)
    }

    fn full(&self, name: impl fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}
