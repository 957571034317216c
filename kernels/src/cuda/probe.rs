//! Whether there is a device, without touching it. Calls into a driver that is absent would panic, so this comes first.
#![allow(unsafe_code, reason = "loads the driver and asks it for its version")]

use std::fmt;

use cudarc::driver::{result, sys};

/// CUDA 13.0: what the embedded kernels were compiled with.
const DRIVER_VERSION_MIN: i32 = 13000;

/// Why there is no device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absent {
    /// No driver library on this machine.
    NoDriver,
    /// The driver is older than the kernels.
    DriverTooOld {
        /// The newest CUDA version that the driver knows, as 1000·major + 10·minor.
        found: i32,
        /// What the kernels need, likewise.
        needed: i32,
    },
    /// A driver, but nothing for it to drive.
    NoDevice,
    /// The driver did not start.
    Failed(String),
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
        match self {
            Self::NoDriver => f.write_str("no NVIDIA driver (libcuda) on this machine"),
            Self::DriverTooOld { found, needed } => {
                let (found, needed) = (version(*found), version(*needed));
                write!(f, "the NVIDIA driver knows CUDA {found}, {needed} is needed: update the driver (580 or newer)")
            }
            Self::NoDevice => f.write_str("the NVIDIA driver sees no device"),
            Self::Failed(why) => write!(f, "the NVIDIA driver does not start: {why}"),
        }
    }
}

impl std::error::Error for Absent {}

/// How many devices there are (at least one), or why none.
pub fn probe() -> Result<usize, Absent> {
    // SAFETY: loading the driver library runs its initialisers, as every CUDA program does.
    if !unsafe { sys::is_culib_present() } {
        return Err(Absent::NoDriver);
    }
    let mut version = 0;
    // SAFETY: the pointer is valid; this call exists in every driver and needs no initialisation.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    if asked.is_ok() && version < DRIVER_VERSION_MIN {
        return Err(Absent::DriverTooOld { found: version, needed: DRIVER_VERSION_MIN });
    }
    let no_device = |e: &result::DriverError| e.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE;
    match asked.and_then(|()| result::init()).and_then(|()| result::device::get_count()) {
        Ok(count) if count > 0 => Ok(count as usize),
        Ok(_) => Err(Absent::NoDevice),
        Err(e) if no_device(&e) => Err(Absent::NoDevice),
        Err(e) => Err(Absent::Failed(super::driver::describe(&e))),
    }
}
