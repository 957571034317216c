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
        let bias = with_bias.then(|| noise(seed ^ 1, &[n], Dtype::F32));
        let weight = PackedLinear::new(&noise(seed, &[n, k], Dtype::F32), bias.as_ref(), dtype).unwrap();
        let x = noise(seed ^ 2, &[m, k], input);
        let coarsest = if dtype == Dtype::F32 && out == Dtype::F32 { Dtype::F32 } else { Dtype::Bf16 };
        all_levels_agree(coarsest, || kernels::linear(&x, &weight, activation, out))?;
    }

    #[test]
    fn linear_residual_agrees_with_and_without_gate(
        seed: u64, m in 1usize..50, n in 1usize..140, k in 1usize..80, dtype in dtypes(), gated: bool, groups in 1usize..4,
    ) {
        let m = m * groups;
        let weight = noise(seed, &[n, k], Dtype::F32);
        let weight = PackedLinear::new(&weight, Some(&noise(seed ^ 1, &[n], Dtype::F32)), dtype).unwrap();
        let (x, gate) = (noise(seed ^ 2, &[m, k], dtype), noise(seed ^ 3, &[groups, n], Dtype::F32));
        let start = noise(seed ^ 4, &[m, n], Dtype::F32);
        all_levels_agree(Dtype::F32, || {
            let mut residual = start.clone();
            kernels::linear_residual(&x, &weight, gated.then_some(&gate), &mut residual)?;
            Ok(residual)
        })?;
    }

    #[test]
    fn int8_linear_gives_the_same_bits_at_every_level(
        seed: u64, m in 1usize..70, n in 1usize..150, k in 1usize..300, input in dtypes(), gated: bool,
    ) {
        let (weight, bias) = (noise(seed, &[n, k], Dtype::F32), noise(seed ^ 1, &[n], Dtype::F32));
        let weight = PackedLinear::int8(&weight, Some(&bias)).unwrap();
        let (x, gate) = (noise(seed ^ 2, &[m, k], input), noise(seed ^ 3, &[n], Dtype::F32));
        let start = noise(seed ^ 4, &[m, n], Dtype::F32);
        let run = || -> Result<[Vec<f32>; 2]> {
            let y = kernels::linear(&x, &weight, Activation::LeakyRelu(0.25), Dtype::Bf16)?;
            let mut residual = start.clone();
            kernels::linear_residual(&x, &weight, gated.then_some(&gate), &mut residual)?;
            Ok([y.to_vec_f32(), residual.to_vec_f32()])
        };
        let reference = simd::force(Level::Reference, run).unwrap().unwrap();
        for level in simd::available() {
            prop_assert!(simd::force(level, run).unwrap().unwrap() == reference, "{level:?} at {m}x{n}x{k}");
        }
        all_levels_agree(Dtype::F32, || kernels::linear(&x, &weight, Activation::GeluTanh, Dtype::F32))?;
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

    #[test]
    fn conv2d_agrees_at_any_size_padding_and_stride(
        seed: u64, frames in 1usize..3, h in 1usize..12, w in 1usize..40, cin in 1usize..40, cout in 1usize..80,
        kernel in 1usize..4, stride in 1usize..3, pads in prop::array::uniform4(0usize..3),
        dtype in dtypes(), input in dtypes(), activation in activations(), with_residual: bool,
    ) {
        let [left, right, top, bottom] = pads;
        prop_assume!(h + top + bottom >= kernel && w + left + right >= kernel);
        let padding = Padding { left, right, top, bottom };
        let weight = noise(seed, &[cout, cin, kernel, kernel], Dtype::F32);
        let weight = PackedConv2d::new(&weight, Some(&noise(seed ^ 1, &[cout], Dtype::F32)), stride, padding, dtype).unwrap();
        let x = noise(seed ^ 2, &[frames, h, w, cin], input);
        let shape = kernels::conv2d(&x, &weight, activation, None).unwrap().shape().to_vec();
        let residual = with_residual.then(|| noise(seed ^ 3, &shape, input));
        let coarsest = if dtype == Dtype::F32 && input == Dtype::F32 { Dtype::F32 } else { Dtype::Bf16 };
        all_levels_agree(coarsest, || kernels::conv2d(&x, &weight, activation, residual.as_ref()))?;
    }

    #[test]
    fn causal_conv3d_agrees_with_any_cache(
        seed: u64, frames in 1usize..5, cached in 0usize..3, kt in 1usize..4, zero_taps in 0usize..3,
        h in 1usize..6, w in 1usize..9, cin in 1usize..20, cout in 1usize..20, temporal_stride in 1usize..3, dtype in dtypes(),
    ) {
        let cached = cached.min(kt - 1);
        prop_assume!(temporal_stride == 1 || cached + frames >= kt);
        let shape = [cout, cin, kt, 3, 3];
        let mut values = noise(seed, &shape, Dtype::F32).to_vec_f32();
        for (i, v) in values.iter_mut().enumerate() {
            if i / 9 % kt < zero_taps.min(kt - 1) {
                *v = 0.0;
            }
        }
        let weight = Tensor::from_vec(values, &shape).unwrap();
        let weight = CausalConv3d::new(&weight, None, temporal_stride, 1, Padding::all(1), dtype).unwrap();
        let x = noise(seed ^ 1, &[frames, h, w, cin], dtype);
        let cache = (cached > 0).then(|| noise(seed ^ 2, &[cached, h, w, cin], dtype));
        all_levels_agree(dtype, || kernels::causal_conv3d(&x, cache.as_ref(), &weight, Activation::Silu, None))?;
    }

    #[test]
    fn conv_transpose2d_agrees_in_both_packings(
        seed: u64, h in 1usize..10, w in 1usize..30, cin in 1usize..30, cout in 1usize..70, dtype in dtypes(),
    ) {
        let weight = noise(seed, &[cin, cout, 4, 4], Dtype::F32);
        let weight = PackedConvTranspose2d::new(&weight, Some(&noise(seed ^ 1, &[cout], Dtype::F32)), dtype).unwrap();
        let x = noise(seed ^ 2, &[h, w, cin], dtype);
        all_levels_agree(dtype, || kernels::conv_transpose2d(&x, &weight, Activation::LeakyRelu(0.2)))?;
    }

    #[test]
    fn norms_agree_at_any_width_and_offset(
        seed: u64, group_rows in 1usize..6, groups in 1usize..5, d in 2usize..100, offset in -100.0f32..100.0,
        input in dtypes(), out in dtypes(), silu: bool,
    ) {
        let rows = groups * group_rows;
        let values: Vec<f32> = noise(seed, &[rows, d], Dtype::F32).to_vec_f32().iter().map(|v| v + offset).collect();
        let x = Tensor::from_vec(values, &[rows, d]).unwrap().to_dtype(input);
        let vector = |i: u64| noise(seed ^ i, &[d], Dtype::F32);
        let modulation = |i: u64| noise(seed ^ i, &[groups, d], Dtype::F32);
        let (scale, shift, weight) = (modulation(1), modulation(2), vector(3));
        // f32 input far from zero leaves few bits for the deviations: 2⁻²⁴·offset of an average deviation of 0.6.
        let tolerance = if out == Dtype::F32 && offset.abs() < 10.0 { Dtype::F32 } else { Dtype::Bf16 };
        all_levels_agree(tolerance, || kernels::layer_norm(&x, Some(&weight), Some(&vector(4)), 1e-6, out))?;
        all_levels_agree(tolerance, || kernels::layer_norm_modulate(&x, &scale, &shift, 1e-6, out))?;
        all_levels_agree(out, || kernels::rms_norm(&x, &weight, 1e-6, out))?;
        all_levels_agree(input, || kernels::channel_norm_silu(&x, &weight, silu))?;
    }

    #[test]
    fn rope_agrees_at_any_head_width(
        seed: u64, grid in prop::array::uniform3(1usize..5), heads in 1usize..4, half in 1usize..40, dtype in dtypes(),
    ) {
        let table = RopeTable::wan(2 * half, grid).unwrap();
        let x = noise(seed, &[table.tokens(), heads * 2 * half], dtype);
        all_levels_agree(dtype, || kernels::rope(&x, heads, &table))?;
        let weight = noise(seed ^ 1, &[heads * 2 * half], Dtype::F32);
        for out in [Dtype::F32, Dtype::Bf16] {
            let clips = Tensor::concat_outer(&[&x, &x]).unwrap();
            all_levels_agree(out, || kernels::rms_norm_rope(&clips, &weight, 1e-6, heads, &table, out))?;
        }
    }

    #[test]
    fn resampling_agrees_at_any_size(
        seed: u64, frames in 1usize..3, h in 1usize..12, w in 1usize..20, c in 1usize..40,
        height in 1usize..30, width in 1usize..30, reach in 0.1f32..30.0, dtype in dtypes(),
    ) {
        let clip = noise(seed, &[frames, h, w, 4 * c], dtype);
        all_levels_agree(dtype, || kernels::resize_bilinear(&clip, height, width))?;
        all_levels_agree(dtype, || kernels::upsample_nearest2x(&clip))?;
        all_levels_agree(dtype, || kernels::pixel_shuffle2x(&clip))?;
        let picture = |i: u64, c| noise(seed ^ i, &[h, w, c], dtype);
        let (a, b, mask) = (picture(1, c), picture(2, c), noise(seed ^ 3, &[h, w, 1], Dtype::F32));
        let flow = noise(seed ^ 4, &[h, w, 2], Dtype::F32);
        let flow = kernels::linear_combination(&[(reach, &flow)]).unwrap();
        all_levels_agree(dtype, || kernels::backward_warp(&a, &flow))?;
        all_levels_agree(dtype, || kernels::blend_mask(&a, &b, &mask))?;
    }

    #[test]
    fn pointwise_operations_agree(seed: u64, len in 1usize..300, dtype in dtypes(), other in dtypes(), activation in activations()) {
        let (a, b) = (noise(seed, &[len], dtype), noise(seed ^ 1, &[len], other));
        let coarsest = if dtype == Dtype::F32 && other == Dtype::F32 { Dtype::F32 } else { Dtype::Bf16 };
        let wide = kernels::linear_combination(&[(8.0, &a)]).unwrap();
        all_levels_agree(dtype, || Ok(kernels::activate(&wide, activation)))?;
        all_levels_agree(coarsest, || kernels::linear_combination(&[(0.5, &a), (-2.0, &b), (1.5, &a)]))?;
        all_levels_agree(coarsest, || kernels::multiply(&a, &b))?;
        all_levels_agree(coarsest, || kernels::guide(&a, &b, 5.0))?;
        all_levels_agree(Dtype::Bf16, || Ok(a.to_dtype(other)))?;
    }
}

#[test]
fn conversion_to_bf16_rounds_to_nearest_even_and_keeps_what_is_not_a_number() {
    // One bit below, at and above the middle between two bf16 values, on both parities.
    let bits = [0x3f80_7fff_u32, 0x3f80_8000, 0x3f80_8001, 0x3f81_7fff, 0x3f81_8000, 0x3f81_8001, 0xff80_0000];
    let expected = [0x3f80_0000_u32, 0x3f80_0000, 0x3f81_0000, 0x3f81_0000, 0x3f82_0000, 0x3f82_0000, 0xff80_0000];
    let values: Vec<f32> =
        bits.into_iter().map(f32::from_bits).chain([f32::NAN, f32::from_bits(0x7f80_0001)]).collect();
    for level in simd::available() {
        let x = Tensor::from_f32(&values, &[9]).unwrap();
        let rounded = simd::force(level, || x.to_dtype(Dtype::Bf16).to_vec_f32()).unwrap();
        assert_eq!(rounded[..7], expected.map(f32::from_bits), "{level:?}");
        assert!(rounded[7].is_nan() && rounded[8].is_nan(), "{level:?}");
    }
}

/// Shapes of the real models, where sizes are multiples of the tiles and work is spread over threads.
#[test]
fn model_sized_operations_agree() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let weight = PackedLinear::new(&noise(1, &[384, 256], Dtype::F32), None, dtype).unwrap();
        let x = noise(2, &[300, 256], dtype);
        all_levels_agree(dtype, || kernels::linear(&x, &weight, Activation::GeluTanh, dtype)).unwrap();
        for (cin, cout, h, w) in [(24, 24, 40, 128), (64, 64, 17, 40), (3, 16, 40, 150), (48, 96, 16, 16)] {
            let weight =
                PackedConv2d::new(&noise(3, &[cout, cin, 3, 3], Dtype::F32), None, 1, Padding::all(1), dtype).unwrap();
            let x = noise(4, &[h, w, cin], dtype);
            all_levels_agree(dtype, || kernels::conv2d(&x, &weight, Activation::Silu, None)).unwrap();
        }
        // Wider than one strip.
        let weight = PackedConv2d::new(&noise(5, &[8, 4, 3, 3], Dtype::F32), None, 2, Padding::all(1), dtype).unwrap();
        let x = noise(6, &[5, 2100, 4], dtype);
        all_levels_agree(dtype, || kernels::conv2d(&x, &weight, Activation::None, None)).unwrap();
    }
}

/// k beyond what the caches hold at a time, for int8 as well, columns beyond what one task takes.
#[test]
fn long_rows_and_wide_weights_agree() {
    for k in [2500, 4501] {
        let x = noise(2, &[70, k], Dtype::F32);
        let (gate, start) = (noise(4, &[400], Dtype::F32), noise(5, &[70, 400], Dtype::F32));
        for weight in &linears(400, k) {
            all_levels_agree(Dtype::F32, || kernels::linear(&x, weight, Activation::Gelu, Dtype::F32)).unwrap();
            all_levels_agree(Dtype::F32, || {
                let mut residual = start.clone();
                kernels::linear_residual(&x, weight, Some(&gate), &mut residual)?;
                Ok(residual)
            })
            .unwrap();
        }
    }
}

/// A layer with a bias in every format.
fn linears(n: usize, k: usize) -> [PackedLinear; 3] {
    let (weight, bias) = (noise(1, &[n, k], Dtype::F32), noise(3, &[n], Dtype::F32));
    [
        PackedLinear::new(&weight, Some(&bias), Dtype::F32).unwrap(),
        PackedLinear::new(&weight, Some(&bias), Dtype::Bf16).unwrap(),
        PackedLinear::int8(&weight, Some(&bias)).unwrap(),
    ]
}

/// 8 bits for the weight and 8 for the activations, of uniform values: each adds about 1/127/√12 of the largest value, which
/// is √3 times the root mean square.
#[test]
fn int8_products_are_within_one_percent_of_exact_ones() {
    let (weight, x) = (noise(1, &[384, 512], Dtype::F32), noise(2, &[200, 512], Dtype::F32));
    let exact = PackedLinear::new(&weight, None, Dtype::F32).unwrap();
    let int8 = PackedLinear::int8(&weight, None).unwrap();
    let y = kernels::linear(&x, &int8, Activation::None, Dtype::F32).unwrap();
    let error = relative_rmse(&y, &kernels::linear(&x, &exact, Activation::None, Dtype::F32).unwrap());
    assert!(error > 1e-4 && error < 1e-2, "relative RMSE {error:.2e}");
    assert!(int8.stored_bytes() * 3 < exact.stored_bytes());
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

#[test]
fn attention_agrees_whatever_the_size_of_the_scores() {
    // From scores that hardly differ, over weights of tiny exponents, to bounds far above every score and to one-hot rows.
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for scale in [1e-3, 1.0, 8.0, 20.0, 100.0, -60.0, 1e4] {
            let tensor = |seed, rows| noise(seed, &[rows, 2 * 40], dtype);
            let (q, k, v) = (tensor(1, 70), tensor(2, 130), tensor(3, 130));
            all_levels_agree(dtype, || kernels::attention(&q, &k, &v, 2, scale, None, None)).unwrap();
        }
    }
}

#[test]
fn a_query_that_is_not_finite_spoils_its_own_result_only() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let (q, k) = (noise(1, &[40, 64], dtype), noise(2, &[90, 64], dtype));
        let mut values = q.to_vec_f32();
        values[7 * 64] = f32::NAN;
        values[9 * 64 + 3] = f32::INFINITY;
        let spoiled = Tensor::from_vec(values, &[40, 64]).unwrap().to_dtype(dtype);
        for level in simd::available() {
            let run = |q: &Tensor| simd::force(level, || kernels::attention(q, &k, &k, 1, 0.1, None, None)).unwrap();
            let (good, bad) = (run(&q).unwrap().to_vec_f32(), run(&spoiled).unwrap().to_vec_f32());
            let mut error = 0.0f32;
            for (row, (good, bad)) in good.chunks(64).zip(bad.chunks(64)).enumerate() {
                if row != 7 && row != 9 {
                    error = good.iter().zip(bad).fold(error, |e, (a, b)| e.max((a - b).abs()));
                }
            }
            assert!(error < 1e-2, "{level:?} {dtype:?}: {error}");
        }
    }
}

/// Threads divide the work but not the sums: a video does not depend on the machine's core count.
#[test]
fn results_are_the_same_bits_on_one_thread_and_on_three() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let weight = PackedLinear::new(&noise(1, &[200, 300], Dtype::F32), None, dtype).unwrap();
        let conv = noise(2, &[40, 24, 3, 3], Dtype::F32);
        let conv = PackedConv2d::new(&conv, None, 1, Padding::all(1), dtype).unwrap();
        let (x, q) = (noise(3, &[150, 300], dtype), noise(4, &[300, 120], dtype));
        let picture = noise(5, &[50, 90, 24], dtype);
        let run = || -> Result<Vec<Tensor>> {
            Ok(vec![
                kernels::linear(&x, &weight, Activation::Gelu, dtype)?,
                kernels::attention(&q, &q, &q, 3, 0.3, None, None)?,
                kernels::conv2d(&picture, &conv, Activation::Silu, None)?,
                kernels::layer_norm(&x, None, None, 1e-6, dtype)?,
            ])
        };
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(run).unwrap().iter().map(Tensor::to_vec_f32).collect::<Vec<_>>()
        };
        assert_eq!(on(1), on(3), "{dtype:?}");
    }
}

/// Here the number of threads decides how many rows and columns a task has.
#[test]
fn products_of_long_rows_are_the_same_bits_on_one_thread_and_on_three() {
    let (weights, x) = (linears(400, 4501), noise(2, &[150, 4501], Dtype::Bf16));
    for weight in &weights {
        let run = || -> Result<Vec<f32>> {
            let mut sums = noise(5, &[150, 400], Dtype::F32);
            kernels::linear_residual(&x, weight, None, &mut sums)?;
            let y = kernels::linear(&x, weight, Activation::Gelu, Dtype::Bf16)?;
            Ok([sums.to_vec_f32(), y.to_vec_f32()].concat())
        };
        let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run).unwrap();
        assert!(on(1) == on(3), "{} bytes of weights", weight.stored_bytes());
    }
}

#[test]
fn empty_tensors_give_empty_results_or_errors_but_no_panic() {
    let weight = PackedLinear::new(&noise(1, &[8, 4], Dtype::F32), None, Dtype::Bf16).unwrap();
    let conv = PackedConv2d::new(&noise(2, &[2, 3, 3, 3], Dtype::F32), None, 1, Padding::all(1), Dtype::Bf16).unwrap();
    for level in simd::available() {
        simd::force(level, || {
            let empty = |shape: &[usize]| Tensor::zeros(shape, Dtype::F32).unwrap();
            assert_eq!(
                kernels::linear(&empty(&[0, 4]), &weight, Activation::None, Dtype::F32).unwrap().shape(),
                [0, 8]
            );
            assert!(kernels::layer_norm(&empty(&[0, 4]), None, None, 1e-6, Dtype::Bf16).unwrap().is_empty());
            assert!(kernels::layer_norm(&empty(&[4, 0]), None, None, 1e-6, Dtype::Bf16).is_err());
            assert!(kernels::attention(&empty(&[0, 4]), &empty(&[2, 4]), &empty(&[2, 4]), 2, 1.0, None, None).is_err());
            assert!(kernels::attention(&empty(&[2, 4]), &empty(&[0, 4]), &empty(&[0, 4]), 2, 1.0, None, None).is_err());
            assert!(kernels::conv2d(&empty(&[0, 5, 3]), &conv, Activation::None, None).is_err());
            assert!(kernels::backward_warp(&empty(&[0, 5, 3]), &empty(&[0, 5, 2])).is_err());
            assert!(kernels::upsample_nearest2x(&empty(&[2, 2, 0])).is_err());
            assert_eq!(kernels::concat_channels(&[&empty(&[2, 0]), &empty(&[2, 3])]).unwrap().shape(), [2, 3]);
            assert!(kernels::slice_channels(&empty(&[2, 3]), 3, 0).unwrap().is_empty());
            assert!(kernels::channels_last(&empty(&[3, 0, 2])).unwrap().is_empty());
            assert!(kernels::activate(&empty(&[0]), Activation::Silu).is_empty());
            assert!(kernels::embedding(&empty(&[2, 3]), &[]).unwrap().is_empty());
        })
        .unwrap();
    }
}
