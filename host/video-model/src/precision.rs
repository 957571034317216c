//! In what numbers the networks multiply.

use crate::error::Result;
use crate::weights::Scope;
use kernels::{Dtype, PackedLinear};
use pipeline::{StageError, StageResult};
use std::fmt;
use std::str::FromStr;

/// In what numbers the networks multiply. Sums are in f32 whichever it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// For comparing with other programs.
    F32,
    /// Twice as fast where the processor has it.
    #[default]
    Bf16,
    /// 8-bit integers in the large linear layers, bf16 elsewhere.
    Int8,
}

impl Precision {
    /// The type of activations between layers, and of every product that is not one of 8-bit integers.
    pub fn activations(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 | Self::Int8 => Dtype::Bf16,
        }
    }

    /// The same without 8-bit integers: for layers that run rarely or steer everything.
    pub fn without_integers(self) -> Self {
        match self {
            Self::F32 => Self::F32,
            Self::Bf16 | Self::Int8 => Self::Bf16,
        }
    }

    /// The linear layer `name` of `scope` with `weight` `[outputs, inputs]` and `bias` `[outputs]`, packed for products in
    /// this precision. 8-bit products are not there yet: such layers multiply in bf16.
    pub fn linear(self, scope: &Scope<'_>, name: &str, inputs: usize, outputs: usize) -> Result<PackedLinear> {
        scope.linear(name, inputs, outputs, self.activations())
    }
}

impl FromStr for Precision {
    type Err = StageError;
    fn from_str(text: &str) -> StageResult<Self> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            _ => Err(StageError::invalid("dtype", "choose `f32`, `bf16` or `int8`")),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}
