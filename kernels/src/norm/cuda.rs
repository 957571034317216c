//! Launches of `cuda/norm.cu`, and how any kernel of rows shares them out among threads (`cuda/row.cuh`).

use crate::cuda::{CudaDevice, Module};
use crate::error::{Result, argument_error};
use crate::tensor::{Dtype, Tensor};

/// Values of a row at most, rows at most (their numbers are ints, also in a last block that is not full), and groups of
/// values that a thread holds.
const ROW_MAX: usize = 16_384;
const ROWS_MAX: usize = i32::MAX as usize - THREADS;
const HELD: usize = 4;
const WARP: usize = 32;
/// Threads of a block that holds several rows.
const THREADS: usize = 256;

/// Teams of threads that hold one row each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Teams {
    /// Power of two that a team within a warp is; below 0 where all threads of a block are one team.
    pub(crate) team_log2: i32,
    pub(crate) threads: usize,
    pub(crate) blocks: usize,
}

impl Teams {
    /// Teams for `rows` of `d` values, read and written in these dtypes.
    pub(crate) fn of(op: &'static str, rows: usize, d: usize, read: Dtype, written: Dtype) -> Result<Self> {
        if d > ROW_MAX {
            return argument_error(op, format!("rows of {d} values, {ROW_MAX} are the most on a device"));
        }
        if rows > ROWS_MAX {
            return argument_error(op, format!("{rows} rows, {ROWS_MAX} are the most on a device"));
        }
        let group = if (read, written) == (Dtype::Bf16, Dtype::Bf16) { 8 } else { 4 };
        let least = d.div_ceil(group).div_ceil(HELD);
        if least > WARP {
            let team = least.next_multiple_of(WARP);
            return Ok(Self { team_log2: -1, threads: team, blocks: rows });
        }
        let team = least.next_power_of_two();
        Ok(Self { team_log2: team.ilog2() as i32, threads: THREADS, blocks: rows.div_ceil(THREADS / team) })
    }
}

/// What [`layer_norm`] does to a row that it has centred and divided.
pub(super) struct Affine<'a> {
    /// `[d]` or [g, d], f32 or bf16; 1 when absent.
    pub(super) weight: Option<&'a Tensor>,
    /// Added to each weight.
    pub(super) weight_offset: f32,
    /// As long as the weight; 0 when absent.
    pub(super) bias: Option<&'a Tensor>,
    /// Successive rows that share a weight and a bias.
    pub(super) group_rows: usize,
}

pub(super) fn layer_norm(device: &CudaDevice, x: &Tensor, affine: &Affine<'_>, eps: f32, out: Dtype) -> Result<Tensor> {
    const OP: &str = "layer_norm";
    const NAMES: [[&str; 2]; 2] =
        [["layer_norm_f32_f32", "layer_norm_f32_bf16"], ["layer_norm_bf16_f32", "layer_norm_bf16_bf16"]];
    let (rows, d, y) = rows_and_result(device, x, out)?;
    let teams = Teams::of(OP, rows, d, x.dtype(), out)?;
    let (weight, bias) = (affine.weight.map(as_f32), affine.bias.map(as_f32));
    device
        .kernel(Module::Norm, NAMES[x.dtype().index()][out.index()])?
        .tensor(x)
        .optional(weight.as_ref())
        .float(affine.weight_offset)
        .optional(bias.as_ref())
        .tensor(&y)
        .int(rows)
        .int(d)
        .int(affine.group_rows)
        .float(eps)
        .signed(teams.team_log2)
        .blocks([teams.blocks, 1, 1])
        .threads(teams.threads)
        .run()?;
    Ok(y)
}

pub(super) fn rms_norm(device: &CudaDevice, x: &Tensor, weight: &Tensor, eps: f32, out: Dtype) -> Result<Tensor> {
    const OP: &str = "rms_norm";
    const NAMES: [[&str; 2]; 2] =
        [["rms_norm_f32_f32", "rms_norm_f32_bf16"], ["rms_norm_bf16_f32", "rms_norm_bf16_bf16"]];
    let (rows, d, y) = rows_and_result(device, x, out)?;
    let teams = Teams::of(OP, rows, d, x.dtype(), out)?;
    device
        .kernel(Module::Norm, NAMES[x.dtype().index()][out.index()])?
        .tensor(x)
        .tensor(&as_f32(weight))
        .tensor(&y)
        .int(rows)
        .int(d)
        .float(eps)
        .signed(teams.team_log2)
        .blocks([teams.blocks, 1, 1])
        .threads(teams.threads)
        .run()?;
    Ok(y)
}

pub(super) fn channel_norm_silu(device: &CudaDevice, x: &Tensor, gamma: &Tensor, silu: bool) -> Result<Tensor> {
    const OP: &str = "channel_norm_silu";
    const NAMES: [&str; 2] = ["channel_norm_silu_f32", "channel_norm_silu_bf16"];
    let (rows, d, y) = rows_and_result(device, x, x.dtype())?;
    let teams = Teams::of(OP, rows, d, x.dtype(), x.dtype())?;
    device
        .kernel(Module::Norm, NAMES[x.dtype().index()])?
        .tensor(x)
        .tensor(&as_f32(gamma))
        .tensor(&y)
        .int(rows)
        .int(d)
        .int(usize::from(silu))
        .signed(teams.team_log2)
        .blocks([teams.blocks, 1, 1])
        .threads(teams.threads)
        .run()?;
    Ok(y)
}

/// Rows and width of x over its last dimension (which the caller has found to be above 0), and a tensor for the result.
fn rows_and_result(device: &CudaDevice, x: &Tensor, out: Dtype) -> Result<(usize, usize, Tensor)> {
    let d = x.shape().last().copied().unwrap_or(1);
    Ok((x.len() / d, d, device.empty(x.shape(), out)?))
}

/// The kernels read weights in f32.
pub(crate) fn as_f32(weight: &Tensor) -> Tensor {
    weight.to_dtype(Dtype::F32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn teams_fit_the_width_and_cover_every_row() {
        let of = |rows, d, dtype| {
            let Teams { team_log2, threads, blocks } = Teams::of("test", rows, d, dtype, dtype).unwrap();
            (team_log2, threads, blocks)
        };
        assert_eq!(of(1000, 96, Dtype::Bf16), (2, 256, 16));
        assert_eq!(of(1000, 384, Dtype::Bf16), (4, 256, 63));
        assert_eq!(of(7, 1536, Dtype::Bf16), (-1, 64, 7));
        assert_eq!(of(7, 1536, Dtype::F32), (-1, 96, 7));
        assert_eq!(of(7, 1, Dtype::F32), (0, 256, 1));
        assert_eq!(of(7, ROW_MAX, Dtype::F32), (-1, 1024, 7));
        assert_eq!(of(7, ROW_MAX, Dtype::Bf16), (-1, 512, 7));
        assert!(Teams::of("test", 7, ROW_MAX + 1, Dtype::F32, Dtype::F32).is_err());
        assert!(Teams::of("test", ROWS_MAX + 1, 8, Dtype::F32, Dtype::F32).is_err());
    }
}
