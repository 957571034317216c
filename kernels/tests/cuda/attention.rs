use crate::support::{Bench, assert_close, bench, random};
use kernels::{CudaDevice, Dtype, Tensor, attention};

/// One call, with its tensors in host memory.
struct Case {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: usize,
    scale: f32,
    key_len: Option<usize>,
    bias: Option<Tensor>,
}

impl Case {
    /// `queries` and `keys` random tokens of `heads` heads.
    fn new(queries: usize, keys: usize, heads: usize, head_dim: usize, dtype: Dtype) -> Self {
        let tokens = |count, seed| random(&[count, heads * head_dim], seed).to_dtype(dtype);
        let (q, k, v) = (tokens(queries, 1), tokens(keys, 2), tokens(keys, 3));
        Self { q, k, v, heads, scale: 1.0 / (head_dim as f32).sqrt(), key_len: None, bias: None }
    }

    /// Masks keys from `key_len` on, whose rows then hold what no one may read.
    fn masked(mut self, key_len: usize) -> Self {
        let spoil = |x: &Tensor| {
            let mut values = x.to_vec_f32();
            values[key_len * x.shape()[1]..].fill(f32::NAN);
            Tensor::from_f32(&values, x.shape()).unwrap().to_dtype(x.dtype())
        };
        (self.k, self.v) = (spoil(&self.k), spoil(&self.v));
        self.key_len = Some(key_len);
        self
    }

    fn biased(mut self) -> Self {
        let shape = [self.heads, self.q.shape()[0], self.k.shape()[0]];
        let values: Vec<f32> = random(&shape, 4).to_vec_f32().iter().map(|v| 3.0 * v).collect();
        self.bias = Some(Tensor::from_f32(&values, &shape).unwrap());
        self
    }

    fn scaled(self, scale: f32) -> Self {
        Self { scale, ..self }
    }

    fn on_host(&self) -> Tensor {
        attention(&self.q, &self.k, &self.v, self.heads, self.scale, self.key_len, self.bias.as_ref()).unwrap()
    }

    fn on(&self, device: &CudaDevice) -> Tensor {
        let there = |x: &Tensor| x.to_device(device).unwrap();
        let bias = self.bias.as_ref().map(there);
        let (q, k, v) = (there(&self.q), there(&self.k), there(&self.v));
        attention(&q, &k, &v, self.heads, self.scale, self.key_len, bias.as_ref()).unwrap().to_host().unwrap()
    }
}

/// Another handle to the stand-in's device, which took it for one before Hopper when it was opened.
fn older(bench: &Bench) -> CudaDevice {
    let (before, after) = ((8, 0), bench.device.info().capability);
    bench.standin.capability(0, before);
    let older = CudaDevice::open(0).unwrap();
    bench.standin.capability(0, after);
    older
}

/// Whether `work` runs the kernel at all.
fn runs(bench: &Bench, kernel: &str, work: impl FnOnce()) -> bool {
    let launches = || bench.standin.launches(kernel).unwrap_or_else(|| panic!("there is no kernel {kernel}"));
    let before = launches();
    work();
    launches() > before
}

/// The kernel runs, under each order of the threads, and computes what the host does.
#[track_caller]
fn assert_equal_by(bench: &Bench, device: &CudaDevice, kernel: &str, case: &Case) {
    let host = case.on_host();
    bench.each_order(|| {
        let mut made = None;
        assert!(runs(bench, kernel, || made = Some(case.on(device))), "{kernel} did not run");
        assert_close(&made.unwrap(), &host, case.q.dtype());
    });
}

#[test]
fn attention_on_tensor_cores_equals_the_reference_at_every_width_of_heads() {
    let bench = bench();
    let older = older(&bench);
    let case = |queries, keys, heads, head_dim| Case::new(queries, keys, heads, head_dim, Dtype::Bf16);
    let by = |kernel: &str, case: Case| assert_equal_by(&bench, &older, kernel, &case);
    by("attention_mma_32_bf16", case(5, 9, 3, 6));
    by("attention_mma_32_bf16", case(130, 70, 2, 20).masked(65));
    by("attention_mma_64_bf16", case(40, 100, 1, 33).masked(77));
    by("attention_mma_64_bf16", case(140, 129, 1, 64));
    by("attention_mma_80_bf16", case(33, 40, 2, 80));
    by("attention_mma_96_bf16", case(20, 70, 1, 96).masked(64));
    by("attention_mma_128_bf16", case(129, 100, 2, 128).masked(97));
    by("attention_mma_192_bf16", case(30, 70, 1, 160).masked(33));
    by("attention_mma_256_bf16", case(70, 40, 1, 256));
}

#[test]
fn attention_with_a_bias_equals_the_reference_at_every_width_of_heads() {
    let bench = bench();
    let case = |queries, keys, heads, head_dim| Case::new(queries, keys, heads, head_dim, Dtype::Bf16).biased();
    let by = |kernel: &str, case: Case| assert_equal_by(&bench, &bench.device, kernel, &case);
    by("attention_mma_32_biased_bf16", case(20, 70, 3, 7).masked(65));
    by("attention_mma_64_biased_bf16", case(77, 77, 2, 64));
    by("attention_mma_80_biased_bf16", case(9, 33, 1, 80).masked(32));
    by("attention_mma_96_biased_bf16", case(20, 40, 1, 88));
    by("attention_mma_128_biased_bf16", case(40, 65, 1, 128).masked(64));
    by("attention_mma_192_biased_bf16", case(17, 40, 1, 192).masked(39));
    by("attention_mma_256_biased_bf16", case(17, 33, 1, 255));
    by("attention_fma_bf16", case(20, 70, 1, 300).masked(65));
}

#[test]
fn attention_in_f32_and_of_wide_heads_equals_the_reference() {
    let bench = bench();
    for case in [
        Case::new(70, 130, 2, 33, Dtype::F32).masked(129),
        Case::new(1, 1, 1, 1, Dtype::F32),
        Case::new(33, 70, 1, 130, Dtype::F32).biased(),
        Case::new(10, 65, 2, 64, Dtype::F32).scaled(40.0),
    ] {
        assert_equal_by(&bench, &bench.device, "attention_fma_f32", &case);
    }
    assert_equal_by(&bench, &bench.device, "attention_fma_bf16", &Case::new(20, 70, 1, 384, Dtype::Bf16).masked(66));
}

#[test]
fn attention_on_hopper_equals_the_reference_at_odd_shapes() {
    let bench = bench();
    let by = |kernel: &str, case: Case| assert_equal_by(&bench, &bench.device, kernel, &case);
    let case = |queries, keys, heads, head_dim| Case::new(queries, keys, heads, head_dim, Dtype::Bf16);
    by("attention_hopper_128_bf16", case(1, 1, 1, 128));
    by("attention_hopper_128_bf16", case(130, 300, 2, 128).masked(257));
    // As many tiles of keys as the two buffers hold, one more, and enough to use each a third time.
    by("attention_hopper_128_bf16", case(65, 256, 1, 128));
    by("attention_hopper_128_bf16", case(20, 700, 1, 128).masked(640));
    by("attention_hopper_64_bf16", case(7, 5, 3, 64).masked(3));
    by("attention_hopper_64_bf16", case(200, 500, 1, 64));
}

#[test]
fn the_device_s_capability_and_the_call_decide_on_the_kernel() {
    let bench = bench();
    let older = older(&bench);
    let case = || Case::new(5, 9, 2, 128, Dtype::Bf16);
    let hopper = |device: &CudaDevice, case: Case| runs(&bench, "attention_hopper_128_bf16", || drop(case.on(device)));
    assert_eq!((bench.device.info().capability, older.info().capability), ((9, 0), (8, 0)));
    assert!(hopper(&bench.device, case()));
    assert!(!hopper(&older, case()));
    assert!(!hopper(&bench.device, case().biased()));
    assert!(!hopper(&bench.device, case().scaled(-0.1)));
    assert!(!hopper(&bench.device, Case::new(5, 9, 2, 128, Dtype::F32)));
}

#[test]
fn large_and_reversed_and_equal_scores_are_softened_as_the_reference_does() {
    let bench = bench();
    let older = older(&bench);
    for (scale, dtype) in
        [(60.0, Dtype::Bf16), (-3.0, Dtype::Bf16), (0.0, Dtype::Bf16), (-60.0, Dtype::F32), (0.0, Dtype::F32)]
    {
        let case = Case::new(20, 150, 2, 64, dtype).scaled(scale);
        let host = case.on_host();
        assert_close(&case.on(&bench.device), &host, dtype);
        assert_close(&case.on(&older), &host, dtype);
    }
}

#[test]
fn a_bias_of_minus_infinity_hides_keys_even_where_a_whole_tile_is_hidden() {
    let bench = bench();
    for dtype in [Dtype::Bf16, Dtype::F32] {
        let mut case = Case::new(9, 150, 1, 64, dtype);
        let hidden = |i: usize| if (5..150).contains(&(i % 150)) { f32::NEG_INFINITY } else { 0.0 };
        let values: Vec<f32> = (0..9 * 150).map(hidden).collect();
        case.bias = Some(Tensor::from_f32(&values, &[1, 9, 150]).unwrap());
        assert_close(&case.on(&bench.device), &case.on_host(), dtype);
    }
}

#[test]
fn a_query_that_is_not_finite_spoils_its_own_row_alone() {
    let bench = bench();
    let older = older(&bench);
    for (dtype, head_dim) in [(Dtype::Bf16, 64), (Dtype::Bf16, 33), (Dtype::F32, 20), (Dtype::Bf16, 300)] {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut case = Case::new(20, 40, 1, head_dim, dtype);
            let mut values = case.q.to_vec_f32();
            values[7 * head_dim + 3] = bad;
            let right = case.on_host().to_vec_f32();
            case.q = Tensor::from_f32(&values, case.q.shape()).unwrap().to_dtype(dtype);
            for device in [&bench.device, &older] {
                let made = case.on(device).to_vec_f32();
                for (row, (made, right)) in made.chunks(head_dim).zip(right.chunks(head_dim)).enumerate() {
                    let close = made.iter().zip(right).all(|(m, r)| (m - r).abs() <= 0.02);
                    assert_eq!(close, row != 7, "row {row}, {dtype:?}, {head_dim}");
                }
            }
        }
    }
}

#[test]
fn tensors_of_two_places_are_refused() {
    let bench = bench();
    let case = Case::new(5, 9, 2, 32, Dtype::Bf16);
    let there = bench.on_device(&case.q);
    let error = attention(&there, &case.k, &case.v, 2, 1.0, None, None).unwrap_err();
    assert!(error.to_string().contains("not all on one device"), "{error}");
}
