//! Pinned host memory, through which bytes cross between host and device at the bus's speed.
#![allow(unsafe_code, reason = "pinned memory belongs to the driver")]

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{result, sys};

use super::device::CudaDevice;
use super::driver::Checked;
use super::memory::Context;
use crate::error::Result;

/// Bytes of each of the two halves: one is filled while the other is under way.
const HALF_BYTES: usize = 4 << 20;

/// The staging memory of a device; made when first used.
pub(super) struct Staging {
    halves: Mutex<Option<Halves>>,
}

struct Halves {
    context: Arc<Context>,
    memory: *mut u8,
    /// Recorded behind the last copy out of each half.
    free: [sys::CUevent; 2],
    next: usize,
}

// SAFETY: pinned memory and events may be used from any thread; a lock guards them.
unsafe impl Send for Halves {}

impl Staging {
    pub(super) fn new() -> Self {
        Self { halves: Mutex::new(None) }
    }

    /// Copies `bytes` to the device. They may change as soon as this returns.
    pub(super) fn upload(&self, op: &'static str, device: &CudaDevice, to: u64, bytes: &[u8]) -> Result<()> {
        self.with(op, device, |halves| {
            for (i, part) in bytes.chunks(HALF_BYTES).enumerate() {
                let half = halves.next % 2;
                // SAFETY: the event was made with the context.
                unsafe { result::event::synchronize(halves.free[half]) }.checked(op)?;
                // SAFETY: a half is that long, and the copy that last read it is over.
                let pinned = unsafe { std::slice::from_raw_parts_mut(halves.half(half), part.len()) };
                pinned.copy_from_slice(part);
                let at = to + (i * HALF_BYTES) as u64;
                // SAFETY: the caller owns so many bytes at `to`; the half is not written before its event.
                unsafe { result::memcpy_htod_async(at, pinned, device.stream().raw()) }.checked(op)?;
                // SAFETY: event and stream are of this context.
                unsafe { result::event::record(halves.free[half], device.stream().raw()) }.checked(op)?;
                halves.next += 1;
            }
            Ok(())
        })
    }

    /// Waits for the device and copies from it.
    pub(super) fn download(&self, op: &'static str, device: &CudaDevice, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.with(op, device, |halves| {
            for (i, part) in bytes.chunks_mut(HALF_BYTES).enumerate() {
                // SAFETY: the half is long enough; uploads out of it come earlier on the stream.
                let pinned = unsafe { std::slice::from_raw_parts_mut(halves.half(0), part.len()) };
                let at = from + (i * HALF_BYTES) as u64;
                // SAFETY: the caller owns so many bytes at `from`.
                unsafe { result::memcpy_dtoh_async(pinned, at, device.stream().raw()) }.checked(op)?;
                // SAFETY: the stream is of this context.
                unsafe { result::stream::synchronize(device.stream().raw()) }.checked(op)?;
                part.copy_from_slice(pinned);
            }
            Ok(())
        })
    }

    fn with(&self, op: &'static str, device: &CudaDevice, work: impl FnOnce(&mut Halves) -> Result<()>) -> Result<()> {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        let halves = match &mut *halves {
            Some(halves) => halves,
            none => none.insert(device.remember(Halves::new(op, device.context()))?),
        };
        device.remember(work(halves))
    }
}

impl Halves {
    fn new(op: &'static str, context: &Arc<Context>) -> Result<Self> {
        // SAFETY: the context is this thread's.
        let memory = unsafe { result::malloc_host(2 * HALF_BYTES, 0) }.checked(op)?;
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).checked(op);
        Ok(Self { context: Arc::clone(context), memory: memory.cast(), free: [event()?, event()?], next: 0 })
    }

    fn half(&self, half: usize) -> *mut u8 {
        // SAFETY: there are two.
        unsafe { self.memory.add(half % 2 * HALF_BYTES) }
    }
}

impl Drop for Halves {
    fn drop(&mut self) {
        if self.context.enter("release of pinned memory").is_ok() {
            // SAFETY: made by `new`; nothing is under way any more once the stream is idle.
            unsafe {
                let _ = result::stream::synchronize(self.context.stream);
                let _ = result::free_host(self.memory.cast());
                for event in self.free {
                    let _ = result::event::destroy(event);
                }
            }
        }
    }
}
