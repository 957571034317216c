//! The NVIDIA device: found when the program runs, never needed to build it.
//!
//! A [`CudaDevice`] is one context with one stream. Work is asynchronous; whoever wants numbers back waits for the stream.
//! Tensors that a thread makes inside [`CudaDevice::scope`] live on the device, and so do results of operations on them.
//! Device memory comes from pools that hand out ranges of a few large allocations ([`memory`]); since there is one stream, a
//! range may be used again as soon as its buffer is dropped. An error that a kernel leaves behind spoils the whole context:
//! the device then refuses all work until [`CudaDevice::reset`] has made a new one.

mod buffer;
mod device;
mod driver;
mod fields;
mod graph;
mod launch;
mod memory;
mod modules;
mod probe;
mod staging;
mod tensor_map;

pub(crate) use buffer::CudaBuffer;
pub use device::{CudaDevice, CudaInfo};
pub(crate) use fields::Fields;
pub use graph::CudaGraph;
pub(crate) use launch::Launch;
pub(crate) use modules::Module;
pub use probe::{Absent, probe};
pub(crate) use tensor_map::TensorMap;

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Where an operation on `tensors` runs: none when all are in host memory, an error when they are in several places.
pub(crate) fn device_of(op: &'static str, tensors: &[&Tensor]) -> Result<Option<CudaDevice>> {
    let mut found: Option<&CudaDevice> = None;
    let mut on_host = false;
    for tensor in tensors {
        match (tensor.cuda().map(|c| c.buffer.device()), found) {
            (None, _) => on_host = true,
            (Some(device), None) => found = Some(device),
            (Some(device), Some(other)) if device.is(other) => {}
            (Some(_), Some(_)) => return elsewhere(op),
        }
    }
    match found {
        Some(_) if on_host => elsewhere(op),
        device => Ok(device.cloned()),
    }
}

fn elsewhere<T>(op: &'static str) -> Result<T> {
    let detail = "the tensors are not all on one device".to_owned();
    Err(Error::InvalidArgument { op, detail })
}
