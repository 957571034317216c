use crate::support::{assert_close, bench, random};
use kernels::{
    Dtype, Error, SizeFactors, Tensor, add_averaged, add_repeated, backward_warp, blend_mask, pixel_shuffle2x,
    resize_bilinear, rgb_to_yuv420, upsample_nearest2x, warp_blend,
};

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];
/// Sides and channels: less than a vector, no multiple of one, whole vectors, more than a block's pixels.
const PICTURES: [[usize; 3]; 6] = [[1, 1, 1], [5, 7, 3], [1, 19, 8], [13, 1, 5], [33, 29, 16], [9, 67, 2]];

/// `random`, times `scale`.
fn scaled(shape: &[usize], seed: u64, scale: f32) -> Tensor {
    kernels::linear_combination(&[(scale, &random(shape, seed))]).unwrap()
}

/// Runs `work` on the host and, under several orders of the threads, on the device.
#[track_caller]
fn agrees(dtype: Dtype, inputs: &[&Tensor], work: impl Fn(&[Tensor]) -> Tensor) {
    let bench = bench();
    let host: Vec<Tensor> = inputs.iter().map(|&x| x.clone()).collect();
    let device: Vec<Tensor> = inputs.iter().map(|x| bench.on_device(x)).collect();
    let expected = work(&host);
    bench.each_order(|| assert_close(&work(&device), &expected, dtype));
}

/// As [`agrees`], to the last bit.
#[track_caller]
fn is_the_same(inputs: &[&Tensor], work: impl Fn(&[Tensor]) -> Tensor) {
    let bench = bench();
    let host: Vec<Tensor> = inputs.iter().map(|&x| x.clone()).collect();
    let device: Vec<Tensor> = inputs.iter().map(|x| bench.on_device(x)).collect();
    let expected = work(&host);
    bench.each_order(|| {
        let result = work(&device);
        assert_eq!((result.shape(), result.dtype()), (expected.shape(), expected.dtype()));
        assert_eq!(result.to_vec_f32(), expected.to_vec_f32());
    });
}

#[test]
fn warps_on_the_device_read_where_the_host_reads_also_outside_of_the_picture() {
    for dtype in DTYPES {
        for (seed, [h, w, c]) in (0..).zip(PICTURES) {
            let image = random(&[h, w, c], seed).to_dtype(dtype);
            let flow = scaled(&[h, w, 2], seed + 50, 1.5 * w as f32);
            agrees(dtype, &[&image, &flow], |x| backward_warp(&x[0], &x[1]).unwrap());
        }
    }
    // Whole pixels, and what is not a number.
    let flow = Tensor::from_vec([1.0, 0.0, f32::NAN, -1.0, f32::INFINITY, f32::NEG_INFINITY].repeat(4), &[3, 4, 2]);
    is_the_same(&[&random(&[3, 4, 3], 9), &flow.unwrap()], |x| backward_warp(&x[0], &x[1]).unwrap());
}

#[test]
fn blends_on_the_device_weigh_as_the_host_does() {
    for dtype in DTYPES {
        for (seed, [h, w, c]) in (0..).zip(PICTURES) {
            let (a, b) = (random(&[h, w, c], seed).to_dtype(dtype), random(&[h, w, c], seed + 50).to_dtype(dtype));
            let mask = scaled(&[h, w, 1], seed + 99, 100.0);
            agrees(dtype, &[&a, &b, &mask], |x| blend_mask(&x[0], &x[1], &x[2]).unwrap());
        }
    }
}

#[test]
fn two_warps_and_a_blend_in_one_pass_are_three_operations() {
    for dtype in DTYPES {
        for (seed, [h, w, c]) in (0..).zip(PICTURES) {
            let (a, b) = (random(&[h, w, c], seed).to_dtype(dtype), random(&[h, w, c], seed + 50).to_dtype(dtype));
            let flow = |seed| scaled(&[h, w, 2], seed, 9.0);
            let mask = scaled(&[h, w, 1], seed + 99, 5.0);
            agrees(dtype, &[&a, &b, &flow(seed + 7), &flow(seed + 8), &mask], |x| {
                warp_blend(&x[0], &x[1], &x[2], &x[3], &x[4]).unwrap()
            });
        }
    }
}

#[test]
fn resizing_on_the_device_takes_the_same_neighbours() {
    let sizes: [(&[usize], [usize; 2]); 5] = [
        (&[5, 7, 3], [10, 14]),
        (&[2, 33, 29, 16], [16, 14]),
        (&[3, 9, 4, 8], [7, 13]),
        (&[8, 8, 2], [1, 1]),
        (&[1, 1, 5], [3, 2]),
    ];
    for dtype in DTYPES {
        for (seed, (from, [height, width])) in (0..).zip(sizes) {
            let x = random(from, seed).to_dtype(dtype);
            agrees(dtype, &[&x], |x| resize_bilinear(&x[0], height, width).unwrap());
        }
    }
}

#[test]
fn wide_pictures_are_resized_without_drifting_off() {
    // Positions of thousands: fused arithmetic would put samples a part in thousands of a pixel elsewhere.
    let x = random(&[2, 4099, 1], 3);
    agrees(Dtype::F32, &[&x], |x| resize_bilinear(&x[0], 1, 3001).unwrap());
}

#[test]
fn shuffled_and_repeated_pixels_are_copies() {
    for dtype in DTYPES {
        for (seed, [h, w, c]) in (0..).zip(PICTURES) {
            let x = random(&[h, w, 4 * c], seed).to_dtype(dtype);
            is_the_same(&[&x], |x| pixel_shuffle2x(&x[0]).unwrap());
            let x = random(&[2, h, w, c], seed).to_dtype(dtype);
            is_the_same(&[&x], |x| upsample_nearest2x(&x[0]).unwrap());
        }
    }
}

#[test]
fn shortcuts_on_the_device_average_and_repeat_the_same_values() {
    let factors = |time, side| SizeFactors { time, side };
    // The smaller clip, its channels, the larger one's frames and channels.
    let cases = [
        (factors(2, 2), [2, 3, 5, 8], 3, 4),
        (factors(2, 2), [2, 1, 2, 16], 4, 16),
        (factors(1, 2), [3, 4, 3, 6], 3, 3),
        (factors(2, 1), [1, 5, 2, 24], 1, 36),
        (factors(3, 3), [2, 2, 2, 9], 4, 3),
    ];
    for dtype in DTYPES {
        for (seed, (factors, [f, h, w, c], frames, channels)) in (0..).zip(cases) {
            let small = random(&[f, h, w, c], seed).to_dtype(dtype);
            let large = random(&[frames, h * factors.side, w * factors.side, channels], seed + 50).to_dtype(dtype);
            agrees(dtype, &[&small, &large], |x| add_averaged(&x[0], &x[1], factors).unwrap());
            agrees(dtype, &[&large, &small], |x| add_repeated(&x[0], &x[1], factors).unwrap());
        }
    }
}

#[test]
fn planes_of_the_device_are_the_hosts_to_the_byte() {
    let shapes: [&[usize]; 5] = [&[2, 2, 3], &[6, 10, 3], &[3, 4, 16, 3], &[2, 2, 8, 3], &[40, 64, 3]];
    for dtype in DTYPES {
        for (seed, shape) in (0..).zip(shapes) {
            // Some values lie outside of 0..=1.
            let half = Tensor::from_vec(vec![0.5; shape.iter().product()], shape).unwrap();
            let rgb = kernels::linear_combination(&[(0.6, &random(shape, seed)), (1.0, &half)]).unwrap();
            let rgb = rgb.to_dtype(dtype);
            let expected = rgb_to_yuv420(&rgb).unwrap();
            let bench = bench();
            let rgb = bench.on_device(&rgb);
            bench.each_order(|| assert_eq!(rgb_to_yuv420(&rgb).unwrap(), expected, "{dtype:?} {shape:?}"));
        }
    }
}

#[test]
fn operands_in_two_places_are_refused_and_so_is_what_a_kernel_cannot_count() {
    let bench = bench();
    let (image, flow) = (random(&[2, 2, 3], 1), random(&[2, 2, 2], 2));
    let elsewhere = backward_warp(&bench.on_device(&image), &flow).unwrap_err().to_string();
    assert!(elsewhere.contains("not all on one device"), "{elsewhere}");
    let wide = bench.on_device(&random(&[1, 1, (1 << 16) + 8], 3));
    assert!(matches!(upsample_nearest2x(&wide), Err(Error::InvalidArgument { .. })));
    assert!(rgb_to_yuv420(&bench.on_device(&random(&[3, 2, 3], 4))).is_err());
}
