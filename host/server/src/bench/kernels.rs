//! Kernels beside what the machine can multiply.

use pipeline::{StageError, StageResult};
use serde::Serialize;

/// One kernel at one shape.
#[derive(Debug, Clone, Serialize)]
pub struct KernelFigure {
    /// The operation, its shape and type.
    pub name: String,
    /// Median wall time of one call, in microseconds.
    pub median_us: u64,
    /// Billions of operations per second, on all threads together; a multiply-add is two.
    pub giga_operations_per_second: f64,
    /// That rate in percent of the measured peak of as many cores.
    pub percent_of_peak: f64,
}

/// Times matrix products and attention; blocks the calling thread.
pub fn kernels(threads: usize, runs: u32) -> StageResult<Vec<KernelFigure>> {
    let measured = video_model::speed::kernels(threads, runs.max(1) * 5);
    let figure = |m: video_model::speed::KernelSpeed| KernelFigure {
        name: m.name,
        median_us: m.time.as_micros() as u64,
        giga_operations_per_second: m.rate / 1e9,
        percent_of_peak: 100.0 * m.share_of_peak,
    };
    let measured = measured.map_err(|error| StageError::Internal(format!("kernels: {error}")))?;
    Ok(measured.into_iter().map(figure).collect())
}
