//! The driver's errors as ours.

use cudarc::driver::result::DriverError;

use crate::error::{Error, Result};

/// The driver's own words for an error.
pub(super) fn describe(error: &DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    text.unwrap_or_else(|_| format!("{:?}", error.0))
}

/// An error of the driver in operation `op`.
pub(super) fn failed(op: &'static str, error: DriverError) -> Error {
    use cudarc::driver::sys::CUresult::{CUDA_ERROR_NOT_FOUND, CUDA_ERROR_OUT_OF_MEMORY};
    let detail = describe(&error);
    match error.0 {
        CUDA_ERROR_OUT_OF_MEMORY => Error::DeviceMemory { op, detail },
        CUDA_ERROR_NOT_FOUND => Error::DeviceKernel { op, detail },
        _ => Error::Device { op, detail },
    }
}

pub(super) trait Checked<T> {
    /// The value, or the driver's error told as one of operation `op`.
    fn checked(self, op: &'static str) -> Result<T>;
}

impl<T> Checked<T> for std::result::Result<T, DriverError> {
    fn checked(self, op: &'static str) -> Result<T> {
        self.map_err(|e| failed(op, e))
    }
}
