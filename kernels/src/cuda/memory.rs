//! Device memory: a few large allocations, of which ranges are handed out.
//!
//! All work of a device runs on one stream in order, so a range that comes back may serve the next buffer at once: whatever
//! reads it was queued earlier than whatever writes it next.
#![allow(unsafe_code, reason = "calls into the driver")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};

use super::driver::Checked;
use crate::error::{Error, Result};
use crate::ranges::{FreeRanges, best_fit};

/// Buffers start on these multiples: what the widest loads and the copy engine want.
const ALIGNMENT: usize = 256;
/// Regions are at least so large, unless the device has less left.
const REGION_BYTES_MIN: usize = 64 << 20;
const REGION_MULTIPLE: usize = 2 << 20;

/// A context of the driver; dead once it has been reset, when everything in it is gone.
pub(super) struct Context {
    pub(super) raw: sys::CUcontext,
    pub(super) stream: sys::CUstream,
    dead: AtomicBool,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn new(raw: sys::CUcontext, stream: sys::CUstream) -> Self {
        Self { raw, stream, dead: AtomicBool::new(false) }
    }

    /// Makes the context this thread's.
    pub(super) fn enter(&self, op: &'static str) -> Result<()> {
        if self.is_dead() {
            return Err(Error::Device { op, detail: "it was reset since; load the model again".to_owned() });
        }
        // SAFETY: the context lives until it is dead.
        unsafe { result::ctx::set_current(self.raw) }.checked(op)
    }

    pub(super) fn die(&self) {
        self.dead.store(true, Ordering::Release);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }
}

/// Memory that buffers share. Freed with the last of its handles.
pub(super) struct Pool {
    context: Arc<Context>,
    sizes: Sizes,
    state: Mutex<State>,
}

/// What a pool asks the driver for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sizes {
    /// Large regions, kept for the buffers to come.
    Regions,
    /// The same for a graph: a region without buffers is not free, since the recorded work uses it at each replay.
    Recorded,
    /// For each buffer an allocation of its own, no longer than it, freed with it: a checker of memory (compute-sanitizer,
    /// the address sanitizer) then sees what goes beyond. Slow, and not for recording graphs.
    Exact,
}

#[derive(Default)]
struct State {
    regions: Vec<Region>,
    live_bytes: usize,
    peak_bytes: usize,
    growths: usize,
}

struct Region {
    start: sys::CUdeviceptr,
    free: FreeRanges,
}

/// What a pool holds, for metrics and admission.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PoolBytes {
    pub(super) live: usize,
    pub(super) peak: usize,
    pub(super) held: usize,
    pub(super) growths: usize,
}

impl Pool {
    pub(super) fn new(context: Arc<Context>, sizes: Sizes) -> Arc<Self> {
        Arc::new(Self { context, sizes, state: Mutex::default() })
    }

    pub(super) fn sizes(&self) -> Sizes {
        self.sizes
    }

    pub(super) fn take(&self, op: &'static str, bytes: usize) -> Result<sys::CUdeviceptr> {
        self.context.enter(op)?;
        let bytes = self.rounded(bytes);
        let mut state = self.lock();
        let (region, offset) = match state.best_fit(bytes) {
            Some(place) if self.sizes != Sizes::Exact => place,
            _ => {
                state.grow(op, bytes, self.sizes)?;
                state.best_fit(bytes).ok_or_else(|| no_memory(op, bytes, "a region was too small"))?
            }
        };
        let region = &mut state.regions[region];
        let pointer = region.start + offset as u64;
        if region.free.take(offset, bytes).is_none() {
            return Err(no_memory(op, bytes, "a free range was gone"));
        }
        state.live_bytes += bytes;
        state.peak_bytes = state.peak_bytes.max(state.live_bytes);
        Ok(pointer)
    }

    /// Frees what [`Pool::take`] gave for as many `bytes`.
    pub(super) fn give_back(&self, pointer: sys::CUdeviceptr, bytes: usize) {
        let bytes = self.rounded(bytes);
        let mut state = self.lock();
        state.live_bytes -= bytes;
        let owner = state.regions.iter_mut().find(|r| (r.start..r.start + r.free.len() as u64).contains(&pointer));
        if let Some(region) = owner {
            region.free.give_back((pointer - region.start) as usize, bytes);
        }
        if self.sizes == Sizes::Exact && self.context.enter("release of a tensor").is_ok() {
            // SAFETY: the stream is the context's. What was queued may still use the buffer.
            let idle = unsafe { result::stream::synchronize(self.context.stream) }.is_ok();
            if idle {
                state.drop_unused();
            }
        }
    }

    /// Makes room for buffers of `bytes` in all that lie side by side.
    pub(super) fn reserve(&self, op: &'static str, bytes: usize) -> Result<()> {
        self.context.enter(op)?;
        let mut state = self.lock();
        let largest = state.regions.iter().map(|region| region.free.largest()).max().unwrap_or(0);
        if largest < bytes { state.grow(op, bytes, Sizes::Regions) } else { Ok(()) }
    }

    /// Overwrites all free memory that was ever used with zeros, so that nobody finds another's pixels in it.
    pub(super) fn scrub(&self, op: &'static str) -> Result<()> {
        self.context.enter(op)?;
        for region in &self.lock().regions {
            let touched = region.free.touched();
            for (offset, length) in region.free.iter().filter(|(offset, _)| *offset < touched) {
                let length = length.min(touched - offset);
                // SAFETY: the range lies within the region, and no buffer is in it.
                unsafe { result::memset_d8_async(region.start + offset as u64, 0, length, self.context.stream) }
                    .checked(op)?;
            }
        }
        Ok(())
    }

    /// Gives regions without buffers back to the driver.
    pub(super) fn trim(&self, op: &'static str) -> Result<()> {
        self.context.enter(op)?;
        // SAFETY: the stream is the context's. What was queued may still read the regions.
        unsafe { result::stream::synchronize(self.context.stream) }.checked(op)?;
        self.lock().drop_unused();
        Ok(())
    }

    pub(super) fn bytes(&self) -> PoolBytes {
        let state = self.lock();
        let held = state.regions.iter().map(|region| region.free.len()).sum();
        PoolBytes { live: state.live_bytes, peak: state.peak_bytes, held, growths: state.growths }
    }

    pub(super) fn restart_peak(&self) {
        let mut state = self.lock();
        state.peak_bytes = state.live_bytes;
    }

    fn rounded(&self, bytes: usize) -> usize {
        match self.sizes {
            Sizes::Regions | Sizes::Recorded => bytes.max(1).next_multiple_of(ALIGNMENT),
            Sizes::Exact => bytes.max(1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs between a change of one field and the next.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        const OP: &str = "release of device memory";
        // A context that died took its memory along. What was in a graph's is a job's, and no scrub of the device reaches it.
        if self.context.enter(OP).is_ok() {
            let _ = self.scrub(OP);
            // SAFETY: the stream is the context's.
            let _ = unsafe { result::stream::synchronize(self.context.stream) };
            self.lock().drop_unused();
        }
    }
}

impl State {
    fn best_fit(&self, bytes: usize) -> Option<(usize, usize)> {
        best_fit(self.regions.iter().map(|region| &region.free), bytes)
    }

    /// Adds a region for at least `bytes`.
    fn grow(&mut self, op: &'static str, bytes: usize, sizes: Sizes) -> Result<()> {
        let wanted = match sizes {
            Sizes::Regions | Sizes::Recorded => bytes.max(REGION_BYTES_MIN).next_multiple_of(REGION_MULTIPLE),
            Sizes::Exact => bytes,
        };
        // SAFETY: the context is this thread's.
        let allocate = |bytes: usize| unsafe { result::malloc_sync(bytes) }.map(|start| (start, bytes));
        let grown = allocate(wanted).or_else(|_| {
            if sizes != Sizes::Recorded {
                self.drop_unused();
            }
            allocate(wanted).or_else(|_| allocate(bytes))
        });
        let (start, len) = grown.map_err(|e| match super::driver::failed(op, e) {
            Error::DeviceMemory { .. } => no_memory(op, bytes, &free_words()),
            other => other,
        })?;
        self.regions.push(Region { start, free: FreeRanges::new(len) });
        self.growths += 1;
        Ok(())
    }

    fn drop_unused(&mut self) {
        self.regions.retain(|region| {
            let unused = region.free.is_unused();
            if unused {
                // SAFETY: the region was allocated by this pool and holds no buffer.
                let _ = unsafe { result::free_sync(region.start) };
            }
            !unused
        });
    }
}

fn free_words() -> String {
    match result::mem_get_info() {
        Ok((free, total)) => format!("{} of {} MiB are free", free >> 20, total >> 20),
        Err(_) => "the driver does not say how much is free".to_owned(),
    }
}

fn no_memory(op: &'static str, bytes: usize, why: &str) -> Error {
    Error::DeviceMemory { op, detail: format!("no device memory for {} MiB: {why}", bytes.div_ceil(1 << 20)) }
}
