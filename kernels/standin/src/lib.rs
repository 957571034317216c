//! A stand-in for the CUDA driver, for tests without a GPU.
//!
//! [`Standin::load`] puts a `libcuda.so` into the process that runs the kernels of `kernels/cuda` on the CPU emulator. A
//! library that is already there under the name asked for is what the dynamic loader hands out, so the host's code finds the
//! stand-in where it would find NVIDIA's driver and runs unchanged.
#![allow(unsafe_code, reason = "loads a shared library and calls its functions")]

mod library;
mod sanitizer;

pub use library::Standin;
pub use sanitizer::sanitized;
