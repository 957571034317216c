//! Zoetrope's compute library: the operations of video diffusion and frame interpolation, grouped by operation.
//!
//! Every operation is one safe function that checks its shapes and returns a typed [`Error`]; behind it stand a plain
//! reference and fast CPU paths chosen at run time. Tensors are contiguous, in f32 or bf16; weights are packed once at load
//! time, in the dtype of the multiplications. Pictures are channels last: [h, w, c], clips [f, h, w, c]. Sums and softmax
//! are always f32. Work is spread over rayon's current thread pool, so whoever owns a device installs its own pool; memory
//! comes from the [`Arena`] whose scope the thread is in.

mod activation;
mod arena;
mod attention;
mod buffer;
mod conv;
mod copy;
mod cuda;
mod elementwise;
mod error;
mod gemm;
mod layout;
mod linear;
pub mod measure;
mod norm;
mod packed;
mod parallel;
pub mod peak;
mod ranges;
mod resample;
mod rope;
pub mod simd;
mod tensor;

pub use activation::Activation;
pub use arena::Arena;
pub use attention::attention;
pub use conv::{CausalConv3d, PackedConv2d, PackedConvTranspose2d, Padding, causal_conv3d, conv_transpose2d, conv2d};
pub use cuda::{Absent, CudaDevice, CudaGraph, CudaInfo, probe};
pub use elementwise::{
    Gram, activate, add, all_finite, clamp, combine_step, embedding, gram, guide, linear_combination, multiply,
};
pub use error::{Error, Result};
pub use layout::{channels_first, channels_last, concat_channels, patchify, slice_channels, unpatchify};
pub use linear::{PackedLinear, linear, linear_residual};
pub use norm::{channel_norm_silu, layer_norm, layer_norm_modulate, rms_norm};
pub use resample::{
    SizeFactors, add_averaged, add_repeated, backward_warp, blend_mask, pixel_shuffle2x, resize_bilinear,
    rgb_to_yuv420, upsample_nearest2x, warp_blend,
};
pub use rope::{RopeTable, rms_norm_rope, rope};
pub use tensor::{Device, Dtype, Tensor};
