use kernels::{Activation, CudaDevice, Dtype, Error, PackedLinear, Tensor, linear, linear_residual};

use crate::support::{Bench, assert_close, bench, random, relative_error};

use Dtype::{Bf16, F32};

/// A product, made by the library where it takes it, and by the kernels.
fn both_ways(bench: &Bench, mut work: impl FnMut()) {
    work();
    bench.device.use_matmul_library(false);
    bench.each_order(work);
    bench.device.use_matmul_library(true);
}

/// What makes a packed weight of a kind.
type Pack = fn(&Tensor, Option<&Tensor>) -> kernels::Result<PackedLinear>;

const F32_WEIGHT: Pack = |w, b| PackedLinear::new(w, b, F32);
const BF16_WEIGHT: Pack = |w, b| PackedLinear::new(w, b, Bf16);

/// The layer on the host and on the device; the bias is one that bf16 can hold when `narrow`.
fn layers(bench: &Bench, [n, k]: [usize; 2], narrow: bool, host: Pack, device: Pack) -> [PackedLinear; 2] {
    let (w, bias) = (random(&[n, k], 11), random(&[n], 12));
    let bias = if narrow { bias.to_dtype(Bf16).to_dtype(F32) } else { bias };
    let (w_there, bias_there) = (bench.on_device(&w), bench.on_device(&bias));
    [host(&w, Some(&bias)).unwrap(), device(&w_there, Some(&bias_there)).unwrap()]
}

/// m, n, k: every tile on the stand-in's four multiprocessors, with tails in each direction, and more than one group of
/// tile rows.
const SHAPES: [[usize; 3]; 8] = [
    [1, 1, 1],
    [3, 37, 1333],
    [8, 16, 64],
    [60, 53, 99],
    [66, 130, 133],
    [200, 132, 77],
    [577, 70, 16],
    [100, 1001, 33],
];

const ACTIVATIONS: [Activation; 5] =
    [Activation::None, Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::LeakyRelu(0.2)];

/// Compares `linear` at every shape, with inputs and results of both dtypes.
fn compare(bench: &Bench, host: Pack, device: Pack, dtype: Dtype) {
    for (i, [m, n, k]) in SHAPES.into_iter().enumerate() {
        let [here, there] = layers(bench, [n, k], i % 2 == 0, host, device);
        for (j, out) in [F32, Bf16].into_iter().enumerate() {
            let x = random(&[m, k], 13).to_dtype(if (i + j) % 2 == 0 { F32 } else { Bf16 });
            let x_there = bench.on_device(&x);
            let activation = ACTIVATIONS[(i + 3 * j) % ACTIVATIONS.len()];
            let expected = linear(&x, &here, activation, out).unwrap();
            both_ways(bench, || {
                let y = linear(&x_there, &there, activation, out).unwrap();
                let tolerance = if out == Bf16 { Bf16 } else { dtype };
                assert_close(&y, &expected, tolerance);
            });
        }
    }
}

#[test]
fn linear_on_the_device_equals_the_host_at_odd_shapes() {
    let bench = bench();
    compare(&bench, F32_WEIGHT, F32_WEIGHT, F32);
    compare(&bench, BF16_WEIGHT, BF16_WEIGHT, Bf16);
}

#[test]
fn int8_linear_on_the_device_equals_the_host_at_odd_shapes() {
    let bench = bench();
    compare(&bench, PackedLinear::int8, PackedLinear::int8, F32);
}

#[test]
fn int8_results_on_the_device_are_the_hosts_to_the_bit() {
    let bench = bench();
    for [m, n, k] in SHAPES {
        let [here, there] = layers(&bench, [n, k], false, PackedLinear::int8, PackedLinear::int8);
        let x = random(&[m, k], 14);
        let expected = linear(&x, &here, Activation::None, F32).unwrap().to_vec_f32();
        let x = bench.on_device(&x);
        bench.each_order(|| {
            let y = linear(&x, &there, Activation::None, F32).unwrap();
            assert_eq!(y.to_vec_f32(), expected, "{m}x{n}x{k}");
        });
    }
}

#[test]
fn int8_weights_from_a_file_go_to_the_scopes_device() {
    let bench = bench();
    let (n, k) = (33, 21);
    let weight: Vec<i8> = (0..n * k).map(|i| (i * 37 % 255) as u8 as i8).collect();
    let scales: Vec<f32> = (0..n).map(|i| 0.01 * (1 + i) as f32).collect();
    let bias = random(&[n], 2);
    let here = PackedLinear::from_int8(&weight, &scales, [n, k], Some(&bias)).unwrap();
    let there = bench.device.scope(|| PackedLinear::from_int8(&weight, &scales, [n, k], Some(&bias))).unwrap();
    let x = random(&[5, k], 3);
    let expected = linear(&x, &here, Activation::None, F32).unwrap().to_vec_f32();
    let y = linear(&bench.on_device(&x), &there, Activation::None, F32).unwrap();
    assert_eq!(y.to_vec_f32(), expected);
    assert_eq!((there.n(), there.k(), there.dtype()), (n, k, Bf16));
    // Rows of 32 bytes, a scale and a bias each.
    assert_eq!(there.stored_bytes(), n * (32 + 4 + 4));
}

#[test]
fn fp8_linear_on_the_device_equals_its_reference_at_odd_shapes() {
    let bench = bench();
    compare(&bench, PackedLinear::fp8_reference_for_tests, PackedLinear::fp8, F32);
}

#[test]
fn fp8_keeps_most_of_what_f32_computes() {
    let bench = bench();
    let (w, x) = (random(&[96, 256], 4), random(&[70, 256], 5));
    let exact = linear(&x, &PackedLinear::new(&w, None, F32).unwrap(), Activation::None, F32).unwrap();
    let narrow = PackedLinear::fp8(&bench.on_device(&w), None).unwrap();
    let y = linear(&bench.on_device(&x), &narrow, Activation::None, F32).unwrap();
    let error = relative_error(&y, &exact);
    assert!((1e-3..0.05).contains(&error), "{error:.2e}");
}

#[test]
fn fp8_of_a_weight_in_host_memory_is_refused() {
    let error = PackedLinear::fp8(&random(&[4, 16], 1), None).unwrap_err();
    assert!(matches!(error, Error::DeviceKernel { .. }) && error.to_string().contains("CUDA device"), "{error}");
}

/// Compares `linear_residual` with gates of `groups` groups (none: no gate).
fn compare_residual(
    bench: &Bench,
    [m, n, k]: [usize; 3],
    groups: Option<usize>,
    [host, device]: [Pack; 2],
    dtype: Dtype,
) {
    let [here, there] = layers(bench, [n, k], false, host, device);
    let (x, before) = (random(&[m, k], 21).to_dtype(dtype), random(&[m, n], 22));
    for gate_dtype in [F32, Bf16] {
        let gate = groups.map(|groups| random(&[groups, n], 23).to_dtype(gate_dtype));
        let mut expected = before.clone();
        linear_residual(&x, &here, gate.as_ref(), &mut expected).unwrap();
        let (x, gate) = (bench.on_device(&x), gate.map(|gate| bench.on_device(&gate)));
        both_ways(bench, || {
            let mut residual = bench.on_device(&before);
            let shared = residual.clone();
            linear_residual(&x, &there, gate.as_ref(), &mut residual).unwrap();
            assert_close(&residual, &expected, if dtype == F32 { F32 } else { Bf16 });
            assert_eq!(shared.to_vec_f32(), before.to_vec_f32(), "another handle saw the change");
        });
    }
}

#[test]
fn linear_residual_on_the_device_adds_with_each_groups_gate() {
    let bench = bench();
    for (kind, dtype) in [(F32_WEIGHT, F32), (BF16_WEIGHT, Bf16), (PackedLinear::int8 as Pack, Bf16)] {
        let kinds = [kind; 2];
        compare_residual(&bench, [6, 35, 72], Some(3), kinds, dtype);
        compare_residual(&bench, [75, 132, 50], None, kinds, dtype);
        compare_residual(&bench, [75, 67, 50], Some(1), kinds, dtype);
        compare_residual(&bench, [130, 128, 64], Some(5), kinds, dtype);
    }
    let fp8: [Pack; 2] = [PackedLinear::fp8_reference_for_tests, PackedLinear::fp8];
    compare_residual(&bench, [80, 64, 48], Some(2), fp8, Bf16);
}

#[test]
fn long_rows_take_the_epilogue_apart_and_mean_the_same() {
    let bench = bench();
    // From k = 1024 on, gates and SiLU are a kernel of their own behind the library's product.
    compare_residual(&bench, [66, 20, 1030], Some(2), [BF16_WEIGHT; 2], Bf16);
    let [here, there] = layers(&bench, [21, 1025], false, BF16_WEIGHT, BF16_WEIGHT);
    let x = random(&[65, 1025], 1).to_dtype(Bf16);
    for out in [F32, Bf16] {
        let expected = linear(&x, &here, Activation::Silu, out).unwrap();
        let before = bench.standin.launches("linear_finish_f32").unwrap()
            + bench.standin.launches("linear_finish_bf16").unwrap();
        let y = linear(&bench.on_device(&x), &there, Activation::Silu, out).unwrap();
        let after = bench.standin.launches("linear_finish_f32").unwrap()
            + bench.standin.launches("linear_finish_bf16").unwrap();
        assert_eq!(after, before + 1);
        assert_close(&y, &expected, Bf16);
    }
}

#[test]
fn plain_products_go_to_the_library_and_others_to_our_kernels() {
    let bench = bench();
    let [_, narrow] = layers(&bench, [24, 40], true, BF16_WEIGHT, BF16_WEIGHT);
    let [_, wide] = layers(&bench, [24, 40], false, BF16_WEIGHT, BF16_WEIGHT);
    let (many, few) = (bench.on_device(&random(&[65, 40], 1)), bench.on_device(&random(&[64, 40], 1)));
    let used = |x: &Tensor, weight: &PackedLinear, activation, out| {
        let before = bench.standin.enqueued();
        linear(x, weight, activation, out).unwrap();
        bench.standin.enqueued() - before
    };
    assert_eq!(used(&many, &narrow, Activation::None, Bf16), 1);
    assert_eq!(used(&many, &narrow, Activation::GeluTanh, Bf16), 1);
    assert_eq!(used(&many, &wide, Activation::GeluTanh, F32), 1);
    assert_eq!(used(&many, &wide, Activation::None, Bf16), 0, "the bias loses bits in bf16");
    assert_eq!(used(&many, &narrow, Activation::Gelu, Bf16), 0, "its GELU is the tanh form");
    assert_eq!(used(&many, &narrow, Activation::Silu, Bf16), 0);
    assert_eq!(used(&few, &narrow, Activation::None, Bf16), 0, "few rows");
    bench.device.use_matmul_library(false);
    assert_eq!(used(&many, &narrow, Activation::None, Bf16), 0);
    bench.device.use_matmul_library(true);
    assert_eq!(bench.device.matmul_library(), Ok("cuBLASLt 13.0.1".to_owned()));
}

#[test]
fn a_captured_product_runs_with_what_its_input_then_holds() {
    let bench = bench();
    let [here, there] = layers(&bench, [24, 40], true, F32_WEIGHT, F32_WEIGHT);
    for library in [true, false] {
        bench.device.use_matmul_library(library);
        let mut input = bench.on_device(&random(&[70, 40], 1));
        let (y, graph) = bench.device.capture(|| linear(&input, &there, Activation::None, F32)).unwrap();
        for seed in [2, 3] {
            let x = random(&[70, 40], seed);
            input.write_f32(&x.to_vec_f32()).unwrap();
            graph.launch().unwrap();
            assert_close(&y, &linear(&x, &here, Activation::None, F32).unwrap(), F32);
        }
    }
    bench.device.use_matmul_library(true);
}

#[test]
fn a_row_that_is_not_finite_spoils_its_own_results_on_the_device() {
    let bench = bench();
    for pack in [PackedLinear::int8 as Pack, PackedLinear::fp8] {
        let weight = bench.on_device(&Tensor::from_f32(&[1.0, 2.0], &[1, 2]).unwrap());
        let packed = pack(&weight, None).unwrap();
        let x = Tensor::from_f32(&[1.0, 1.0, f32::NAN, 1.0, 1.0, f32::INFINITY, 0.0, 0.0], &[4, 2]).unwrap();
        let y = linear(&bench.on_device(&x), &packed, Activation::None, F32).unwrap().to_vec_f32();
        assert!((y[0] - 3.0).abs() < 0.2 && y[3] == 0.0, "{y:?}");
        assert!(!y[1].is_finite() && !y[2].is_finite(), "{y:?}");
        let error = pack(&bench.on_device(&Tensor::from_f32(&[1.0, f32::NAN], &[2, 1]).unwrap()), None).unwrap_err();
        assert!(error.to_string().contains("output 1"), "{error}");
    }
}

#[test]
fn weights_on_the_device_tell_their_shape_and_size() {
    let bench = bench();
    let there = |dtype: Dtype, k: usize| {
        let w = bench.on_device(&random(&[10, k], 1).to_dtype(dtype));
        PackedLinear::new(&w, None, dtype).unwrap()
    };
    let w = there(Bf16, 13);
    assert_eq!((w.n(), w.k(), w.dtype(), w.stored_bytes()), (10, 13, Bf16, 10 * 32));
    assert_eq!(there(F32, 13).stored_bytes(), 10 * 64);
    // Rows that lie as they should are shared with the tensor they came from.
    let tensor = bench.on_device(&random(&[16, 64], 1));
    let live = bench.device.live_bytes();
    let packed = PackedLinear::new(&tensor, None, F32).unwrap();
    assert_eq!((bench.device.live_bytes(), packed.stored_bytes()), (live, 16 * 64 * 4));
}

#[test]
fn operands_in_different_places_are_refused() {
    let bench = bench();
    let [here, there] = layers(&bench, [4, 8], true, F32_WEIGHT, F32_WEIGHT);
    let x = random(&[2, 8], 1);
    let error = linear(&x, &there, Activation::None, F32).unwrap_err().to_string();
    assert!(error.contains("its input in host memory"), "{error}");
    let error = linear(&bench.on_device(&x), &here, Activation::None, F32).unwrap_err().to_string();
    assert!(error.contains("the weight is in host memory"), "{error}");
    let mut residual = random(&[2, 4], 1);
    assert!(linear_residual(&bench.on_device(&x), &there, None, &mut residual).is_err());
    assert!(PackedLinear::new(&bench.on_device(&random(&[4, 8], 1)), Some(&random(&[4], 1)), F32).is_err());
    let mut halves = bench.device.scope(|| Tensor::zeros(&[2, 4], Bf16)).unwrap();
    assert!(linear_residual(&bench.on_device(&x), &there, None, &mut halves).is_err());
    let gate = bench.on_device(&random(&[3], 1));
    let mut residual = bench.on_device(&residual);
    assert!(linear_residual(&bench.on_device(&x), &there, Some(&gate), &mut residual).is_err());
    assert!(CudaDevice::current().is_none());
}
