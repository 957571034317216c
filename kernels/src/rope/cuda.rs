//! Launches of `cuda/rope.cu`, and a table's copies on devices.

use std::sync::{Arc, Mutex, PoisonError};

use super::RopeTable;
use crate::cuda::{CudaBuffer, CudaDevice, Module};
use crate::error::Result;
use crate::norm::cuda::{Teams, as_f32};
use crate::tensor::{Dtype, Tensor};

/// A table on the devices that have asked for it: [tokens, head_dim] of f32, cosine and sine of each pair in turn.
#[derive(Debug, Clone, Default)]
pub(super) struct Copies(Arc<Mutex<Vec<Arc<CudaBuffer>>>>);

impl Copies {
    /// The copy on `device`, made at the first call.
    pub(super) fn on(&self, op: &'static str, device: &CudaDevice, table: &RopeTable) -> Result<Arc<CudaBuffer>> {
        // Each change is a single one.
        let mut copies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = copies.iter().find(|copy| copy.device().is(device)) {
            return Ok(Arc::clone(copy));
        }
        let pairs = table.cos.chunks_exact(2).zip(table.sin.chunks_exact(2));
        let angles: Vec<f32> = pairs.flat_map(|(cos, sin)| [cos[0], sin[1]]).collect();
        let copy = Arc::new(device.upload(op, &angles)?);
        // What a device held before it was reset is of no use any more.
        copies.retain(|copy| copy.device().info().ordinal != device.info().ordinal);
        copies.push(Arc::clone(&copy));
        Ok(copy)
    }
}

pub(super) fn rope(device: &CudaDevice, x: &Tensor, table: &RopeTable) -> Result<Tensor> {
    const OP: &str = "rope";
    const NAMES: [&str; 2] = ["rope_f32", "rope_bf16"];
    let &[rows, d] = x.shape() else { unreachable!("the caller has checked the shape") };
    let y = device.empty(x.shape(), x.dtype())?;
    let teams = Teams::of(OP, rows, d, x.dtype(), x.dtype())?;
    let angles = table.copies.on(OP, device, table)?;
    device
        .kernel(Module::Rope, NAMES[x.dtype().index()])?
        .tensor(x)
        .buffer(&angles)
        .tensor(&y)
        .int(rows)
        .int(d)
        .int(table.head_dim)
        .int(table.tokens)
        .signed(teams.team_log2)
        .blocks([teams.blocks, 1, 1])
        .threads(teams.threads)
        .run()?;
    Ok(y)
}

pub(super) fn rms_norm_rope(
    device: &CudaDevice,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    table: &RopeTable,
    out: Dtype,
) -> Result<Tensor> {
    const OP: &str = "rms_norm_rope";
    const NAMES: [[&str; 2]; 2] =
        [["rms_norm_rope_f32_f32", "rms_norm_rope_f32_bf16"], ["rms_norm_rope_bf16_f32", "rms_norm_rope_bf16_bf16"]];
    let &[rows, d] = x.shape() else { unreachable!("the caller has checked the shape") };
    let y = device.empty(x.shape(), out)?;
    let teams = Teams::of(OP, rows, d, x.dtype(), out)?;
    let angles = table.copies.on(OP, device, table)?;
    device
        .kernel(Module::Rope, NAMES[x.dtype().index()][out.index()])?
        .tensor(x)
        .tensor(&as_f32(weight))
        .float(eps)
        .buffer(&angles)
        .tensor(&y)
        .int(rows)
        .int(d)
        .int(table.head_dim)
        .int(table.tokens)
        .signed(teams.team_log2)
        .blocks([teams.blocks, 1, 1])
        .threads(teams.threads)
        .run()?;
    Ok(y)
}
