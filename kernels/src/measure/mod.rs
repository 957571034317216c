//! Every operation by itself, where it runs: how right it is ([`checks`]) and how fast ([`timings`]).

mod dense;
mod inputs;
mod pictures;
mod rows;
mod timing;

use inputs::Inputs;
pub use timing::{Bound, Ceilings, Extent, Timing, timings};

use crate::cuda::CudaDevice;
use crate::error::Result;
use crate::tensor::{Dtype, Tensor};

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

/// An operation's result beside that of the same formula in float64.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The operation, its shape and dtype.
    pub name: String,
    /// ‖result − reference‖ / ‖reference‖; not a number when the result has one that is not.
    pub relative_error: f64,
    /// The largest that is right: 1e-4 for f32, 1e-2 for bf16, 0 for copies.
    pub tolerance: f64,
}

impl Check {
    /// Whether the operation is right.
    pub fn passed(&self) -> bool {
        self.relative_error <= self.tolerance
    }
}

/// Runs every operation on `device` (none: in host memory) at shapes that are multiples of nothing, and compares. `seed`
/// draws the inputs; `report` sees each result as it is known. An operation that fails is an error.
///
/// Each runs twice, with memory full of not-a-number before the second time, so that what was left unwritten shows; the worse
/// result counts.
pub fn checks(device: Option<&CudaDevice>, seed: u64, mut report: impl FnMut(&Check)) -> Result<Vec<Check>> {
    let mut checker = Checker { inputs: Inputs::new(seed), done: Vec::new(), report: &mut report };
    let work = || {
        dense::check(&mut checker)?;
        rows::check(&mut checker)?;
        pictures::check(&mut checker)
    };
    match device {
        Some(device) => device.scope(work)?,
        None => CudaDevice::outside(work)?,
    }
    Ok(checker.done)
}

struct Checker<'a> {
    inputs: Inputs,
    done: Vec<Check>,
    report: &'a mut dyn FnMut(&Check),
}

impl Checker<'_> {
    /// Compares what `run` makes with `expected`, as results of `dtype`.
    fn close(&mut self, name: String, dtype: Dtype, expected: &[f64], run: impl Fn() -> Result<Tensor>) -> Result<()> {
        let tolerance = match dtype {
            Dtype::F32 => 1e-4,
            Dtype::Bf16 => 1e-2,
        };
        self.within(format!("{name} {}", dtype_name(dtype)), tolerance, expected, run)
    }

    fn within(
        &mut self,
        name: String,
        tolerance: f64,
        expected: &[f64],
        run: impl Fn() -> Result<Tensor>,
    ) -> Result<()> {
        let first = run()?;
        let (len, mut relative_error) = (first.len(), relative_error(&first.to_vec_f32(), expected));
        drop(first);
        // The next result of this size takes the memory that is freed last.
        drop(Tensor::from_vec(vec![f32::NAN; len], &[len])?);
        let second = self::relative_error(&run()?.to_vec_f32(), expected);
        if second.is_nan() || second > relative_error {
            relative_error = second;
        }
        let check = Check { name, relative_error, tolerance };
        (self.report)(&check);
        self.done.push(check);
        Ok(())
    }
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
    }
}

/// ‖a − b‖ / ‖b‖; not a number when their sizes differ.
fn relative_error(a: &[f32], b: &[f64]) -> f64 {
    if a.len() != b.len() {
        return f64::NAN;
    }
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    let size: f64 = b.iter().map(|b| b * b).sum();
    if difference == 0.0 { 0.0 } else { (difference / size).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_of_the_host_is_right() {
        let checks = checks(None, 1, |_| ()).unwrap();
        assert!(checks.len() > 60, "{}", checks.len());
        let wrong: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn a_wrong_result_and_one_that_is_not_a_number_do_not_pass() {
        let mut checker = Checker { inputs: Inputs::new(0), done: Vec::new(), report: &mut |_| () };
        for value in [1.0, 1.001, f32::NAN] {
            checker.close(String::new(), Dtype::F32, &[1.0], || Tensor::from_f32(&[value], &[1])).unwrap();
        }
        checker.close(String::new(), Dtype::F32, &[1.0, 1.0], || Tensor::from_f32(&[1.0], &[1])).unwrap();
        assert_eq!(checker.done.iter().map(Check::passed).collect::<Vec<_>>(), [true, false, false, false]);
    }
}
