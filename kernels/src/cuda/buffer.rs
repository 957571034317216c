//! A range of device memory.
#![allow(unsafe_code, reason = "copies between host and device memory")]

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::CudaDevice;
use super::driver::Checked;
use super::memory::Pool;
use crate::buffer::{Buffer, Zero};
use crate::error::Result;

/// `bytes` of device memory, aligned to 256, which go back to their pool when dropped.
pub(crate) struct CudaBuffer {
    device: CudaDevice,
    /// None for the buffer of a result that could not be made (see [`CudaDevice::or_poisoned`]).
    pool: Option<Arc<Pool>>,
    pointer: sys::CUdeviceptr,
    bytes: usize,
}

impl CudaBuffer {
    pub(super) fn take(op: &'static str, device: &CudaDevice, pool: Arc<Pool>, bytes: usize) -> Result<Self> {
        let pointer = pool.take(op, bytes)?;
        Ok(Self { device: device.clone(), pool: Some(pool), pointer, bytes })
    }

    /// Memory that is not there, on a device that has failed and will run nothing.
    pub(super) fn absent(device: &CudaDevice, bytes: usize) -> Self {
        Self { device: device.clone(), pool: None, pointer: 0, bytes }
    }

    pub(crate) fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// Where it lies on the device.
    pub(crate) fn pointer(&self) -> sys::CUdeviceptr {
        self.pointer
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Overwrites bytes from `offset` on with `values`, behind what was queued before.
    pub(crate) fn write<T: Zero>(&self, op: &'static str, offset: usize, values: &[T]) -> Result<()> {
        self.check(op, offset, size_of_val(values))?;
        // SAFETY: types that may be zero are plain numbers without padding.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        self.device.staging().upload(op, &self.device, self.pointer + offset as u64, bytes)
    }

    /// Waits for the device and reads `len` numbers from byte `offset` on.
    pub(crate) fn read<T: Zero>(&self, op: &'static str, offset: usize, len: usize) -> Result<Buffer<T>> {
        let mut values = Buffer::<T>::zeros(len);
        self.check(op, offset, size_of_val(&*values))?;
        // SAFETY: as in `write`, and every pattern of bits is such a number.
        let bytes = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), size_of_val(&*values)) };
        self.device.staging().download(op, &self.device, self.pointer + offset as u64, bytes)?;
        Ok(values)
    }

    /// Copies `bytes` from byte `from` of `source` to byte `to` of this buffer.
    pub(crate) fn copy(&self, op: &'static str, to: usize, source: &Self, from: usize, bytes: usize) -> Result<()> {
        self.check(op, to, bytes)?;
        source.check(op, from, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let (to, from) = (self.pointer + to as u64, source.pointer + from as u64);
        // SAFETY: both ranges were checked, and the stream keeps the order.
        let copied = unsafe { result::memcpy_dtod_async(to, from, bytes, self.device.stream().raw()) };
        self.device.remember(copied.checked(op))
    }

    /// Fills the buffer with zeros.
    pub(crate) fn clear(&self, op: &'static str) -> Result<()> {
        self.check(op, 0, self.bytes)?;
        if self.bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range is this buffer's.
        let cleared = unsafe { result::memset_d8_async(self.pointer, 0, self.bytes, self.device.stream().raw()) };
        self.device.remember(cleared.checked(op))
    }

    /// The device is well, and the range lies within the buffer.
    fn check(&self, op: &'static str, offset: usize, bytes: usize) -> Result<()> {
        self.device.enter(op)?;
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => crate::error::argument_error(op, format!("{bytes} bytes at {offset} of a buffer of {}", self.bytes)),
        }
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            pool.give_back(self.pointer, self.bytes);
        }
    }
}

impl fmt::Debug for CudaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaBuffer").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
