//! What can be wrong with a call: shapes, dtypes, arguments. Operations never panic on bad input.

/// Why an operation refused its inputs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes do not fit together, or not the operation.
    #[error("{op}: {detail}")]
    ShapeMismatch {
        /// Name of the operation, as its function is called.
        op: &'static str,
        /// What was given and what is needed.
        detail: String,
    },
    /// The dtypes of two inputs differ, or the operation does not take this dtype.
    #[error("{op}: {detail}")]
    DtypeMismatch {
        /// Name of the operation.
        op: &'static str,
        /// What was given and what is needed.
        detail: String,
    },
    /// A number outside its range: a stride of zero, a token id past the table, …
    #[error("{op}: {detail}")]
    InvalidArgument {
        /// Name of the operation.
        op: &'static str,
        /// What was given and what is needed.
        detail: String,
    },
    /// The device failed. Its context is spoilt: nothing runs on it until it has been reset.
    #[error("{op}: the device failed: {detail}")]
    Device {
        /// What was running, or asked for, when the error was told.
        op: &'static str,
        /// The driver's words.
        detail: String,
    },
    /// The device's memory does not suffice.
    #[error("{op}: {detail}")]
    DeviceMemory {
        /// Name of the operation.
        op: &'static str,
        /// What was needed, and what there is.
        detail: String,
    },
    /// The program carries no kernel for this operation on this device.
    #[error("{op}: {detail}")]
    DeviceKernel {
        /// Name of the operation.
        op: &'static str,
        /// What is absent, and what to do.
        detail: String,
    },
}

impl Error {
    /// Whether the device must be reset before it can be used again.
    pub fn spoils_device(&self) -> bool {
        matches!(self, Self::Device { .. })
    }
}

/// Result of every operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn shape_error<T>(op: &'static str, detail: impl Into<String>) -> Result<T> {
    Err(Error::ShapeMismatch { op, detail: detail.into() })
}

pub(crate) fn argument_error<T>(op: &'static str, detail: impl Into<String>) -> Result<T> {
    Err(Error::InvalidArgument { op, detail: detail.into() })
}

pub(crate) fn dtype_error<T>(op: &'static str, detail: impl Into<String>) -> Result<T> {
    Err(Error::DtypeMismatch { op, detail: detail.into() })
}
