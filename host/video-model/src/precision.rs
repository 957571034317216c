//! In what numbers the networks multiply.

use crate::error::Result;
use crate::weights::Scope;
use kernels::{Dtype, PackedLinear, Tensor};
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
    /// this precision.
    ///
    /// As 8-bit integers a layer is stored only where little is lost: one whose weights would move by more than
    /// `INT8_ERROR_MAX` stays bf16. Integers that a file holds are taken as they are.
    pub fn linear(self, scope: &Scope<'_>, name: &str, inputs: usize, outputs: usize) -> Result<PackedLinear> {
        if self != Self::Int8 {
            return scope.linear(name, inputs, outputs, self.activations());
        }
        let bias = scope.at(name).vector("bias", outputs)?;
        if let Some(stored) = scope.int8(name, [outputs, inputs])? {
            return Ok(PackedLinear::from_int8(&stored.values, &stored.scales, [outputs, inputs], Some(&bias))?);
        }
        let weight = scope.at(name).tensor("weight", &[outputs, inputs], Dtype::F32)?;
        let error = int8_error(&weight);
        if error <= INT8_ERROR_MAX {
            return Ok(PackedLinear::int8(&weight, Some(&bias))?);
        }
        tracing::info!(name, error, "stays bf16: its weights do not fit 8-bit integers");
        Ok(PackedLinear::new(&weight, Some(&bias), Dtype::Bf16)?)
    }
}

/// Largest relative error of a layer's weights as 8-bit integers. Rows of thousands of normally distributed weights come to
/// 0.009; one weight of ten standard deviations in every row makes it 0.023.
pub const INT8_ERROR_MAX: f32 = 0.02;

/// How far rounding to 127ths of each row's largest magnitude moves a weight [outputs, inputs]: the root mean square over the
/// rows of each row's relative error, which is that of its output when the inputs are alike.
fn int8_error(weight: &Tensor) -> f32 {
    let [rows, width] = [weight.shape()[0], weight.shape()[1]];
    let relative = |row: &[f32]| {
        let step = row.iter().fold(0.0f32, |largest, w| largest.max(w.abs())) / 127.0;
        let square = |sum: f32, w: f32| sum + w * w;
        let size = row.iter().copied().fold(0.0, square);
        let error = row.iter().map(|w| w - (w / step).round_ties_even() * step).fold(0.0, square);
        if size > 0.0 { error / size } else { 0.0 }
    };
    (weight.to_vec_f32().chunks_exact(width).map(relative).sum::<f32>() / rows as f32).sqrt()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Weights;
    use safetensors::tensor::TensorView;

    /// A layer of 8 rows of 1024 smooth weights, the first of which is `peak`.
    fn bytes_of_layer(peak: f32, precision: Precision) -> usize {
        let weight: Vec<f32> = (0..8192).map(|i| if i % 1024 == 0 { peak } else { (i as f32 * 0.37).sin() }).collect();
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        let (weight, bias) = (bytes(&weight), bytes(&[0.5; 8]));
        let view = |shape: &[usize], bytes| TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap();
        let views = [("to_q.weight", view(&[8, 1024], &weight)), ("to_q.bias", view(&[8], &bias))];
        let weights = Weights::from_bytes("w", safetensors::serialize(views, None).unwrap()).unwrap();
        precision.linear(&weights.scope(""), "to_q", 1024, 8).unwrap().stored_bytes()
    }

    #[test]
    fn a_layer_with_outliers_stays_bf16() {
        let (int8, bf16) = (bytes_of_layer(1.0, Precision::Int8), bytes_of_layer(1.0, Precision::Bf16));
        assert!(int8 < bf16, "{int8} {bf16}");
        assert_eq!(bytes_of_layer(20.0, Precision::Int8), bf16);
    }

    #[test]
    fn integers_that_a_file_holds_are_taken_as_they_are() {
        // Far from what rounding to 127ths of the largest would make of them.
        let (weight, scale, bias): (&[i8], f32, f32) = (&[3, -1, 0, 2], 0.25, 1.0);
        let weight: Vec<u8> = weight.iter().map(|w| w.cast_unsigned()).collect();
        let (scale, bias) = (scale.to_le_bytes(), bias.to_le_bytes());
        let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let views = [
            ("to_q.weight", view(safetensors::Dtype::I8, &[1, 4], weight.as_slice())),
            ("to_q.weight_scale", view(safetensors::Dtype::F32, &[1], scale.as_slice())),
            ("to_q.bias", view(safetensors::Dtype::F32, &[1], bias.as_slice())),
        ];
        let weights = Weights::from_bytes("w", safetensors::serialize(views, None).unwrap()).unwrap();
        let layer = Precision::Int8.linear(&weights.scope(""), "to_q", 4, 1).unwrap();
        let x = Tensor::from_f32(&[127.0, 1.0, 5.0, -2.0], &[1, 4]).unwrap();
        let y = kernels::linear(&x, &layer, kernels::Activation::None, Dtype::F32).unwrap();
        assert_eq!(y.to_vec_f32(), [0.25 * (3.0 * 127.0 - 1.0 - 4.0) + 1.0]);
        assert!(weights.unused().is_empty());
    }

    #[test]
    fn each_precision_is_called_what_it_prints() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            assert_eq!(precision.to_string().parse::<Precision>().unwrap(), precision);
        }
        assert_eq!("int4".parse::<Precision>().unwrap_err().code(), "invalid_argument");
    }
}
