//! Every execution level computes what the plain reference computes, at odd shapes and over many seeds.
//!
//! Tolerances are relative root-mean-square errors. f32: 1e-5, because vector code sums in another order (and in f32, the
//! reference in f64) and its exponentials are good to 3e-7. bf16: 1e-2, because a result rounded to 8 significant bits is
//! off by up to 2⁻⁹ of its size, and attention also rounds its probabilities; reference and fast path read the same rounded
//! inputs.

use kernels::simd::{self, Level};
use kernels::{
    Activation, CausalConv3d, Dtype, PackedConv2d, PackedConvTranspose2d, PackedLinear, Padding, Result, RopeTable,
    Tensor,
};
use proptest::prelude::*;

/// Uniform values in −1..1, the same for the same seed.
fn noise(seed: u64, shape: &[usize], dtype: Dtype) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03;
    let values = (0..shape.iter().product()).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    });
    Tensor::from_vec(values.collect(), shape).unwrap().to_dtype(dtype)
}

fn relative_rmse(value: &Tensor, reference: &Tensor) -> f64 {
    assert_eq!((value.shape(), value.dtype()), (reference.shape(), reference.dtype()));
    let (mut error, mut size) = (0.0, 1e-30);
    for (a, b) in value.to_vec_f32().into_iter().zip(reference.to_vec_f32()) {
        error += f64::from(a - b).powi(2);
        size += f64::from(b).powi(2);
    }
    (error / size).sqrt()
}

/// Runs `operation` at every level and compares with the reference; `dtype` is that of the computation.
fn all_levels_agree(dtype: Dtype, operation: impl Fn() -> Result<Tensor>) -> std::result::Result<(), TestCaseError> {
    let tolerance = match dtype {
        Dtype::F32 => 1e-5,
        Dtype::Bf16 => 1e-2,
    };
    let reference = simd::force(Level::Reference, &operation).unwrap().unwrap();
    for level in simd::available() {
        let value = simd::force(level, &operation).unwrap().unwrap();
        let error = relative_rmse(&value, &reference);
        prop_assert!(error <= tolerance, "{level:?} {dtype:?}: relative RMSE {error:.2e} at {:?}", value.shape());
    }
    Ok(())
}

fn dtypes() -> impl Strategy<Value = Dtype> {
    prop_oneof![Just(Dtype::F32), Just(Dtype::Bf16)]
}

fn activations() -> impl Strategy<Value = Activation> {
    prop_oneof![
        Just(Activation::None),
        Just(Activation::Gelu),
        Just(Activation::GeluTanh),
        Just(Activation::Silu),
        Just(Activation::LeakyRelu(0.2))
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn linear_agrees_at_any_m_n_k(
        seed: u64, m in 1usize..70, n in 1usize..150, k in 1usize..90,
        dtype in dtypes(), input in dtypes(), out in dtypes(), activation in activations(), with_bias: bool,
    ) {
        let bias = with_bias.then(|| noise(seed + 1, &[n], Dtype::F32));
        let weight = PackedLinear::new(&noise(seed, &[n, k], Dtype::F32), bias.as_ref(), dtype).unwrap();
        let x = noise(seed ^ 2, &[m, k], input);
        let coarsest = if dtype == Dtype::F32 && out == Dtype::F32 { Dtype::F32 } else { Dtype::Bf16 };
        all_levels_agree(coarsest, || kernels::linear(&x, &weight, activation, out))?;
    }

    #[test]
    fn linear_residual_agrees_with_and_without_gate(
        seed: u64, m in 1usize..50, n in 1usize..140, k in 1usize..80, dtype in dtypes(), gated: bool,
    ) {
        let weight = noise(seed, &[n, k], Dtype::F32);
        let weight = PackedLinear::new(&weight, Some(&noise(seed ^ 1, &[n], Dtype::F32)), dtype).unwrap();
        let (x, gate) = (noise(seed ^ 2, &[m, k], dtype), noise(seed ^ 3, &[1, n], Dtype::F32));
        let start = noise(seed ^ 4, &[m, n], Dtype::F32);
        all_levels_agree(Dtype::F32, || {
            let mut residual = start.clone();
            kernels::linear_residual(&x, &weight, gated.then_some(&gate), &mut residual)?;
            Ok(residual)
        })?;
    }

    #[test]
    fn attention_agrees_with_masks_and_bias(
        seed: u64, tq in 1usize..60, tk in 1usize..90, heads in 1usize..4, head_dim in 1usize..70,
        masked in 0usize..5, dtype in dtypes(), biased: bool,
    ) {
        let width = heads * head_dim;
        let tensor = |i: u64, rows| noise(seed ^ i, &[rows, width], dtype);
        let (q, k, v) = (tensor(1, tq), tensor(2, tk), tensor(3, tk));
        let bias = biased.then(|| noise(seed ^ 4, &[heads, tq, tk], Dtype::F32));
        let key_len = (masked > 0).then(|| tk.saturating_sub(masked).max(1));
        all_levels_agree(dtype, || kernels::attention(&q, &k, &v, heads, 0.7, key_len, bias.as_ref()))?;
    }
}

#[test]
fn attention_over_several_blocks_of_keys_agrees() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for keys in [511, 512, 513, 1100] {
            let tensor = |seed, rows| noise(seed, &[rows, 2 * 24], dtype);
            // Large scores, so that the running maximum moves between blocks.
            let (q, k, v) = (tensor(1, 50), tensor(2, keys), tensor(3, keys));
            all_levels_agree(dtype, || kernels::attention(&q, &k, &v, 2, 3.0, None, None)).unwrap();
        }
    }
}
