//! Speed of each operation at the shapes of our models, beside the machine's measured peak.
//!
//! `cargo bench -p kernels [-- FILTER]` prints for every case the median wall time, the least processor time of the whole
//! process, the rate by processor time, and its share of one core's measured peak (multiplication rate for arithmetic,
//! bandwidth for copies); for arithmetic also the share of the peak with operands from the first-level cache. Processor time does not count what other processes took, and the least of many runs is the one
//! that lost least of its caches to them: the figure to trust on a shared machine.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]
#![allow(unsafe_code, reason = "processor time and the peak probe use raw calls")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use kernels::peak::{self, MultiplyRates};
use kernels::{
    Activation, CausalConv3d, Dtype, PackedConv2d, PackedConvTranspose2d, PackedLinear, Padding, RopeTable, Tensor,
};

/// Seconds of processor time that this process has used on all threads.
fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a valid timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// What a case moves or multiplies, to relate its time to a peak.
#[derive(Clone, Copy)]
enum Work {
    /// Floating-point operations, with the dtype of the multiplications.
    Flop(f64, Dtype),
    /// Integer operations of int8 products.
    Int8(f64),
    /// Bytes read and written, each counted once.
    Bytes(f64),
}

struct Bench {
    filter: String,
    peak: MultiplyRates,
    peak_from_cache: MultiplyRates,
    peak_bytes: f64,
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        name.contains(&self.filter)
    }

    fn wants_linear(&self, shape: &str) -> bool {
        ["linear", "linear+gelu_tanh", "linear_residual"].iter().any(|kind| self.wants(&format!("{kind} {shape}")))
    }

    fn case<R>(&self, name: &str, work: Work, mut run: impl FnMut() -> R) {
        if !self.wants(name) {
            return;
        }
        black_box(run());
        let (mut wall, mut processor) = (Vec::new(), Vec::new());
        let started = Instant::now();
        while wall.len() < 5 || (started.elapsed() < Duration::from_millis(400) && wall.len() < 400) {
            let (begin, used) = (Instant::now(), processor_seconds());
            black_box(run());
            processor.push(processor_seconds() - used);
            wall.push(begin.elapsed().as_secs_f64());
        }
        wall.sort_by(f64::total_cmp);
        processor.sort_by(f64::total_cmp);
        let (wall_ms, cpu) = (wall[wall.len() / 2] * 1e3, processor[0]);
        let (amount, rate_of, unit): (f64, fn(&MultiplyRates) -> f64, &str) = match work {
            Work::Flop(flop, Dtype::F32) => (flop, |peak| peak.f32, "GFLOP/s"),
            Work::Flop(flop, Dtype::Bf16) => (flop, |peak| peak.bf16, "GFLOP/s"),
            Work::Int8(operations) => (operations, |peak| peak.int8, "GOP/s"),
            Work::Bytes(bytes) => (bytes, |_| f64::NAN, "GB/s"),
        };
        let rate = amount / cpu;
        let shares = match work {
            Work::Bytes(_) => format!("{:>5.1} %", 100.0 * rate / self.peak_bytes),
            _ => {
                let share = |peak| 100.0 * rate / rate_of(peak);
                format!("{:>5.1} % {:>8.1} %", share(&self.peak), share(&self.peak_from_cache))
            }
        };
        println!("{name:<44} {wall_ms:>9.3} ms {:>9.3} ms {:>8.1} {unit:<7} {shares}", cpu * 1e3, rate / 1e9);
    }
}

/// Runs the cases from within a thread pool and an arena, as whoever owns a device does.
fn main() {
    let pool = rayon::ThreadPoolBuilder::new().build().expect("threads");
    pool.install(|| kernels::Arena::new().scope(run));
}

fn run() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let (peak, peak_from_cache) = (peak::multiply_rates(), peak::multiply_rates_from_cache());
    let bench = Bench { filter, peak, peak_from_cache, peak_bytes: peak::copy_rate() };
    println!("level {:?}, {} threads; peaks of one core:", kernels::simd::level(), rayon::current_num_threads());
    for (operands, rates) in [("registers", peak), ("first-level cache", peak_from_cache)] {
        let [f32, bf16, int8] = [rates.f32, rates.bf16, rates.int8].map(|rate| rate / 1e9);
        println!("operands from {operands}: f32 {f32:.0} GFLOP/s, bf16 {bf16:.0} GFLOP/s, int8 {int8:.0} GOP/s");
    }
    println!("copy {:.1} GB/s", bench.peak_bytes / 1e9);
    println!("{:<44} {:>12} {:>12} {:>16} {:>7} {:>10}", "case", "wall", "processor", "rate", "peak", "from cache");
    linear(&bench);
    attention(&bench);
    rows(&bench);
    convolutions(&bench);
    pictures(&bench);
    dit_block(&bench);
}

fn noise(shape: &[usize], dtype: Dtype) -> Tensor {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let values = (0..shape.iter().product()).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    });
    // A copy, in the arena's memory.
    Tensor::from_f32(&values.collect::<Vec<f32>>(), shape).expect("a valid shape").to_dtype(dtype)
}

fn packed(n: usize, k: usize, dtype: Dtype) -> PackedLinear {
    PackedLinear::new(&noise(&[n, k], Dtype::F32), Some(&noise(&[n], Dtype::F32)), dtype).expect("a valid weight")
}

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

fn linear(bench: &Bench) {
    // The default model's layers, then Wan-1.3B's, then what is not a multiple of anything.
    let shapes = [
        (1024, 384, 384),
        (1024, 1536, 384),
        (1024, 384, 1536),
        (64, 384, 384),
        (1, 2304, 384),
        (16, 2304, 384),
        (1024, 1536, 1536),
        (1024, 8960, 1536),
        (1024, 1536, 8960),
        (1, 9216, 1536),
        (1021, 97, 100),
    ];
    for (m, n, k) in shapes {
        for dtype in DTYPES {
            let name = format!("{m}x{n}x{k} {dtype:?}");
            if bench.wants_linear(&name) {
                let (x, w) = (noise(&[m, k], dtype), packed(n, k, dtype));
                linear_cases(bench, &name, &x, &w, |flop| Work::Flop(flop, dtype));
            }
        }
        let name = format!("{m}x{n}x{k} Int8");
        if bench.wants_linear(&name) {
            let w = PackedLinear::int8(&noise(&[n, k], Dtype::F32), Some(&noise(&[n], Dtype::F32)));
            linear_cases(bench, &name, &noise(&[m, k], Dtype::Bf16), &w.expect("a valid weight"), Work::Int8);
        }
    }
}

/// The plain product, and the fused one that a layer of its shape has in a transformer.
fn linear_cases(bench: &Bench, name: &str, x: &Tensor, w: &PackedLinear, work: impl Fn(f64) -> Work) {
    let (m, n, k) = (x.shape()[0], w.n(), w.k());
    let work = work(2.0 * (m * n * k) as f64);
    let out = x.dtype();
    bench.case(&format!("linear {name}"), work, || kernels::linear(x, w, Activation::None, out));
    if m > 512 && n > k {
        bench.case(&format!("linear+gelu_tanh {name}"), work, || kernels::linear(x, w, Activation::GeluTanh, out));
    }
    if m > 512 && n <= k {
        let (gate, mut residual) = (noise(&[n], Dtype::F32), noise(&[m, n], Dtype::F32));
        bench.case(&format!("linear_residual {name}"), work, || {
            kernels::linear_residual(x, w, Some(&gate), &mut residual)
        });
    }
}

fn attention(bench: &Bench) {
    // The sample model's, Wan's at 480p (of its twelve heads two, which is enough to fill the caches), text and image keys.
    let cases = [
        (1024, 1024, 6, 64),
        (512, 512, 6, 64),
        (512, 64, 6, 64),
        (4096, 4096, 2, 128),
        (14040, 14040, 2, 128),
        (32760, 32760, 1, 128),
        (4096, 512, 12, 128),
        (4096, 257, 12, 128),
    ];
    for (tq, tk, heads, hd) in cases {
        for dtype in DTYPES {
            if dtype == Dtype::F32 && tk > 4096 {
                continue;
            }
            let (q, k) = (noise(&[tq, heads * hd], dtype), noise(&[tk, heads * hd], dtype));
            let work = Work::Flop(4.0 * (tq * tk * heads * hd) as f64, dtype);
            bench.case(&format!("attention {tq}x{tk} {heads}x{hd} {dtype:?}"), work, || {
                kernels::attention(&q, &k, &k, heads, 0.125, None, None)
            });
        }
    }
}

fn rows(bench: &Bench) {
    let (t, d) = (1024, 384);
    for dtype in DTYPES {
        let x = noise(&[t, d], Dtype::F32);
        let y = x.to_dtype(dtype);
        let v = noise(&[d], Dtype::F32);
        let table = RopeTable::wan(64, [8, 8, 16]).expect("a valid grid");
        let size = dtype.size_bytes() as f64;
        let count = (t * d) as f64;
        bench.case(&format!("layer_norm_modulate {t}x{d} -> {dtype:?}"), Work::Bytes(count * (4.0 + size)), || {
            kernels::layer_norm_modulate(&x, &v, &v, 1e-6, dtype)
        });
        bench.case(&format!("rms_norm {t}x{d} {dtype:?}"), Work::Bytes(count * 2.0 * size), || {
            kernels::rms_norm(&y, &v, 1e-6, dtype)
        });
        bench
            .case(&format!("rope {t}x{d} {dtype:?}"), Work::Bytes(count * 2.0 * size), || kernels::rope(&y, 6, &table));
        bench.case(&format!("rms_norm_rope {t}x{d} {dtype:?}"), Work::Bytes(count * 2.0 * size), || {
            kernels::rms_norm_rope(&y, &v, 1e-6, 6, &table, dtype)
        });
        let clip = noise(&[1, 128, 128, 96], dtype);
        let gamma = noise(&[96], Dtype::F32);
        bench.case(
            &format!("channel_norm_silu 128x128x96 {dtype:?}"),
            Work::Bytes(clip.len() as f64 * 2.0 * size),
            || kernels::channel_norm_silu(&clip, &gamma, true),
        );
        bench.case(
            &format!("elementwise silu 128x128x96 {dtype:?}"),
            Work::Bytes(clip.len() as f64 * 2.0 * size),
            || kernels::activate(&clip, Activation::Silu),
        );
        bench.case(
            &format!("elementwise guide 128x128x96 {dtype:?}"),
            Work::Bytes(clip.len() as f64 * 3.0 * size),
            || kernels::guide(&clip, &clip, 5.0),
        );
    }
}

fn convolutions(bench: &Bench) {
    // VAE decoder widths at the sizes they have for a 128² picture, then IFNet's at 640x272.
    let cases = [
        (64, 64, 128, 128, 1),
        (16, 96, 16, 16, 1),
        (96, 96, 16, 16, 1),
        (96, 96, 32, 32, 1),
        (48, 48, 64, 64, 1),
        (24, 24, 128, 128, 1),
        (24, 3, 128, 128, 1),
        (3, 16, 272, 640, 2),
        (16, 16, 136, 320, 1),
        (28, 32, 272, 640, 2),
        (32, 32, 68, 160, 1),
        (64, 64, 68, 160, 1),
    ];
    for (cin, cout, h, w, stride) in cases {
        for dtype in DTYPES {
            let weight = noise(&[cout, cin, 3, 3], Dtype::F32);
            let conv = PackedConv2d::new(&weight, None, stride, Padding::all(1), dtype).expect("a valid kernel");
            let x = noise(&[h, w, cin], dtype);
            let flop = 18.0 * (h * w * cin * cout) as f64 / (stride * stride) as f64;
            let name = format!("conv2d {cin}->{cout} {h}x{w} /{stride} {dtype:?}");
            bench.case(&name, Work::Flop(flop, dtype), || kernels::conv2d(&x, &conv, Activation::LeakyRelu(0.2), None));
        }
    }
    for dtype in DTYPES {
        let weight = noise(&[48, 48, 3, 3, 3], Dtype::F32);
        let conv = CausalConv3d::new(&weight, None, 1, 1, Padding::all(1), dtype).expect("a valid kernel");
        let (x, cache) = (noise(&[4, 64, 64, 48], dtype), noise(&[2, 64, 64, 48], dtype));
        let flop = 54.0 * (4 * 64 * 64 * 48 * 48) as f64;
        bench.case(&format!("causal_conv3d 48->48 4x64x64 {dtype:?}"), Work::Flop(flop, dtype), || {
            kernels::causal_conv3d(&x, Some(&cache), &conv, Activation::None, None)
        });
        for (cin, cout, h, w) in [(64, 52, 34, 80), (16, 4, 136, 320)] {
            let deconv = PackedConvTranspose2d::new(&noise(&[cin, cout, 4, 4], Dtype::F32), None, dtype);
            let deconv = deconv.expect("a valid kernel");
            let x = noise(&[h, w, cin], dtype);
            let flop = 32.0 * (h * w * cin * cout) as f64;
            bench.case(&format!("conv_transpose2d {cin}->{cout} {h}x{w} {dtype:?}"), Work::Flop(flop, dtype), || {
                kernels::conv_transpose2d(&x, &deconv, Activation::None)
            });
        }
    }
}

fn pictures(bench: &Bench) {
    let (h, w) = (272, 640);
    let flow = noise(&[h, w, 2], Dtype::F32);
    for c in [3, 8, 64] {
        let image = noise(&[h, w, c], Dtype::F32);
        let bytes = (h * w * (2 * c + 2) * 4) as f64;
        bench.case(&format!("backward_warp {h}x{w}x{c}"), Work::Bytes(bytes), || kernels::backward_warp(&image, &flow));
    }
    let image = noise(&[h, w, 8], Dtype::F32);
    let bytes = image.len() as f64 * 4.0;
    bench.case("resize_bilinear 272x640x8 /2", Work::Bytes(bytes * 1.25), || {
        kernels::resize_bilinear(&image, h / 2, w / 2)
    });
    bench.case("resize_bilinear 272x640x8 x2", Work::Bytes(bytes * 5.0), || {
        kernels::resize_bilinear(&image, h * 2, w * 2)
    });
    bench.case("pixel_shuffle2x 272x640x8", Work::Bytes(bytes * 2.0), || kernels::pixel_shuffle2x(&image));
    bench.case("upsample_nearest2x 272x640x8", Work::Bytes(bytes * 5.0), || kernels::upsample_nearest2x(&image));
    let (mask, rgb) = (noise(&[h, w, 1], Dtype::F32), noise(&[h, w, 3], Dtype::F32));
    bench.case("blend_mask 272x640x3", Work::Bytes((h * w * 10 * 4) as f64), || kernels::blend_mask(&rgb, &rgb, &mask));
    bench.case("concat_channels 272x640x(8+3)", Work::Bytes((h * w * 22 * 4) as f64), || {
        kernels::concat_channels(&[&image, &rgb])
    });
}

/// One transformer block of the default model's shape, as the video model runs it.
fn dit_block(bench: &Bench) {
    let (t, s, d, ffn, heads) = (1024, 64, 384, 1536, 6);
    for dtype in DTYPES {
        let square = || packed(d, d, dtype);
        let (q, k, v, o) = (square(), square(), square(), square());
        let (cq, ck, cv, co) = (square(), square(), square(), square());
        let (up, down) = (packed(ffn, d, dtype), packed(d, ffn, dtype));
        let (x, text, vector) = (noise(&[t, d], Dtype::F32), noise(&[s, d], dtype), noise(&[d], Dtype::F32));
        let table = RopeTable::wan(d / heads, [8, 8, 16]).expect("a valid grid");
        let block = || -> kernels::Result<Tensor> {
            let mut x = x.clone();
            let h = kernels::layer_norm_modulate(&x, &vector, &vector, 1e-6, dtype)?;
            let project = |h: &Tensor, w: &PackedLinear| kernels::linear(h, w, Activation::None, dtype);
            let normed = |h: &Tensor, w: &PackedLinear| kernels::rms_norm(&project(h, w)?, &vector, 1e-6, dtype);
            let rotated = |h: &Tensor, w: &PackedLinear| {
                kernels::rms_norm_rope(&project(h, w)?, &vector, 1e-6, heads, &table, dtype)
            };
            let a =
                kernels::attention(&rotated(&h, &q)?, &rotated(&h, &k)?, &project(&h, &v)?, heads, 0.125, None, None)?;
            kernels::linear_residual(&a, &o, Some(&vector), &mut x)?;
            let h = kernels::layer_norm(&x, Some(&vector), Some(&vector), 1e-6, dtype)?;
            let a = kernels::attention(
                &normed(&h, &cq)?,
                &normed(&text, &ck)?,
                &project(&text, &cv)?,
                heads,
                0.125,
                None,
                None,
            )?;
            kernels::linear_residual(&a, &co, None, &mut x)?;
            let h = kernels::layer_norm_modulate(&x, &vector, &vector, 1e-6, dtype)?;
            let h = kernels::linear(&h, &up, Activation::GeluTanh, dtype)?;
            kernels::linear_residual(&h, &down, Some(&vector), &mut x)?;
            Ok(x)
        };
        let products = t * (6 * d * d + 2 * d * ffn) + 2 * s * d * d;
        let flop = 2.0 * products as f64 + 4.0 * (t * (t + s) * d) as f64;
        bench.case(&format!("dit_block {t} tokens x{d} {dtype:?}"), Work::Flop(flop, dtype), block);
    }
}
