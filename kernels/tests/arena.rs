//! Operations inside an arena's scope: the same bits as outside, whatever their memory held before, and all of it returned.

use kernels::{
    Activation, Arena, CausalConv3d, Dtype, PackedConv2d, PackedConvTranspose2d, PackedLinear, Padding, Result,
    RopeTable, Tensor,
};

/// Values in −1..1, the same for the same seed.
fn noise(seed: u64, shape: &[usize], dtype: Dtype) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03;
    let values = (0..shape.iter().product()).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    });
    Tensor::from_vec(values.collect(), shape).unwrap().to_dtype(dtype)
}

type Operation = Box<dyn Fn() -> Result<Tensor> + Sync>;

/// Every operation that makes a tensor, at sizes that are no multiple of a tile and large enough for the arena.
fn operations(dtype: Dtype) -> Vec<(&'static str, Operation)> {
    const F32: Dtype = Dtype::F32;
    let x = noise(1, &[147, 91], dtype);
    let clip = noise(2, &[2, 13, 17, 12], dtype);
    let picture = noise(3, &[13, 17, 12], dtype);
    let mask = noise(4, &[13, 17, 1], F32);
    let vector = |seed, n: usize| noise(seed, &[n], F32);
    let linear = PackedLinear::new(&noise(5, &[75, 91], F32), Some(&vector(6, 75)), dtype).unwrap();
    let int8 = PackedLinear::int8(&noise(5, &[75, 91], F32), Some(&vector(6, 75))).unwrap();
    let conv2d = PackedConv2d::new(&noise(7, &[21, 12, 3, 3], F32), Some(&vector(8, 21)), 1, Padding::all(1), dtype);
    let conv3d = CausalConv3d::new(&noise(9, &[21, 12, 3, 3, 3], F32), None, 1, 1, Padding::all(1), dtype);
    let transpose = PackedConvTranspose2d::new(&noise(10, &[12, 9, 4, 4], F32), Some(&vector(11, 9)), dtype);
    let (conv2d, conv3d, transpose) = (conv2d.unwrap(), conv3d.unwrap(), transpose.unwrap());
    let (q, k, v) = (noise(12, &[150, 60], dtype), noise(13, &[131, 60], dtype), noise(14, &[131, 60], dtype));
    let flow = noise(15, &[13, 17, 2], F32);
    let other = if dtype == F32 { Dtype::Bf16 } else { F32 };

    macro_rules! cases {
        ($($name:literal: [$($owned:ident),*] $call:expr;)*) => {
            vec![$({
                $(let $owned = $owned.clone();)*
                ($name, Box::new(move || $call) as Operation)
            }),*]
        };
    }
    let (w91, b91, g12) = (vector(16, 91), vector(17, 91), vector(18, 12));
    cases! {
        "linear": [x, linear] kernels::linear(&x, &linear, Activation::GeluTanh, dtype);
        "int8 linear": [x, int8] kernels::linear(&x, &int8, Activation::None, dtype);
        "linear_residual": [x, linear] {
            let mut y = Tensor::zeros(&[147, 75], F32)?;
            kernels::linear_residual(&x, &linear, None, &mut y)?;
            Ok(y)
        };
        "attention": [q, k, v] kernels::attention(&q, &k, &v, 3, 0.3, Some(129), None);
        "odd heads": [q, k, v] kernels::attention(&q, &k, &v, 4, 0.3, None, None);
        "conv2d": [picture, conv2d] kernels::conv2d(&picture, &conv2d, Activation::Silu, None);
        "causal_conv3d": [clip, conv3d] kernels::causal_conv3d(&clip, Some(&clip), &conv3d, Activation::None, None);
        "conv_transpose2d": [picture, transpose] kernels::conv_transpose2d(&picture, &transpose, Activation::None);
        "layer_norm": [x, w91, b91] kernels::layer_norm(&x, Some(&w91), Some(&b91), 1e-6, dtype);
        "layer_norm_modulate": [x, w91, b91] kernels::layer_norm_modulate(&x, &w91, &b91, 1e-6, dtype);
        "rms_norm": [x, w91] kernels::rms_norm(&x, &w91, 1e-6, dtype);
        "channel_norm_silu": [clip, g12] kernels::channel_norm_silu(&clip, &g12, true);
        "rope": [q] kernels::rope(&q, 3, &RopeTable::wan(20, [5, 6, 5])?);
        "activate": [x] Ok(kernels::activate(&x, Activation::Gelu));
        "add": [x] kernels::add(&x, &x);
        "embedding": [x] kernels::embedding(&x, &(0..50).map(|i| i * 37 % 147).collect::<Vec<_>>());
        "to_dtype": [x] Ok(x.to_dtype(other));
        "upsample_nearest2x": [clip] kernels::upsample_nearest2x(&clip);
        "resize_bilinear": [clip] kernels::resize_bilinear(&clip, 29, 23);
        "pixel_shuffle2x": [clip] kernels::pixel_shuffle2x(&clip);
        "backward_warp": [picture, flow] kernels::backward_warp(&picture, &flow);
        "blend_mask": [picture, mask] kernels::blend_mask(&picture, &picture, &mask);
        "channels_first": [clip] kernels::channels_first(&clip);
        "patchify": [clip] kernels::patchify(&clip, [2, 1, 1]);
        "concat_channels": [clip] kernels::concat_channels(&[&clip, &clip]);
        "slice_channels": [clip] kernels::slice_channels(&clip, 1, 10);
        "concat_outer": [x] Tensor::concat_outer(&[&x, &x]);
        "slice_outer": [x] x.slice_outer(3..140);
        "zeros": [] Tensor::zeros(&[100, 30], dtype);
    }
}

/// Fills the arena's free memory with what is no number in either dtype.
fn dirty(arena: &Arena) {
    let values = vec![f32::from_bits(u32::MAX); 4 << 20];
    arena.scope(|| drop(Tensor::from_f32(&values, &[values.len()]).unwrap()));
}

#[test]
fn no_result_shows_what_its_memory_held_before() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (name, operation) in operations(dtype) {
            let expected = operation().unwrap();
            let arena = Arena::new();
            dirty(&arena);
            let result = arena.scope(|| operation().unwrap());
            assert_eq!((result.shape(), result.dtype()), (expected.shape(), expected.dtype()), "{name}");
            let bits = |t: &Tensor| t.to_vec_f32().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert!(bits(&result) == bits(&expected), "{name} in {dtype:?} differs in memory that was used before");
            assert!(arena.live_bytes() > 0, "{name} does not use the arena");
            drop(result);
            assert_eq!(arena.live_bytes(), 0, "{name} keeps memory");
        }
    }
}

#[test]
fn repeating_an_operation_takes_nothing_more_from_the_system() {
    let operations = operations(Dtype::Bf16);
    let arena = Arena::new();
    let round = || operations.iter().for_each(|(_, operation)| drop(operation().unwrap()));
    // On one thread: how many tasks have scratch at a time is then the same in each round.
    let held = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| {
        [(); 4].map(|()| {
            arena.scope(round);
            (arena.growths(), arena.peak_bytes(), arena.held_bytes())
        })
    });
    assert!(held.iter().all(|after| *after == held[0]), "{held:?}");
}

#[test]
fn a_tensor_outlives_its_scope_and_writing_to_it_leaves_others_alone() {
    let arena = Arena::new();
    let kept = arena.scope(|| noise(1, &[5000], Dtype::F32).to_dtype(Dtype::Bf16));
    let before = kept.to_vec_f32();
    dirty(&arena);
    assert_eq!(kept.to_vec_f32(), before);
    drop(arena);
    assert_eq!(kept.to_vec_f32(), before);
}
