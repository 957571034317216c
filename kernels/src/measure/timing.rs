//! How long operations take on a device, beside what it can copy and multiply at most.
//!
//! Times are the device's own (events around one call), medians, with the second-level cache filled with something else
//! before each call. Inputs are random: products of zeros draw less power and run faster.

use std::sync::Arc;

use super::Inputs;
use super::dense::multiplies_fp8;
use crate::activation::Activation;
use crate::attention::attention;
use crate::conv::{
    CausalConv3d, PackedConv2d, PackedConvTranspose2d, Padding, causal_conv3d, conv_transpose2d, conv2d,
};
use crate::cuda::CudaDevice;
use crate::elementwise::{activate, add, guide, linear_combination};
use crate::error::Result;
use crate::layout::{concat_channels, patchify, slice_channels, unpatchify};
use crate::linear::{PackedLinear, linear, linear_residual};
use crate::norm::{channel_norm_silu, layer_norm, layer_norm_modulate, rms_norm};
use crate::resample::{
    SizeFactors, add_averaged, add_repeated, backward_warp, blend_mask, pixel_shuffle2x, resize_bilinear,
    upsample_nearest2x, warp_blend, yuv420_on_device,
};
use crate::rope::{RopeTable, rms_norm_rope, rope};
use crate::tensor::{Dtype, Tensor};

/// How large the operations are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// As in Wan 1.3B at 832x480 and 81 frames, and in pictures of 1920x1088.
    Full,
    /// Just enough to run everything once: for tests of the measurement itself.
    Tiny,
}

/// What an operation has to do at least, and so what bounds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// Bytes read and written, each once.
    Bytes(f64),
    /// Floating-point operations of f32; a multiply-add is two.
    F32(f64),
    /// Operations of bf16.
    Bf16(f64),
    /// Operations of int8.
    Int8(f64),
}

impl Bound {
    fn amount(self) -> f64 {
        match self {
            Self::Bytes(n) | Self::F32(n) | Self::Bf16(n) | Self::Int8(n) => n,
        }
    }
}

/// What the device reached in a plain copy and in large products, per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Bytes read and written by a copy within the device.
    pub copy: f64,
    /// Operations of an f32 product.
    pub f32: f64,
    /// Operations of a bf16 product.
    pub bf16: f64,
    /// Operations of an int8 product.
    pub int8: f64,
}

impl Ceilings {
    fn of(&self, bound: Bound) -> f64 {
        match bound {
            Bound::Bytes(_) => self.copy,
            Bound::F32(_) => self.f32,
            Bound::Bf16(_) => self.bf16,
            Bound::Int8(_) => self.int8,
        }
    }
}

/// One operation's time.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// The operation, its shape and dtype.
    pub name: String,
    /// Median of the runs, in microseconds.
    pub median_us: f64,
    /// What it had to do.
    pub bound: Bound,
    /// Its rate, in bytes or operations per second.
    pub rate: f64,
    /// The rate in parts of the ceiling.
    pub share_of_ceiling: f64,
}

/// Times the operations whose names contain `filter`, each `runs` times; `report` sees each as it is known.
pub fn timings(
    device: &CudaDevice,
    extent: Extent,
    filter: &str,
    runs: u32,
    report: impl FnMut(&Timing),
) -> Result<(Ceilings, Vec<Timing>)> {
    device.scope(|| {
        let mut timer = Timer {
            device,
            extent,
            filter,
            runs: runs.max(1) as usize,
            inputs: Inputs::new(1),
            ceilings: Ceilings { copy: 1.0, f32: 1.0, bf16: 1.0, int8: 1.0 },
            done: Vec::new(),
            report,
        };
        timer.find_ceilings()?;
        timer.products()?;
        timer.attentions()?;
        timer.rows()?;
        timer.convolutions()?;
        timer.pictures()?;
        Ok((timer.ceilings, timer.done))
    })
}

struct Timer<'a, R> {
    device: &'a CudaDevice,
    extent: Extent,
    filter: &'a str,
    runs: usize,
    inputs: Inputs,
    ceilings: Ceilings,
    done: Vec<Timing>,
    report: R,
}

impl<R: FnMut(&Timing)> Timer<'_, R> {
    /// The size of the extent.
    fn size<T>(&self, full: T, tiny: T) -> T {
        match self.extent {
            Extent::Full => full,
            Extent::Tiny => tiny,
        }
    }

    fn tensor(&mut self, shape: &[usize], dtype: Dtype) -> Result<Tensor> {
        Ok(self.inputs.tensor(shape, dtype)?.0)
    }

    fn linear(&mut self, n: usize, k: usize, dtype: Dtype) -> Result<PackedLinear> {
        PackedLinear::new(&self.tensor(&[n, k], Dtype::F32)?, None, dtype)
    }

    /// Median time of a call in nanoseconds, after one that is not counted.
    fn median_ns<T>(&self, mut run: impl FnMut() -> Result<T>) -> Result<f64> {
        run()?;
        // More than any device's second-level cache; writing it also gives the host time to queue what is timed.
        let other = self.size(64 << 20, 1 << 10);
        let mut times = Vec::with_capacity(self.runs);
        for _ in 0..self.runs {
            drop(Tensor::zeros(&[other], Dtype::F32)?);
            let (made, ns) = self.device.timed(&mut run)?;
            made?;
            times.push(ns);
        }
        times.sort_unstable();
        Ok(times[times.len() / 2].max(1) as f64)
    }

    fn case<T>(&mut self, name: &str, bound: Bound, run: impl FnMut() -> Result<T>) -> Result<()> {
        if !name.contains(self.filter) {
            return Ok(());
        }
        let ns = self.median_ns(run)?;
        let rate = bound.amount() / ns * 1e9;
        let share_of_ceiling = rate / self.ceilings.of(bound);
        let timing = Timing { name: name.to_owned(), median_us: ns / 1e3, bound, rate, share_of_ceiling };
        (self.report)(&timing);
        self.done.push(timing);
        Ok(())
    }

    fn find_ceilings(&mut self) -> Result<()> {
        const OP: &str = "copy";
        let bytes = self.size(1 << 30, 1 << 16);
        let (from, to) = (self.device.buffer(OP, bytes)?, self.device.buffer(OP, bytes)?);
        from.clear(OP)?;
        self.ceilings.copy = 2.0 * bytes as f64 / self.median_ns(|| to.copy(OP, 0, &from, 0, bytes))? * 1e9;
        drop((from, to));
        let product = |timer: &mut Self, side: usize, dtype: Dtype, int8: bool| -> Result<f64> {
            let x = timer.tensor(&[side, side], dtype)?;
            let w = match int8 {
                true => PackedLinear::int8(&timer.tensor(&[side, side], Dtype::F32)?, None)?,
                false => timer.linear(side, side, dtype)?,
            };
            let ns = timer.median_ns(|| linear(&x, &w, Activation::None, dtype))?;
            Ok(2.0 * (side as f64).powi(3) / ns * 1e9)
        };
        let (large, small) = (self.size(8192, 64), self.size(4096, 64));
        self.ceilings.bf16 = product(self, large, Dtype::Bf16, false)?;
        self.ceilings.f32 = product(self, small, Dtype::F32, false)?;
        self.ceilings.int8 = product(self, large, Dtype::Bf16, true)?;
        Ok(())
    }

    fn products(&mut self) -> Result<()> {
        let (t, d, inner) = self.size((32760, 1536, 8960), (48, 64, 128));
        for (m, n, k) in [(t, d, d), (t, inner, d), (t, d, inner)] {
            let (x, w) = (self.tensor(&[m, k], Dtype::Bf16)?, self.linear(n, k, Dtype::Bf16)?);
            let flop = 2.0 * (m * n * k) as f64;
            self.case(&format!("linear {m}x{n}x{k} bf16"), Bound::Bf16(flop), || {
                linear(&x, &w, Activation::None, Dtype::Bf16)
            })?;
            if n > d {
                self.case(&format!("linear+gelu_tanh {m}x{n}x{k} bf16"), Bound::Bf16(flop), || {
                    linear(&x, &w, Activation::GeluTanh, Dtype::Bf16)
                })?;
            } else {
                let (gate, mut residual) = (self.tensor(&[n], Dtype::F32)?, self.tensor(&[m, n], Dtype::F32)?);
                self.case(&format!("linear_residual {m}x{n}x{k} bf16"), Bound::Bf16(flop), || {
                    linear_residual(&x, &w, Some(&gate), &mut residual)
                })?;
            }
            let weight = self.tensor(&[n, k], Dtype::F32)?;
            let w = PackedLinear::int8(&weight, None)?;
            self.case(&format!("linear {m}x{n}x{k} int8"), Bound::Int8(flop), || {
                linear(&x, &w, Activation::None, Dtype::Bf16)
            })?;
            if multiplies_fp8() {
                let w = PackedLinear::fp8(&weight, None)?;
                // Tensor cores multiply both 8-bit types at one rate.
                self.case(&format!("linear {m}x{n}x{k} fp8"), Bound::Int8(flop), || {
                    linear(&x, &w, Activation::None, Dtype::Bf16)
                })?;
            }
        }
        let (x, w) = (self.tensor(&[t / 4, d], Dtype::F32)?, self.linear(d, d, Dtype::F32)?);
        let name = format!("linear {}x{d}x{d} f32", t / 4);
        self.case(&name, Bound::F32(2.0 * (t / 4 * d * d) as f64), || linear(&x, &w, Activation::None, Dtype::F32))?;
        // One row, as of a time embedding: the weight is what is read.
        let (x, w) = (self.tensor(&[1, d], Dtype::Bf16)?, self.linear(6 * d, d, Dtype::Bf16)?);
        self.case(&format!("linear 1x{}x{d} bf16", 6 * d), Bound::Bytes(12.0 * (d * d) as f64), || {
            linear(&x, &w, Activation::None, Dtype::Bf16)
        })
    }

    fn attentions(&mut self) -> Result<()> {
        let cases = self.size(
            [(32760, 32760, 12, 128), (14040, 14040, 12, 128), (32760, 512, 12, 128), (1024, 1024, 6, 64)],
            [(48, 48, 2, 128), (32, 32, 1, 128), (48, 16, 2, 128), (40, 40, 2, 64)],
        );
        for (tq, tk, heads, width) in cases {
            let q = self.tensor(&[tq, heads * width], Dtype::Bf16)?;
            let (k, v) =
                (self.tensor(&[tk, heads * width], Dtype::Bf16)?, self.tensor(&[tk, heads * width], Dtype::Bf16)?);
            let flop = 4.0 * (tq * tk * heads * width) as f64;
            let scale = 1.0 / (width as f32).sqrt();
            self.case(&format!("attention {tq}x{tk} {heads}x{width} bf16"), Bound::Bf16(flop), || {
                attention(&q, &k, &v, heads, scale, None, None)
            })?;
        }
        let (t, heads, width) = self.size((4096, 12, 128), (24, 1, 64));
        let q = self.tensor(&[t, heads * width], Dtype::F32)?;
        self.case(
            &format!("attention {t}x{t} {heads}x{width} f32"),
            Bound::F32(4.0 * (t * t * heads * width) as f64),
            || attention(&q, &q, &q, heads, 0.1, None, None),
        )
    }

    fn rows(&mut self) -> Result<()> {
        let (grid, heads, width) = self.size(([21, 30, 52], 12, 128), ([2, 3, 4], 2, 16));
        let (t, d) = (grid.iter().product::<usize>(), heads * width);
        let bytes = |each: f64| Bound::Bytes(each * (t * d) as f64);
        let (x, y) = (self.tensor(&[t, d], Dtype::F32)?, self.tensor(&[t, d], Dtype::Bf16)?);
        let (v, table) = (self.tensor(&[d], Dtype::F32)?, Arc::new(RopeTable::wan(width, grid)?));
        let size = format!("{t}x{d}");
        self.case(&format!("layer_norm_modulate {size} f32 to bf16"), bytes(6.0), || {
            layer_norm_modulate(&x, &v, &v, 1e-6, Dtype::Bf16)
        })?;
        self.case(&format!("layer_norm {size} f32 to bf16"), bytes(6.0), || {
            layer_norm(&x, Some(&v), Some(&v), 1e-6, Dtype::Bf16)
        })?;
        self.case(&format!("rms_norm {size} bf16"), bytes(4.0), || rms_norm(&y, &v, 1e-6, Dtype::Bf16))?;
        self.case(&format!("rms_norm_rope {size} bf16"), bytes(4.0), || {
            rms_norm_rope(&y, &v, 1e-6, heads, &table, Dtype::Bf16)
        })?;
        self.case(&format!("rope {size} bf16"), bytes(4.0), || rope(&y, heads, &table))?;
        self.case(&format!("add {size} bf16"), bytes(6.0), || add(&y, &y))?;
        self.case(&format!("activate silu {size} bf16"), bytes(4.0), || Ok(activate(&y, Activation::Silu)))?;
        self.case(&format!("guide {size} f32"), bytes(12.0), || guide(&x, &x, 5.0))?;
        self.case(&format!("linear_combination {size} f32, 3 terms"), bytes(16.0), || {
            linear_combination(&[(0.5, &x), (0.25, &x), (-1.0, &x)])
        })?;
        self.case(&format!("to bf16 {size}"), bytes(6.0), || Ok(x.to_dtype(Dtype::Bf16)))?;
        let [f, h, w] = grid;
        let clip = self.tensor(&[f, 2 * h, 2 * w, d / 4], Dtype::Bf16)?;
        self.case(&format!("patchify {size} bf16"), bytes(4.0), || patchify(&clip, [1, 2, 2]))?;
        self.case(&format!("unpatchify {size} bf16"), bytes(4.0), || unpatchify(&y, grid, [1, 2, 2]))?;
        self.case(&format!("concat_channels {size} twice bf16"), bytes(8.0), || concat_channels(&[&y, &y]))?;
        self.case(&format!("slice_channels {size} half bf16"), bytes(2.0), || slice_channels(&y, 0, d / 2))
    }

    fn convolutions(&mut self) -> Result<()> {
        let clips = self.size(
            [(384, 384, 4, 120, 208), (192, 192, 4, 240, 416), (96, 96, 4, 480, 832)],
            [(16, 24, 2, 5, 7), (8, 8, 1, 6, 6), (8, 3, 2, 4, 4)],
        );
        for (cin, cout, f, h, w) in clips {
            let weight = self.tensor(&[cout, cin, 3, 3, 3], Dtype::F32)?;
            let conv = CausalConv3d::new(&weight, None, 1, 1, Padding::all(1), Dtype::Bf16)?;
            let (x, cache) = (self.tensor(&[f, h, w, cin], Dtype::Bf16)?, self.tensor(&[2, h, w, cin], Dtype::Bf16)?);
            let flop = 54.0 * (f * h * w) as f64 * (cin * cout) as f64;
            self.case(&format!("causal_conv3d {cin}->{cout} {f}x{h}x{w} bf16"), Bound::Bf16(flop), || {
                causal_conv3d(&x, Some(&cache), &conv, Activation::None, None)
            })?;
            let gamma = self.tensor(&[cin], Dtype::F32)?;
            self.case(
                &format!("channel_norm_silu {f}x{h}x{w}x{cin} bf16"),
                Bound::Bytes(4.0 * x.len() as f64),
                || channel_norm_silu(&x, &gamma, true),
            )?;
        }
        let (cin, cout, h, w) = self.size((192, 96, 480, 832), (8, 8, 6, 6));
        let weight = self.tensor(&[cout, cin, 3, 3], Dtype::F32)?;
        let conv = PackedConv2d::new(&weight, None, 1, Padding::all(1), Dtype::Bf16)?;
        let x = self.tensor(&[h, w, cin], Dtype::Bf16)?;
        let flop = 18.0 * (h * w * cin) as f64 * cout as f64;
        self.case(&format!("conv2d {cin}->{cout} {h}x{w} bf16"), Bound::Bf16(flop), || {
            conv2d(&x, &conv, Activation::LeakyRelu(0.2), None)
        })?;
        let (cin, cout, h, w) = self.size((64, 52, 136, 240), (8, 12, 4, 5));
        let weight = self.tensor(&[cin, cout, 4, 4], Dtype::F32)?;
        let conv = PackedConvTranspose2d::new(&weight, None, Dtype::Bf16)?;
        let x = self.tensor(&[h, w, cin], Dtype::Bf16)?;
        let flop = 32.0 * (h * w * cin * cout) as f64;
        self.case(&format!("conv_transpose2d {cin}->{cout} {h}x{w} bf16"), Bound::Bf16(flop), || {
            conv_transpose2d(&x, &conv, Activation::None)
        })
    }

    fn pictures(&mut self) -> Result<()> {
        let (h, w) = self.size((1088, 1920), (12, 18));
        let pixels = (h * w) as f64;
        let flow = self.inputs.scaled(&[h, w, 2], Dtype::F32, 8.0)?.0;
        let mask = self.tensor(&[h, w, 1], Dtype::F32)?;
        for c in [3, 7] {
            let image = self.tensor(&[h, w, c], Dtype::F32)?;
            let bytes = |reads: usize, writes: usize| Bound::Bytes(4.0 * pixels * (reads + writes) as f64);
            self.case(&format!("backward_warp {h}x{w}x{c} f32"), bytes(c + 2, c), || backward_warp(&image, &flow))?;
            self.case(&format!("blend_mask {h}x{w}x{c} f32"), bytes(2 * c + 1, c), || {
                blend_mask(&image, &image, &mask)
            })?;
            self.case(&format!("warp_blend {h}x{w}x{c} f32"), bytes(2 * c + 5, c), || {
                warp_blend(&image, &image, &flow, &flow, &mask)
            })?;
            let half = Bound::Bytes(5.0 * pixels * c as f64);
            self.case(&format!("resize_bilinear {h}x{w}x{c} f32 /2"), half, || resize_bilinear(&image, h / 2, w / 2))?;
        }
        self.case(&format!("resize_bilinear {h}x{w}x2 f32 x2"), Bound::Bytes(40.0 * pixels), || {
            resize_bilinear(&flow, 2 * h, 2 * w)
        })?;
        let rgb = self.tensor(&[h, w, 3], Dtype::F32)?;
        self.case(&format!("rgb_to_yuv420 {h}x{w} f32"), Bound::Bytes(13.5 * pixels), || {
            yuv420_on_device(self.device, &rgb)
        })?;
        let x = self.tensor(&[h / 2, w / 2, 52], Dtype::Bf16)?;
        self.case(&format!("pixel_shuffle2x {}x{}x52 bf16", h / 2, w / 2), Bound::Bytes(4.0 * x.len() as f64), || {
            pixel_shuffle2x(&x)
        })?;
        let [f, h, w, c] = self.size([4, 240, 416, 192], [2, 4, 6, 8]);
        let clip = self.tensor(&[f, h, w, c], Dtype::Bf16)?;
        let bytes = |values: f64| Bound::Bytes(2.0 * values * (f * h * w * c) as f64);
        self.case(&format!("upsample_nearest2x {f}x{h}x{w}x{c} bf16"), bytes(5.0), || upsample_nearest2x(&clip))?;
        let factors = SizeFactors { time: 2, side: 2 };
        let small = self.tensor(&[f / 2, h / 2, w / 2, 2 * c], Dtype::Bf16)?;
        self.case(&format!("add_averaged {f}x{h}x{w}x{c} bf16"), bytes(1.5), || add_averaged(&small, &clip, factors))?;
        self.case(&format!("add_repeated {f}x{h}x{w}x{c} bf16"), bytes(2.25), || add_repeated(&clip, &small, factors))
    }
}
