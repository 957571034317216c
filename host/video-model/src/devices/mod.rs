//! What models run on: the CPU engine or a CUDA device, behind one trait that places tensors, measures steps and resets.

mod choice;
mod cpu;
mod cuda;
mod sensors;

pub use choice::{DeviceChoice, Machine, ThisMachine};
pub use cpu::{CpuDevice, SystemTicks, Ticks};
pub use cuda::CudaEngine;
pub use sensors::{SensorBoard, Sensors};

use std::fmt;

/// Which device of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceId {
    /// The CPU engine.
    Cpu,
    /// A CUDA device, by the driver's ordinal.
    Cuda(usize),
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// The device failed. What runs on it, and everything in its memory, is lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DeviceFault(pub String);

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Timed {
    /// For how long the device was at work on it.
    pub busy_ns: u64,
    /// Whether the device has failed by its end. The step itself may have noticed or not.
    pub fault: Option<DeviceFault>,
}

/// A device as the queue and the engine see it.
pub trait Device: Send + Sync {
    /// Which one it is.
    fn id(&self) -> DeviceId;

    /// What the ledger calls it.
    fn name(&self) -> &str;

    /// Runs `step` on the calling thread, with the tensors that it makes on the device, until the device is done with it.
    fn timed(&self, step: &mut (dyn FnMut() + Send)) -> Timed;

    /// Runs `work` with the tensors that it makes on the device: loading weights. Nobody pays for it.
    fn scope(&self, work: &mut (dyn FnMut() + Send));

    /// Memory that models and jobs may still take; `None` where nobody tells.
    fn free_bytes(&self) -> Option<u64>;

    /// The most that the tensors of all steps took at one time.
    fn peak_bytes(&self) -> usize;

    /// Overwrites what dropped tensors have left in the device's memory: a job's pictures are nobody else's to find.
    fn scrub(&self) -> Result<(), DeviceFault>;

    /// Gives memory that no tensor uses back to the system: there is nothing to do.
    fn trim(&self);

    /// Makes the device fit for use after a fault. Everything that was in its memory is gone.
    fn reset(&self) -> Result<(), DeviceFault>;

    /// What its vendor's tools say about it.
    fn sensors(&self) -> Option<Sensors> {
        None
    }
}
