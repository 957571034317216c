//! The arithmetic of a step: every vector that it makes is a weighted sum of those that it starts from.
//!
//! So the update rules work on the weights alone, and the sums are taken at the end, all in one pass over the latents.

use crate::error::Result;
use kernels::{Tensor, combine_step};

/// What a step starts from. `Last` is what one rule alone needs: the start of UniPC's last step, or new noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vector {
    Latent,
    Conditional,
    Unconditional,
    Momentum,
    /// The picture predicted so many steps ago, less one.
    Picture(usize),
    Last,
}

const COUNT: usize = 8;

impl Vector {
    fn index(self) -> usize {
        match self {
            Self::Latent => 0,
            Self::Conditional => 1,
            Self::Unconditional => 2,
            Self::Momentum => 3,
            Self::Picture(age) => 4 + age,
            Self::Last => COUNT - 1,
        }
    }
}

/// A weighted sum of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Form([f64; COUNT]);

impl Form {
    pub(super) const NOTHING: Self = Self([0.0; COUNT]);

    /// The vector itself.
    pub(super) fn of(vector: Vector) -> Self {
        let mut form = Self::NOTHING;
        form.0[vector.index()] = 1.0;
        form
    }

    pub(super) fn weights_of<const N: usize>(&self, vectors: [Vector; N]) -> [f64; N] {
        vectors.map(|vector| self.0[vector.index()])
    }

    /// factor·self + Σ weight·term.
    pub(super) fn combined(mut self, factor: f64, terms: &[(f64, Form)]) -> Self {
        for (i, sum) in self.0.iter_mut().enumerate() {
            *sum = factor * *sum + terms.iter().map(|(weight, term)| weight * term.0[i]).sum::<f64>();
        }
        self
    }
}

/// The vectors by name, as far as they are there.
#[derive(Default)]
pub(super) struct Vectors<'a>([Option<&'a Tensor>; COUNT]);

impl<'a> Vectors<'a> {
    pub(super) fn set(&mut self, vector: Vector, tensor: Option<&'a Tensor>) {
        self.0[vector.index()] = tensor;
    }

    /// The sums that `forms` describe. Vectors that have no weight in any of them are not read.
    pub(super) fn sums(&self, forms: &[Form]) -> Result<Vec<Tensor>> {
        let used = |i: usize| forms.iter().any(|form| form.0[i] != 0.0);
        let (mut inputs, mut places) = (Vec::with_capacity(COUNT), Vec::with_capacity(COUNT));
        for (i, tensor) in self.0.iter().enumerate() {
            if let Some(tensor) = tensor.filter(|_| used(i)) {
                inputs.push(tensor);
                places.push(i);
            }
        }
        let weights: Vec<Vec<f64>> = forms.iter().map(|form| places.iter().map(|&i| form.0[i]).collect()).collect();
        Ok(combine_step(&inputs, &weights.iter().map(Vec::as_slice).collect::<Vec<_>>())?)
    }
}
