//! The operations of a device, and one network on it.

use pipeline::{StageError, StageResult};
use serde::Serialize;
use std::path::PathBuf;
use video_model::Precision;
use video_model::speed::{self, Bound, Extent, Part, Runner};

/// Where the measured work runs.
pub struct Place(speed::Place);

/// One operation beside float64.
#[derive(Debug, Clone, Serialize)]
pub struct KernelCheck {
    /// The operation, its shape and dtype.
    pub name: String,
    /// ‖result − reference‖ / ‖reference‖; null when the result is not a number.
    pub relative_error: f64,
    /// The largest that is right.
    pub tolerance: f64,
    /// Whether it is.
    pub passed: bool,
}

/// What a device reaches at most, per second.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceCeilings {
    /// Bytes read and written by a copy.
    pub copy: f64,
    /// Operations of a bf16 product.
    pub bf16: f64,
    /// Operations of an f32 product.
    pub f32: f64,
    /// Operations of an int8 product.
    pub int8: f64,
}

/// One operation's time.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceTiming {
    /// The operation, its shape and dtype.
    pub name: String,
    /// Median of the runs by the device's clock, in microseconds.
    pub median_us: f64,
    /// Bytes or operations per second.
    pub rate: f64,
    /// `bytes/s` or `operations/s`.
    pub unit: &'static str,
    /// The rate in parts of the measured ceiling.
    pub share_of_ceiling: f64,
}

/// All operations of a device.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceTimings {
    /// The device's name.
    pub device: String,
    /// What it reaches at most.
    pub ceilings: DeviceCeilings,
    /// Each operation.
    pub timings: Vec<DeviceTiming>,
}

impl Place {
    /// `cpu`, `cuda:N`, or `auto`.
    pub fn parse(name: &str) -> StageResult<Self> {
        speed::Place::parse(name).map(Self).map_err(|error| StageError::invalid("device", error.to_string()))
    }

    /// True in host memory.
    pub fn is_cpu(&self) -> bool {
        self.0.is_cpu()
    }

    /// What the device calls itself.
    pub fn name(&self) -> String {
        self.0.name()
    }

    /// Compares every operation with float64; blocks.
    pub fn checks(&self, seed: u64) -> StageResult<Vec<KernelCheck>> {
        let checks = self.0.checks(seed).map_err(|error| internal(&error))?;
        let check = |check: speed::Check| KernelCheck {
            passed: check.passed(),
            name: check.name,
            relative_error: check.relative_error,
            tolerance: check.tolerance,
        };
        Ok(checks.into_iter().map(check).collect())
    }

    /// Times every operation of a device whose name contains `filter`; blocks.
    pub fn timings(&self, tiny: bool, filter: &str, runs: u32) -> StageResult<DeviceTimings> {
        let extent = if tiny { Extent::Tiny } else { Extent::Full };
        let (ceilings, timings) = self.0.timings(extent, filter, runs).map_err(|error| internal(&error))?;
        let timing = |timing: speed::Timing| DeviceTiming {
            name: timing.name,
            median_us: timing.median_us,
            rate: timing.rate,
            unit: if matches!(timing.bound, Bound::Bytes(_)) { "bytes/s" } else { "operations/s" },
            share_of_ceiling: timing.share_of_ceiling,
        };
        let speed::Ceilings { copy, f32, bf16, int8 } = ceilings;
        Ok(DeviceTimings {
            device: self.name(),
            ceilings: DeviceCeilings { copy, bf16, f32, int8 },
            timings: timings.into_iter().map(timing).collect(),
        })
    }
}

/// A transformer with its inputs.
pub struct Network {
    /// A model folder.
    pub folder: PathBuf,
    /// Its file with the tensors `latent`, `timestep` and `text`.
    pub inputs: String,
    /// Arithmetic; bf16 when absent.
    pub dtype: Option<String>,
    /// Threads of the host; all cores when absent.
    pub threads: Option<usize>,
    /// A file whose tensor `output` is what should come out.
    pub reference: Option<PathBuf>,
}

/// One forward's time.
#[derive(Debug, Clone, Serialize)]
pub struct ForwardFigure {
    /// The device's name.
    pub device: String,
    /// Median of the runs, in milliseconds.
    pub median_ms: f64,
    /// The shortest.
    pub min_ms: f64,
    /// How many runs, after one that is not counted.
    pub runs: u32,
    /// Relative root mean square difference from the reference, when there is one.
    pub relative_rmse: Option<f64>,
}

impl Network {
    /// Runs it `runs` times; blocks.
    pub fn forward(&self, place: &Place, runs: u32) -> StageResult<ForwardFigure> {
        let precision: Precision = match &self.dtype {
            Some(dtype) => dtype.parse()?,
            None => Precision::Bf16,
        };
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.unwrap_or(available).max(1);
        let runner = Runner::load_at(&place.0, &self.folder, &self.inputs, Part::Transformer, precision, threads);
        let runner = runner.map_err(|error| internal(&error))?;
        let (_, output) = runner.run().map_err(|error| internal(&error))?;
        let mut times = Vec::new();
        for _ in 0..runs.max(1) {
            times.push(runner.run().map_err(|error| internal(&error))?.0.as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let relative_rmse = match &self.reference {
            Some(path) => {
                let reference = speed::read_tensor(path, "output").map_err(|error| internal(&error))?;
                let error = speed::relative_rmse(&output.to_vec_f32(), &reference);
                Some(error.ok_or_else(|| StageError::Internal("the reference has another size".to_owned()))?)
            }
            None => None,
        };
        Ok(ForwardFigure {
            device: place.name(),
            median_ms: times[times.len() / 2],
            min_ms: times[0],
            runs: runs.max(1),
            relative_rmse,
        })
    }
}

fn internal(error: &dyn std::fmt::Display) -> StageError {
    StageError::Internal(error.to_string())
}
