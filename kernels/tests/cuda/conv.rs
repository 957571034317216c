use crate::support::{Bench, assert_close, bench, random};
use kernels::simd::{self, Level};
use kernels::{
    Activation, CausalConv3d, Dtype, PackedConv2d, PackedConvTranspose2d, Padding, Result, Tensor, causal_conv3d,
    conv_transpose2d, conv2d,
};

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

/// The answer of the plain reference on the host.
fn reference(work: impl FnOnce() -> Result<Tensor>) -> Tensor {
    simd::force(Level::Reference, work).unwrap().unwrap()
}

/// Weights for sums of about 1, whatever their number.
fn weight(shape: &[usize], seed: u64) -> Tensor {
    let scale = (shape.iter().skip(1).product::<usize>() as f32 / 3.0).sqrt().recip();
    Tensor::from_vec(random(shape, seed).to_vec_f32().iter().map(|v| v * scale).collect(), shape).unwrap()
}

/// One convolution of pictures, weights and tensors in `dtype`.
struct Pictures {
    x: [usize; 4],
    cout: usize,
    taps: [usize; 2],
    stride: usize,
    padding: Padding,
    activation: Activation,
    residual: bool,
    dtype: Dtype,
}

impl Pictures {
    fn check(&self, bench: &Bench) {
        let Self { x: [.., cin], cout, taps: [kh, kw], stride, padding, activation, dtype, .. } = *self;
        let (w, bias) = (weight(&[cout, cin, kh, kw], 1), random(&[cout], 2));
        let x = random(&self.x, 3).to_dtype(dtype);
        let host = PackedConv2d::new(&w, Some(&bias), stride, padding, dtype).unwrap();
        let plain = reference(|| conv2d(&x, &host, activation, None));
        let residual = self.residual.then(|| random(plain.shape(), 4).to_dtype(dtype));
        let expected = reference(|| conv2d(&x, &host, activation, residual.as_ref()));
        let [w, bias, x] = [w, bias, x].map(|tensor| bench.on_device(&tensor));
        let residual = residual.map(|residual| bench.on_device(&residual));
        let packed = PackedConv2d::new(&w, Some(&bias), stride, padding, dtype).unwrap();
        bench.each_order(|| {
            assert_close(&conv2d(&x, &packed, activation, residual.as_ref()).unwrap(), &expected, dtype);
        });
    }
}

#[test]
fn conv2d_on_the_device_equals_the_reference_at_odd_sizes_strides_and_channels() {
    let bench = bench();
    let sided = Padding { left: 0, right: 1, top: 2, bottom: 1 };
    // Channels of 16, 8, 4 and 2 bytes; more and fewer outputs than a tile has, and none of them whole ones.
    let cases = [
        ([1, 7, 9, 8], 16, [3, 3], 1, Padding::all(1), Activation::LeakyRelu(0.2), true),
        ([2, 12, 13, 16], 40, [3, 3], 2, sided, Activation::Silu, true),
        ([1, 17, 11, 3], 33, [3, 3], 2, Padding::all(1), Activation::LeakyRelu(0.2), false),
        ([1, 9, 8, 28], 70, [3, 3], 1, Padding::all(1), Activation::GeluTanh, true),
        ([2, 5, 6, 6], 3, [5, 2], 1, Padding::all(2), Activation::Gelu, false),
        ([1, 11, 13, 15], 13, [1, 1], 1, Padding::default(), Activation::None, true),
        ([1, 1, 1, 24], 1, [1, 1], 1, Padding::default(), Activation::None, false),
        ([3, 4, 33, 40], 24, [1, 1], 2, Padding::default(), Activation::Silu, true),
    ];
    for dtype in DTYPES {
        for (x, cout, taps, stride, padding, activation, residual) in cases {
            Pictures { x, cout, taps, stride, padding, activation, residual, dtype }.check(&bench);
        }
    }
}

#[test]
fn every_width_of_tile_gives_the_same_convolution() {
    let bench = bench();
    // The stand-in has 4 multiprocessors: eight blocks at once. More of them favour wider tiles.
    let cases = [
        ("conv_bf16_wide_128", 8, 1024),
        ("conv_bf16_wide_96", 8, 760),
        ("conv_bf16_wide_64", 8, 500),
        ("conv_bf16_wide_32", 8, 20),
        ("conv_bf16_narrow_64", 7, 500),
        ("conv_bf16_narrow_32", 7, 20),
    ];
    for (kernel, cin, cout) in cases {
        let before = bench.standin.launches(kernel).unwrap();
        let (taps, padding, activation) = ([2, 3], Padding::all(1), Activation::Silu);
        let x = [1, 3, 5, cin];
        Pictures { x, cout, taps, stride: 1, padding, activation, residual: true, dtype: Dtype::Bf16 }.check(&bench);
        assert!(bench.standin.launches(kernel).unwrap() > before, "{kernel} did not run");
    }
}

/// A clip after `cached` frames of history.
struct Clip {
    frames: usize,
    cached: usize,
    size: [usize; 2],
    channels: [usize; 2],
    taps: [usize; 3],
    temporal_stride: usize,
    dtype: Dtype,
}

impl Clip {
    /// The device's answer equals the host's.
    fn check(&self, bench: &Bench, weight: &Tensor) {
        let Self { frames, cached, size: [h, w], channels: [cin, cout], taps, temporal_stride, dtype } = *self;
        let padding = Padding::all(taps[1] / 2);
        let bias = random(&[cout], 2);
        let x = random(&[frames, h, w, cin], 3).to_dtype(dtype);
        let cache = (cached > 0).then(|| random(&[cached, h, w, cin], 4).to_dtype(dtype));
        let host = CausalConv3d::new(weight, Some(&bias), temporal_stride, 1, padding, dtype).unwrap();
        let run = |x: &Tensor, cache: Option<&Tensor>, weight: &CausalConv3d, residual: Option<&Tensor>| {
            causal_conv3d(x, cache, weight, Activation::Silu, residual)
        };
        let plain = reference(|| run(&x, cache.as_ref(), &host, None));
        let residual = random(plain.shape(), 5).to_dtype(dtype);
        let expected = reference(|| run(&x, cache.as_ref(), &host, Some(&residual)));
        let [x, residual, weight, bias] = [&x, &residual, weight, &bias].map(|tensor| bench.on_device(tensor));
        let cache = cache.map(|cache| bench.on_device(&cache));
        let packed = CausalConv3d::new(&weight, Some(&bias), temporal_stride, 1, padding, dtype).unwrap();
        assert_eq!(packed.is_per_frame(), host.is_per_frame());
        bench.each_order(|| {
            assert_close(&run(&x, cache.as_ref(), &packed, Some(&residual)).unwrap(), &expected, dtype);
        });
    }
}

#[test]
fn causal_conv3d_on_the_device_equals_the_reference_after_any_history() {
    let bench = bench();
    for dtype in DTYPES {
        for (cached, frames) in [(0, 1), (0, 3), (1, 1), (1, 2), (2, 1), (2, 4)] {
            let (size, channels, taps) = ([5, 7], [16, 24], [3, 3, 3]);
            let clip = Clip { frames, cached, size, channels, taps, temporal_stride: 1, dtype };
            clip.check(&bench, &weight(&[24, 16, 3, 3, 3], 6));
        }
        for (cin, cout, taps) in [(3, 10, [3, 3, 3]), (6, 5, [3, 1, 1]), (20, 8, [2, 3, 3]), (8, 3, [4, 1, 1])] {
            let (size, channels) = ([6, 9], [cin, cout]);
            let clip = Clip { frames: 2, cached: 1, size, channels, taps, temporal_stride: 1, dtype };
            clip.check(&bench, &weight(&[cout, cin, taps[0], taps[1], taps[2]], 7));
        }
    }
}

#[test]
fn causal_conv3d_on_the_device_halves_the_frame_rate() {
    let bench = bench();
    for dtype in DTYPES {
        for (cached, frames) in [(1, 2), (1, 4), (0, 5), (2, 3)] {
            let (size, channels, taps) = ([4, 5], [12, 20], [3, 1, 1]);
            let clip = Clip { frames, cached, size, channels, taps, temporal_stride: 2, dtype };
            clip.check(&bench, &weight(&[20, 12, 3, 1, 1], 8));
        }
    }
}

#[test]
fn taps_in_time_without_weight_are_dropped_on_the_device_too() {
    let bench = bench();
    for dtype in DTYPES {
        for (dropped, temporal_stride) in [(1, 1), (2, 1), (2, 2)] {
            let mut values = weight(&[9, 8, 3, 3, 3], 9).to_vec_f32();
            values.chunks_exact_mut(27).for_each(|taps| taps[..9 * dropped].fill(0.0));
            let weight = Tensor::from_vec(values, &[9, 8, 3, 3, 3]).unwrap();
            let (size, channels, taps) = ([5, 4], [8, 9], [3, 3, 3]);
            Clip { frames: 4, cached: 1, size, channels, taps, temporal_stride, dtype }.check(&bench, &weight);
        }
    }
}

#[test]
fn frames_in_chunks_with_their_history_equal_the_whole_clip_to_the_last_bit() {
    let bench = bench();
    let (weight, x) = (weight(&[32, 16, 3, 3, 3], 10), random(&[5, 6, 7, 16], 11).to_dtype(Dtype::Bf16));
    let packed = CausalConv3d::new(&bench.on_device(&weight), None, 1, 1, Padding::all(1), Dtype::Bf16).unwrap();
    let part = |range: std::ops::Range<usize>| bench.on_device(&x.slice_outer(range).unwrap());
    let run = |x: &Tensor, cache: Option<&Tensor>| {
        causal_conv3d(x, cache, &packed, Activation::None, None).unwrap().to_vec_f32()
    };
    let whole = run(&bench.on_device(&x), None);
    let chunks = [run(&part(0..1), None), run(&part(1..3), Some(&part(0..1))), run(&part(3..5), Some(&part(1..3)))];
    assert_eq!(chunks.concat(), whole);
}

#[test]
fn conv_transpose2d_on_the_device_equals_the_reference() {
    let bench = bench();
    let cases = [
        ([1, 3, 4, 8], 16, Activation::None),
        ([2, 5, 7, 16], 52, Activation::LeakyRelu(0.2)),
        ([1, 1, 1, 5], 4, Activation::Silu),
        ([1, 9, 15, 6], 33, Activation::None),
    ];
    for dtype in DTYPES {
        for (shape, cout, activation) in cases {
            let (w, bias) = (weight(&[shape[3], cout, 4, 4], 12), random(&[cout], 13));
            let x = random(&shape, 14).to_dtype(dtype);
            let host = PackedConvTranspose2d::new(&w, Some(&bias), dtype).unwrap();
            let expected = reference(|| conv_transpose2d(&x, &host, activation));
            let [w, bias, x] = [w, bias, x].map(|tensor| bench.on_device(&tensor));
            let packed = PackedConvTranspose2d::new(&w, Some(&bias), dtype).unwrap();
            bench.each_order(|| assert_close(&conv_transpose2d(&x, &packed, activation).unwrap(), &expected, dtype));
        }
    }
}

#[test]
fn pictures_of_one_type_pass_through_kernels_of_the_other() {
    let bench = bench();
    for (of_x, of_kernel) in [(Dtype::F32, Dtype::Bf16), (Dtype::Bf16, Dtype::F32)] {
        let (w, x) = (weight(&[9, 3, 3, 3], 19), random(&[2, 7, 6, 3], 20).to_dtype(of_x));
        let host = PackedConv2d::new(&w, None, 2, Padding::all(1), of_kernel).unwrap();
        let shape = [2, 4, 3, 9];
        // The residual's own type does not matter: it is brought to x's.
        let residual = random(&shape, 21).to_dtype(of_kernel);
        let expected = reference(|| conv2d(&x, &host, Activation::Silu, Some(&residual)));
        let [w, x, residual] = [w, x, residual].map(|tensor| bench.on_device(&tensor));
        let packed = PackedConv2d::new(&w, None, 2, Padding::all(1), of_kernel).unwrap();
        bench.each_order(|| {
            let y = conv2d(&x, &packed, Activation::Silu, Some(&residual)).unwrap();
            assert_eq!((y.shape(), y.dtype()), (&shape[..], of_x));
            assert_close(&y, &expected, Dtype::Bf16);
        });
    }
}

#[test]
fn a_convolution_with_weights_and_pictures_in_different_places_is_refused() {
    let bench = bench();
    let (w, x) = (weight(&[4, 8, 1, 1], 15), random(&[3, 3, 8], 16));
    let pack = |w: &Tensor| PackedConv2d::new(w, None, 1, Padding::default(), Dtype::F32).unwrap();
    let run = |x: &Tensor, packed: &PackedConv2d| conv2d(x, packed, Activation::None, None);
    assert!(run(&bench.on_device(&x), &pack(&w)).is_err());
    assert!(run(&x, &pack(&bench.on_device(&w))).is_err());
    assert!(run(&bench.on_device(&x), &pack(&bench.on_device(&w))).is_ok());
}

#[test]
fn a_picture_with_more_rows_than_the_kernel_numbers_is_refused() {
    let bench = bench();
    let w = PackedConv2d::new(&bench.on_device(&weight(&[1, 1, 1, 1], 17)), None, 1, Padding::default(), Dtype::F32);
    let tall = bench.on_device(&random(&[1 << 15, 1, 1], 18));
    let error = conv2d(&tall, &w.unwrap(), Activation::None, None).unwrap_err().to_string();
    assert!(error.contains("32768") && error.contains("32767"), "{error}");
}
