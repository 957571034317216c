//! Convolution of clips that looks only backwards in time (Wan's VAE).

use super::cuda::{DeviceCall, Frames};
use super::{ConvCall, Geometry, PackedKernel, Padding, check_on_host, check_residual, check_stride, run_on_host};
use crate::activation::Activation;
use crate::error::{Result, argument_error, shape_error};
use crate::tensor::{Dtype, Tensor};

/// Weight and bias of a causal 3-D convolution, packed once at load time. It lives and runs where the weight was.
///
/// Leading taps in time that are all zero are dropped when packing: a model that was trained frame by frame and exported
/// as 3-D runs at the cost of 2-D.
#[derive(Debug, Clone)]
pub struct CausalConv3d {
    kernel: PackedKernel,
    /// Taps in time as given; the kernel may hold fewer.
    temporal_taps: usize,
    temporal_stride: usize,
}

impl CausalConv3d {
    /// Packs `weight` [cout, cin, kt, kh, kw] (torch's layout) and `bias` `[cout]`; strides are 1 or 2, `padding` is spatial.
    pub fn new(
        weight: &Tensor,
        bias: Option<&Tensor>,
        temporal_stride: usize,
        stride: usize,
        padding: Padding,
        dtype: Dtype,
    ) -> Result<Self> {
        const OP: &str = "CausalConv3d::new";
        let &[cout, cin, kt, kh, kw] = weight.shape() else {
            return shape_error(OP, format!("weight is {:?}, needs [cout, cin, kt, kh, kw]", weight.shape()));
        };
        if weight.is_empty() {
            return shape_error(OP, format!("weight {:?} is empty", weight.shape()));
        }
        check_stride(OP, stride)?;
        check_stride(OP, temporal_stride)?;
        let host = weight.to_host()?;
        let values = host.f32_values();
        let dropped = leading_zero_taps(&values, kt, kh * kw);
        let at =
            |o: usize, c: usize, [t, y, x]: [usize; 3]| values[(((o * cin + c) * kt + dropped + t) * kh + y) * kw + x];
        let geometry = Geometry { taps: [kt - dropped, kh, kw], cin, cout, stride, padding };
        let kernel = PackedKernel::pack(OP, weight, bias, geometry, dtype, at)?;
        Ok(Self { kernel, temporal_taps: kt, temporal_stride })
    }

    /// Earlier input frames that a full history has: taps in time minus one.
    pub fn history(&self) -> usize {
        self.temporal_taps - 1
    }

    /// True when only the newest frame counts, so each frame is an independent picture.
    pub fn is_per_frame(&self) -> bool {
        self.kernel.geometry().taps[0] == 1
    }
}

/// Leading planes in time that are zero in every kernel; the last one always stays.
fn leading_zero_taps(values: &[f32], kt: usize, plane: usize) -> usize {
    let is_zero = |t: usize| {
        let planes = values.chunks_exact(plane).skip(t).step_by(kt);
        planes.flatten().all(|&v| v == 0.0)
    };
    (0..kt - 1).take_while(|&t| is_zero(t)).count()
}

/// `activation(conv(cache ++ x) + bias + residual)`: x [f, h, w, cin] → [f', h', w', cout] of x's dtype.
///
/// `cache` [p, h, w, cin] holds the p ≤ kt − 1 input frames before x. With temporal stride 1 missing frames are zeros, so
/// f' = f. With temporal stride 2 nothing is filled in (Wan's downsample3d gives exactly one cached frame):
/// f' = (p + f − kt) / 2 + 1.
pub fn causal_conv3d(
    x: &Tensor,
    cache: Option<&Tensor>,
    weight: &CausalConv3d,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    const OP: &str = "causal_conv3d";
    let geometry = weight.kernel.geometry();
    let [f, h, w] = match *x.shape() {
        [f, h, w, c] if c == geometry.cin && !x.is_empty() => [f, h, w],
        _ => return shape_error(OP, format!("x is {:?}, needs [f, h, w, {}]", x.shape(), geometry.cin)),
    };
    let cached = check_cache(x, cache, weight)?;
    let (out_h, out_w) = geometry.output_size(OP, h, w)?;
    let timing = Timing::new(weight, cached, f)?;
    let shape = [timing.frames, out_h, out_w, geometry.cout];
    check_residual(OP, residual, &shape)?;
    let (source, output) = ([h, w], [out_h, out_w]);
    match &weight.kernel {
        PackedKernel::Host(kernel) => {
            check_on_host(OP, &[Some(x), cache, residual])?;
            let joined = match cache {
                Some(cache) if !weight.is_per_frame() && cached > 0 => &Tensor::concat_outer(&[cache, x])?,
                _ => x,
            };
            let frames = timing.source_frames(geometry.taps[0], if weight.is_per_frame() { cached } else { 0 });
            let call = ConvCall { kernel, source, output, frames, activation };
            Ok(run_on_host(&call, joined, residual, &shape))
        }
        PackedKernel::Cuda(kernel) => {
            let frames = Frames { cache, count: timing.frames, first: timing.first, stride: timing.stride };
            let call = DeviceCall { x, source, output, frames, residual, activation };
            kernel.run(OP, &call, &shape)
        }
    }
}

fn check_cache(x: &Tensor, cache: Option<&Tensor>, weight: &CausalConv3d) -> Result<usize> {
    const OP: &str = "causal_conv3d";
    let Some(cache) = cache else { return Ok(0) };
    if cache.shape().len() != 4 || cache.shape()[1..] != x.shape()[1..] {
        return shape_error(OP, format!("cache {:?} and x {:?} do not fit", cache.shape(), x.shape()));
    }
    let cached = cache.shape()[0];
    if cached > weight.history() {
        return argument_error(OP, format!("{cached} cached frames, the kernel looks back {}", weight.history()));
    }
    Ok(cached)
}

/// Which frames of cache ++ x the output frames read: tap t (of those packed) of frame o reads o·stride + first + t, where
/// frames below 0 are zeros.
struct Timing {
    frames: usize,
    first: isize,
    stride: usize,
}

impl Timing {
    fn new(weight: &CausalConv3d, cached: usize, f: usize) -> Result<Self> {
        let (kt, stride) = (weight.temporal_taps, weight.temporal_stride);
        let filled = if stride == 1 { kt - 1 - cached } else { 0 };
        let total = filled + cached + f;
        if f == 0 || total < kt {
            let seen = cached + f;
            return shape_error("causal_conv3d", format!("{seen} frames are fewer than the {kt} taps in time"));
        }
        let skipped = kt - weight.kernel.geometry().taps[0];
        Ok(Self { frames: (total - kt) / stride + 1, first: skipped as isize - filled as isize, stride })
    }

    /// Per output frame, the input frames under the kernel's taps, counted without the `before` first ones: a per-frame
    /// kernel never reads the cache, so it gets x alone.
    fn source_frames(&self, taps: usize, before: usize) -> Vec<Vec<Option<usize>>> {
        let source = |frame: usize| frame.checked_add_signed(self.first)?.checked_sub(before);
        (0..self.frames).map(|o| (o * self.stride..o * self.stride + taps).map(source).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_f32(values, shape).unwrap()
    }

    fn temporal(taps: &[f32], temporal_stride: usize) -> CausalConv3d {
        let weight = tensor(taps, &[1, 1, taps.len(), 1, 1]);
        CausalConv3d::new(&weight, None, temporal_stride, 1, Padding::default(), Dtype::F32).unwrap()
    }

    fn run(x: &[f32], cache: &[f32], weight: &CausalConv3d) -> Result<Vec<f32>> {
        let x = tensor(x, &[x.len(), 1, 1, 1]);
        let cache = (!cache.is_empty()).then(|| tensor(cache, &[cache.len(), 1, 1, 1]));
        Ok(causal_conv3d(&x, cache.as_ref(), weight, Activation::None, None)?.to_vec_f32())
    }

    #[test]
    fn missing_history_is_zero_and_chunks_with_a_cache_equal_one_run() {
        let weight = temporal(&[100.0, 10.0, 1.0], 1);
        let whole = run(&[1.0, 2.0, 3.0, 4.0], &[], &weight).unwrap();
        assert_eq!(whole, vec![1.0, 12.0, 123.0, 234.0]);
        assert_eq!(run(&[2.0], &[1.0], &weight).unwrap(), whole[1..2]);
        assert_eq!(run(&[3.0, 4.0], &[1.0, 2.0], &weight).unwrap(), whole[2..]);
    }

    #[test]
    fn temporal_stride_two_takes_one_cached_frame_and_pads_nothing() {
        let weight = temporal(&[100.0, 10.0, 1.0], 2);
        assert_eq!(run(&[2.0, 3.0, 4.0, 5.0], &[1.0], &weight).unwrap(), vec![123.0, 345.0]);
        assert!(run(&[2.0], &[1.0], &weight).is_err());
    }

    #[test]
    fn leading_zero_taps_are_dropped_and_change_nothing() {
        let per_frame = temporal(&[0.0, 0.0, 2.0], 1);
        assert!(per_frame.is_per_frame());
        assert_eq!(per_frame.history(), 2);
        assert_eq!(run(&[1.0, 2.0], &[9.0, 9.0], &per_frame).unwrap(), vec![2.0, 4.0]);
        let two_taps = temporal(&[0.0, 10.0, 1.0], 1);
        assert!(!two_taps.is_per_frame());
        assert_eq!(run(&[2.0, 3.0], &[7.0, 1.0], &two_taps).unwrap(), vec![12.0, 23.0]);
        assert_eq!(run(&[2.0, 3.0], &[], &two_taps).unwrap(), vec![2.0, 23.0]);
        let down = temporal(&[0.0, 0.0, 1.0], 2);
        assert_eq!(run(&[2.0, 3.0, 4.0, 5.0], &[1.0], &down).unwrap(), vec![3.0, 5.0]);
    }

    #[test]
    fn a_cache_longer_than_the_history_is_refused() {
        assert!(run(&[1.0], &[1.0, 2.0, 3.0], &temporal(&[1.0, 1.0, 1.0], 1)).is_err());
    }
}
