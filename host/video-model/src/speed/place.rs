//! Where measured work runs, and the operations of a device by themselves.

use crate::error::{ModelError, Result};
use kernels::{CudaDevice, measure, probe};
pub use measure::{Bound, Ceilings, Check, Extent, Timing};

/// A device, or host memory.
#[derive(Debug, Clone)]
pub struct Place(Option<CudaDevice>);

impl Place {
    /// `cpu`, `cuda:N`, or `auto`: the first device, if there is one.
    pub fn parse(name: &str) -> Result<Self> {
        let unknown = || ModelError::Input(format!("there is no device `{name}`: use `auto`, `cpu` or `cuda:N`"));
        let number = match name {
            "cpu" => return Ok(Self(None)),
            "auto" if probe().is_err() => return Ok(Self(None)),
            "auto" => 0,
            _ => name.strip_prefix("cuda:").and_then(|number| number.parse().ok()).ok_or_else(unknown)?,
        };
        Ok(Self(Some(CudaDevice::open(number)?)))
    }

    /// What it calls itself.
    pub fn name(&self) -> String {
        self.0.as_ref().map_or_else(|| "cpu".to_owned(), |device| device.info().name.clone())
    }

    /// True in host memory.
    pub fn is_cpu(&self) -> bool {
        self.0.is_none()
    }

    /// Compares every operation with float64 ([`measure::checks`]).
    pub fn checks(&self, seed: u64) -> Result<Vec<Check>> {
        Ok(measure::checks(self.0.as_ref(), seed, |_| ())?)
    }

    /// Times the device's operations ([`measure::timings`]); an error on the CPU, whose speed [`super::kernels`] tells.
    pub fn timings(&self, extent: Extent, filter: &str, runs: u32) -> Result<(Ceilings, Vec<Timing>)> {
        let Some(device) = &self.0 else {
            return Err(ModelError::Input("the CPU keeps no time of its own".to_owned()));
        };
        Ok(measure::timings(device, extent, filter, runs, |_| ())?)
    }

    pub(super) fn device(&self) -> Option<&CudaDevice> {
        self.0.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_as_on_the_command_line() {
        assert!(Place::parse("cpu").unwrap().is_cpu());
        for unknown in ["gpu", "cuda", "cuda:x", "cuda:-1"] {
            assert!(Place::parse(unknown).unwrap_err().to_string().contains("use `auto`"), "{unknown}");
        }
    }
}
