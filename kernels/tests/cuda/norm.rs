use crate::support::{assert_close, bench, random};
use kernels::{Dtype, Error, Tensor, channel_norm_silu, layer_norm, layer_norm_modulate, rms_norm};

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];
/// Teams within a warp and whole blocks, with whole groups and without.
const WIDTHS: [usize; 8] = [1, 3, 8, 96, 100, 129, 520, 1537];

/// Rows that are not centred, so that a lost mean shows.
fn rows(rows: usize, d: usize, dtype: Dtype) -> Tensor {
    let x = random(&[rows, d], d as u64).to_vec_f32();
    let x: Vec<f32> = x.iter().enumerate().map(|(i, x)| 3.0 * x + 0.5 + (i / d) as f32 * 0.1).collect();
    Tensor::from_vec(x, &[rows, d]).unwrap().to_dtype(dtype)
}

fn each_dtype(mut check: impl FnMut(Dtype, Dtype)) {
    for x in DTYPES {
        DTYPES.into_iter().for_each(|out| check(x, out));
    }
}

#[test]
fn layer_norm_on_the_device_equals_the_host_at_any_width() {
    let bench = bench();
    bench.each_order(|| {
        each_dtype(|dtype, out| {
            for d in WIDTHS {
                let (x, w, b) = (rows(9, d, dtype), random(&[d], 1), random(&[d], 2));
                let there = [&x, &w, &b].map(|t| bench.on_device(t));
                let host = layer_norm(&x, Some(&w), Some(&b), 1e-5, out).unwrap();
                let y = layer_norm(&there[0], Some(&there[1]), Some(&there[2]), 1e-5, out).unwrap();
                assert_close(&y, &host, out);
                let y = layer_norm(&there[0], None, None, 1e-5, out).unwrap();
                assert_close(&y, &layer_norm(&x, None, None, 1e-5, out).unwrap(), out);
            }
        });
    });
}

#[test]
fn modulation_on_the_device_takes_each_group_s_scale_and_shift() {
    let bench = bench();
    bench.each_order(|| {
        each_dtype(|dtype, out| {
            for (d, groups) in [(96, 3), (70, 1), (1030, 6)] {
                let x = rows(6, d, dtype);
                let shape: &[usize] = if groups == 1 { &[d] } else { &[groups, d] };
                let (scale, shift) = (random(shape, 3), random(shape, 4));
                let host = layer_norm_modulate(&x, &scale, &shift, 1e-6, out).unwrap();
                let [x, scale, shift] = [&x, &scale, &shift].map(|t| bench.on_device(t));
                let y = layer_norm_modulate(&x, &scale, &shift, 1e-6, out).unwrap();
                assert_close(&y, &host, out);
            }
        });
    });
}

#[test]
fn rms_norm_on_the_device_equals_the_host_at_any_width() {
    let bench = bench();
    bench.each_order(|| {
        each_dtype(|dtype, out| {
            for d in WIDTHS {
                let (x, w) = (rows(5, d, dtype), random(&[d], 1));
                let host = rms_norm(&x, &w, 1e-6, out).unwrap();
                let y = rms_norm(&bench.on_device(&x), &bench.on_device(&w), 1e-6, out).unwrap();
                assert_close(&y, &host, out);
            }
        });
    });
}

#[test]
fn channel_norm_on_the_device_equals_the_host_with_and_without_silu() {
    let bench = bench();
    bench.each_order(|| {
        for dtype in DTYPES {
            for d in [3, 16, 96, 192, 384, 1100] {
                // A pixel of zeros stays one.
                let x = Tensor::concat_outer(&[
                    &rows(300 / d + 5, d, Dtype::F32),
                    &Tensor::zeros(&[1, d], Dtype::F32).unwrap(),
                ]);
                let (x, gamma) = (x.unwrap().to_dtype(dtype), random(&[d], 1));
                for silu in [false, true] {
                    let host = channel_norm_silu(&x, &gamma, silu).unwrap();
                    let y = channel_norm_silu(&bench.on_device(&x), &bench.on_device(&gamma), silu).unwrap();
                    assert_close(&y, &host, dtype);
                }
            }
        }
    });
}

#[test]
fn weights_in_bf16_are_read_as_what_they_are() {
    let bench = bench();
    let (x, w) = (rows(4, 64, Dtype::F32), random(&[64], 1).to_dtype(Dtype::Bf16));
    let host = rms_norm(&x, &w, 1e-6, Dtype::F32).unwrap();
    let y = rms_norm(&bench.on_device(&x), &bench.on_device(&w), 1e-6, Dtype::F32).unwrap();
    assert_close(&y, &host, Dtype::F32);
}

#[test]
fn rows_too_long_for_a_block_and_tensors_in_two_places_are_refused() {
    let bench = bench();
    let (x, w) = (random(&[1, 16_385], 1), random(&[16_385], 2));
    let (there, weight) = (bench.on_device(&x), bench.on_device(&w));
    assert!(matches!(rms_norm(&there, &weight, 1e-6, Dtype::F32), Err(Error::InvalidArgument { .. })));
    assert!(matches!(rms_norm(&there, &w, 1e-6, Dtype::F32), Err(Error::InvalidArgument { .. })));
}
