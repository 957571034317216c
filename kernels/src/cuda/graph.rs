//! A recorded sequence of launches that is replayed as one.
#![allow(unsafe_code, reason = "calls into the driver")]

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::CudaDevice;
use super::driver::Checked;
use super::memory::{Pool, Sizes};
use crate::error::Result;

/// What [`CudaDevice::capture`] recorded. It owns the memory of everything that was made while recording.
///
/// A replay reads what the recorded work read (weights, inputs) at the same addresses: whoever keeps a graph keeps those
/// tensors, and writes new inputs into them.
pub struct CudaGraph {
    device: CudaDevice,
    executable: sys::CUgraphExec,
    pool: Arc<Pool>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for CudaGraph {}

impl CudaDevice {
    /// Records the operations of `work` without running them, then makes them one launch. Its results are the tensors that
    /// each replay fills. Nothing in `work` may wait for the device or copy from the host.
    pub fn capture<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(R, CudaGraph)> {
        const OP: &str = "CudaDevice::capture";
        self.enter(OP)?;
        let pool = Pool::new(Arc::clone(self.context()), Sizes::Recorded);
        // Relaxed: regions of the graph's own pool are allocated while it is recorded.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        let stream = self.stream();
        // SAFETY: the stream is this device's and records nothing yet: a nested capture is refused by the driver.
        self.remember(unsafe { result::stream::begin_capture(stream.raw(), mode) }.checked(OP))?;
        let made = self.recording(Arc::clone(&pool), work);
        // SAFETY: capture was begun above.
        let graph = unsafe { result::stream::end_capture(stream.raw()) }.checked(OP);
        drop(stream);
        let graph = self.remember(graph)?;
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                // SAFETY: the graph is whole, and nobody has it.
                let _ = unsafe { result::graph::destroy(graph) };
                return Err(error);
            }
        };
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph is whole; the executable one does not need it any more.
        let instantiated = unsafe {
            let done = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0).result();
            let _ = result::graph::destroy(graph);
            done
        };
        self.remember(instantiated.checked(OP))?;
        Ok((made, CudaGraph { device: self.clone(), executable, pool }))
    }
}

impl CudaGraph {
    /// Queues all of the recorded work.
    pub fn launch(&self) -> Result<()> {
        const OP: &str = "CudaGraph::launch";
        self.device.enter(OP)?;
        // SAFETY: the executable is of this context; its memory is the graph's own.
        let launched = unsafe { result::graph::launch(self.executable, self.device.stream().raw()) };
        self.device.remember(launched.checked(OP))
    }

    /// Bytes of device memory that the graph holds.
    pub fn held_bytes(&self) -> usize {
        self.pool.bytes().held
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if self.device.enter("release of a graph").is_ok() {
            // SAFETY: made by `capture`, dropped once.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}

impl std::fmt::Debug for CudaGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaGraph").field("held_bytes", &self.held_bytes()).finish_non_exhaustive()
    }
}
