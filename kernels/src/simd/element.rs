//! The two element types, as kernels load and store them.
#![allow(unsafe_code, reason = "vector loads and stores take pointers")]

use half::bf16;

use super::Simd;
use crate::buffer::{Buffer, Zero};
use crate::tensor::{Dtype, Storage, Tensor};

/// f32 or bf16. The pointer methods have the contract of those of [`Simd`].
pub(crate) trait Element: Zero + Default + Send + Sync + 'static {
    const DTYPE: Dtype;
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::F;
    unsafe fn store<S: Simd>(simd: S, to: *mut Self, value: S::F);
    /// Two vectors, one behind the other.
    unsafe fn store_pair<S: Simd>(simd: S, to: *mut Self, low: S::F, high: S::F);
    unsafe fn load_first<S: Simd>(simd: S, from: *const Self, n: usize) -> S::F;
    unsafe fn store_first<S: Simd>(simd: S, to: *mut Self, value: S::F, n: usize);
    /// The element's bits, in the low end of a word.
    fn word(self) -> u32;
    /// The tensor's elements, when they have this type.
    fn slice(tensor: &Tensor) -> Option<&[Self]>;
    /// A tensor of `shape`, which the caller has checked against the length.
    fn tensor(values: impl Into<Buffer<Self>>, shape: &[usize]) -> Tensor;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::F {
        // SAFETY: the same contract.
        unsafe { simd.load(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, to: *mut Self, value: S::F) {
        // SAFETY: the same contract.
        unsafe { simd.store(to, value) }
    }
    #[inline(always)]
    unsafe fn store_pair<S: Simd>(simd: S, to: *mut Self, low: S::F, high: S::F) {
        // SAFETY: the same contract.
        unsafe {
            simd.store(to, low);
            simd.store(to.add(S::LANES), high);
        }
    }
    #[inline(always)]
    unsafe fn load_first<S: Simd>(simd: S, from: *const Self, n: usize) -> S::F {
        // SAFETY: the same contract.
        unsafe { simd.load_first(from, n) }
    }
    #[inline(always)]
    unsafe fn store_first<S: Simd>(simd: S, to: *mut Self, value: S::F, n: usize) {
        // SAFETY: the same contract.
        unsafe { simd.store_first(to, value, n) }
    }
    #[inline(always)]
    fn word(self) -> u32 {
        self.to_bits()
    }
    fn slice(tensor: &Tensor) -> Option<&[Self]> {
        tensor.as_f32()
    }
    fn tensor(values: impl Into<Buffer<Self>>, shape: &[usize]) -> Tensor {
        Tensor::new(Storage::F32(values.into()), shape)
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::F {
        // SAFETY: the same contract.
        unsafe { simd.load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, to: *mut Self, value: S::F) {
        // SAFETY: the same contract.
        unsafe { simd.store_bf16(to, value) }
    }
    #[inline(always)]
    unsafe fn store_pair<S: Simd>(simd: S, to: *mut Self, low: S::F, high: S::F) {
        // SAFETY: the same contract.
        unsafe { simd.store_bf16_pair(to, low, high) }
    }
    #[inline(always)]
    unsafe fn load_first<S: Simd>(simd: S, from: *const Self, n: usize) -> S::F {
        // SAFETY: the same contract.
        unsafe { simd.load_first_bf16(from, n) }
    }
    #[inline(always)]
    unsafe fn store_first<S: Simd>(simd: S, to: *mut Self, value: S::F, n: usize) {
        // SAFETY: the same contract.
        unsafe { simd.store_first_bf16(to, value, n) }
    }
    #[inline(always)]
    fn word(self) -> u32 {
        u32::from(self.to_bits())
    }
    fn slice(tensor: &Tensor) -> Option<&[Self]> {
        tensor.as_bf16()
    }
    fn tensor(values: impl Into<Buffer<Self>>, shape: &[usize]) -> Tensor {
        Tensor::new(Storage::Bf16(values.into()), shape)
    }
}
