use crate::support::{Bench, assert_close, bench, random};
use kernels::{
    Activation, Dtype, Error, Tensor, activate, add, all_finite, clamp, combine_step, embedding, gram, guide,
    linear_combination, multiply,
};

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];
/// Less than a group, whole groups, a rest, and more than a block.
const LENGTHS: [usize; 5] = [1, 8, 77, 4096, 9001];

fn bits(x: &Tensor) -> (Dtype, Vec<u32>) {
    (x.dtype(), x.to_vec_f32().iter().map(|v| v.to_bits()).collect())
}

#[test]
fn conversion_on_the_device_rounds_as_the_host_does() {
    let bench = bench();
    bench.each_order(|| {
        for len in LENGTHS {
            let x = random(&[len], 1);
            let narrow = x.to_dtype(Dtype::Bf16);
            assert_eq!(bits(&bench.on_device(&x).to_dtype(Dtype::Bf16)), bits(&narrow));
            assert_eq!(bits(&bench.on_device(&narrow).to_dtype(Dtype::F32)), bits(&narrow.to_dtype(Dtype::F32)));
        }
    });
}

#[test]
fn every_activation_on_the_device_equals_the_host() {
    let bench = bench();
    let all = [Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::LeakyRelu(0.2), Activation::None];
    bench.each_order(|| {
        for (dtype, activation) in DTYPES.into_iter().flat_map(|dtype| all.map(|a| (dtype, a))) {
            let x = linear_combination(&[(6.0, &random(&[4100], 1))]).unwrap().to_dtype(dtype);
            assert_close(&activate(&bench.on_device(&x), activation), &activate(&x, activation), dtype);
        }
    });
}

#[test]
fn clamping_on_the_device_leaves_other_handles_alone() {
    let bench = bench();
    for len in LENGTHS {
        let host = random(&[len], 3);
        let x = bench.on_device(&host);
        let clamped = clamp(x.clone(), -0.5, 0.25).unwrap();
        assert_eq!(bits(&clamped), bits(&clamp(host.clone(), -0.5, 0.25).unwrap()));
        assert_eq!(bits(&x), bits(&host));
    }
    let nan = bench.on_device(&Tensor::from_f32(&[f32::NAN, 9.0], &[2]).unwrap());
    let clamped = clamp(nan, 0.0, 1.0).unwrap().to_vec_f32();
    assert!(clamped[0].is_nan() && clamped[1] == 1.0);
    assert!(matches!(
        clamp(bench.on_device(&random(&[2], 1).to_dtype(Dtype::Bf16)), 0.0, 1.0),
        Err(Error::DtypeMismatch { .. })
    ));
}

#[test]
fn products_and_sums_of_mixed_dtypes_on_the_device_equal_the_host() {
    let bench = bench();
    bench.each_order(|| {
        for len in LENGTHS {
            for (first, second) in DTYPES.into_iter().flat_map(|a| DTYPES.map(|b| (a, b))) {
                let (a, b) = (random(&[len], 1).to_dtype(first), random(&[len], 2).to_dtype(second));
                let (x, y) = (bench.on_device(&a), bench.on_device(&b));
                assert_eq!(bits(&multiply(&x, &y).unwrap()), bits(&multiply(&a, &b).unwrap()));
                assert_close(&add(&x, &y).unwrap(), &add(&a, &b).unwrap(), first);
                assert_close(&guide(&x, &y, 5.0).unwrap(), &guide(&a, &b, 5.0).unwrap(), first);
            }
        }
    });
}

#[test]
fn combinations_of_more_terms_than_a_kernel_takes_are_rounded_once() {
    let bench = bench();
    for dtype in DTYPES {
        for count in [1, 16, 17, 40] {
            let terms: Vec<Tensor> =
                (0..count).map(|i| random(&[700], i).to_dtype(if i % 3 == 1 { Dtype::F32 } else { dtype })).collect();
            let there: Vec<Tensor> = terms.iter().map(|t| bench.on_device(t)).collect();
            let sum = |terms: &[Tensor]| {
                let weighted: Vec<(f32, &Tensor)> =
                    terms.iter().enumerate().map(|(i, t)| (1.0 + 0.1 * i as f32, t)).collect();
                linear_combination(&weighted).unwrap()
            };
            assert_eq!(bits(&sum(&there)), bits(&sum(&terms)));
        }
    }
}

#[test]
fn embedding_on_the_device_copies_rows_of_any_width() {
    let bench = bench();
    for (dtype, d) in DTYPES.into_iter().flat_map(|dtype| [1, 6, 64].map(|d| (dtype, d))) {
        let table = random(&[10, d], 1).to_dtype(dtype);
        let ids: Vec<u32> = (0..300).map(|i| i * 7 % 10).collect();
        let rows = embedding(&bench.on_device(&table), &ids).unwrap();
        assert_eq!((rows.shape(), bits(&rows)), (&[300, d][..], bits(&embedding(&table, &ids).unwrap())));
    }
    assert!(embedding(&bench.on_device(&random(&[2, 4], 1)), &[2]).is_err());
    assert!(embedding(&bench.on_device(&random(&[2, 4], 1)), &[]).unwrap().is_empty());
}

fn latents(bench: &Bench, count: u64, len: usize) -> (Vec<Tensor>, Vec<Tensor>) {
    let host: Vec<Tensor> = (0..count).map(|i| random(&[len], i + 1)).collect();
    let there = host.iter().map(|x| bench.on_device(x)).collect();
    (host, there)
}

#[test]
fn a_sampler_step_on_the_device_equals_the_host() {
    let bench = bench();
    bench.each_order(|| {
        for (inputs, outputs, len) in [(1, 1, 3), (3, 2, 1000), (8, 4, 4097)] {
            let (host, there) = latents(&bench, inputs, len);
            let weights: Vec<Vec<f64>> = (0..outputs)
                .map(|o| (0..inputs).map(|i| if (o + i) % 5 == 3 { 0.0 } else { 0.3 * i as f64 - o as f64 }).collect())
                .collect();
            let weights: Vec<&[f64]> = weights.iter().map(Vec::as_slice).collect();
            let on_host = combine_step(&host.iter().collect::<Vec<_>>(), &weights).unwrap();
            let on_device = combine_step(&there.iter().collect::<Vec<_>>(), &weights).unwrap();
            for (a, b) in on_device.iter().zip(&on_host) {
                assert_eq!(bits(a), bits(b));
            }
        }
    });
}

#[test]
fn inner_products_on_the_device_are_those_of_the_host_in_any_order_of_threads() {
    let bench = bench();
    for (inputs, len) in [(1, 5), (2, 1001), (4, 9003), (2, 265_000)] {
        let (host, there) = latents(&bench, inputs, len);
        let on_host = gram(&host.iter().collect::<Vec<_>>()).unwrap();
        let mut before = None;
        bench.each_order(|| {
            let on_device = gram(&there.iter().collect::<Vec<_>>()).unwrap();
            assert_eq!(*before.get_or_insert(on_device), on_device);
            for (a, b) in (0..inputs as usize).flat_map(|a| (0..inputs as usize).map(move |b| (a, b))) {
                let unit = |at: usize| [0, 1, 2, 3].map(|i| f64::from(u8::from(i == at)));
                let (x, y) = (on_device.dot(&unit(a), &unit(b)), on_host.dot(&unit(a), &unit(b)));
                assert!((x - y).abs() <= 1e-11 * len as f64, "⟨{a}, {b}⟩: {x} is not {y}");
            }
            let (x, y) = (on_device.standard_deviation(&[1.0]), on_host.standard_deviation(&[1.0]));
            assert!((x - y).abs() <= 1e-12, "{x} is not {y}");
        });
    }
}

#[test]
fn one_number_that_is_not_finite_is_found_on_the_device() {
    let bench = bench();
    for dtype in DTYPES {
        for (len, at, value) in [(1, 0, f32::NAN), (9001, 9000, f32::INFINITY), (5000, 17, f32::NEG_INFINITY)] {
            let mut values = random(&[len], 1).to_vec_f32();
            let finite = |values: &[f32]| {
                all_finite(&bench.on_device(&Tensor::from_f32(values, &[len]).unwrap().to_dtype(dtype))).unwrap()
            };
            assert!(finite(&values));
            values[at] = value;
            assert!(!finite(&values));
        }
    }
}
