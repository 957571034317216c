//! Launches of `cuda/layout.cu`: copies on a device.

use crate::cuda::{CudaDevice, Fields, Module};
use crate::error::Result;
use crate::tensor::{Dtype, Tensor};

/// Threads of a block, units that a thread of a copy moves, parts of a kernel that joins.
const THREADS: usize = 256;
const UNITS: usize = 4;
const PARTS_MAX: usize = 16;
/// Units of a tile of a transpose, dimensions of a permutation.
const TILE: usize = 1024;
const DIMENSIONS: usize = 7;

/// Columns `start..start + count` of a matrix [rows, width].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) values: &'a Tensor,
    pub(crate) width: usize,
    pub(crate) start: usize,
    pub(crate) count: usize,
}

impl<'a> Part<'a> {
    /// All of a tensor's last dimension.
    pub(crate) fn whole(values: &'a Tensor) -> Self {
        let width = values.shape().last().copied().unwrap_or(1);
        Self { values, width, start: 0, count: width }
    }
}

/// The parts side by side, as a tensor of `shape` = [rows…, Σ count].
pub(crate) fn join_rows(device: &CudaDevice, parts: &[Part<'_>], shape: &[usize], dtype: Dtype) -> Result<Tensor> {
    const NAMES: [&str; 3] = ["join_rows_2", "join_rows_4", "join_rows_16"];
    if parts.len() > PARTS_MAX {
        return join_many(device, parts, shape, dtype);
    }
    let y = device.empty(shape, dtype)?;
    let width: usize = parts.iter().map(|part| part.count).sum();
    let lengths = parts.iter().flat_map(|part| [part.width, part.start, part.count]);
    let (version, unit) = unit(lengths.map(|n| n * dtype.size_bytes()));
    let units = |n: usize| n * dtype.size_bytes() / unit;
    let ints = |fields: Fields, of: &dyn Fn(&Part<'_>) -> usize| {
        fields.ints(PARTS_MAX, parts.iter().map(|part| units(of(part)) as i32))
    };
    let addresses = Fields::default().tensors(PARTS_MAX, parts.iter().map(|part| part.values));
    let fields = ints(ints(addresses, &|part| part.width), &|part| part.start);
    let ends = parts.iter().scan(0, |end, part| {
        *end += units(part.count);
        Some(*end as i32)
    });
    device
        .kernel(Module::Layout, NAMES[version])?
        .bytes(fields.ints(PARTS_MAX, ends).bytes())
        .tensor(&y)
        .long(y.len() / width.max(1))
        .int(units(width))
        .blocks(blocks(units(y.len())))
        .threads(THREADS)
        .run()?;
    Ok(y)
}

/// More parts than a kernel takes: each lot is a part of its own.
fn join_many(device: &CudaDevice, parts: &[Part<'_>], shape: &[usize], dtype: Dtype) -> Result<Tensor> {
    let join = |lot: &[Part<'_>]| {
        let mut narrow = shape.to_vec();
        narrow[shape.len() - 1] = lot.iter().map(|part| part.count).sum();
        join_rows(device, lot, &narrow, dtype)
    };
    let lots = parts.chunks(PARTS_MAX).map(join).collect::<Result<Vec<Tensor>>>()?;
    let parts: Vec<Part<'_>> = lots.iter().map(Part::whole).collect();
    join_rows(device, &parts, shape, dtype)
}

/// Rows `ids` of a matrix of width `d`.
pub(crate) fn gather_rows(device: &CudaDevice, table: &Tensor, ids: &[u32], d: usize) -> Result<Tensor> {
    const OP: &str = "gather_rows";
    const NAMES: [&str; 3] = ["gather_rows_2", "gather_rows_4", "gather_rows_16"];
    let bytes = table.dtype().size_bytes();
    let (version, unit) = unit([d * bytes]);
    let y = device.empty(&[ids.len(), d], table.dtype())?;
    let rows = device.upload(OP, ids)?;
    device
        .kernel(Module::Layout, NAMES[version])?
        .tensor(table)
        .buffer(&rows)
        .tensor(&y)
        .long(ids.len())
        .int(d * bytes / unit)
        .blocks(blocks(y.len() * bytes / unit))
        .threads(THREADS)
        .run()?;
    Ok(y)
}

/// x [rows, columns] → [columns, rows], as a tensor of `shape`.
pub(super) fn transpose(
    device: &CudaDevice,
    x: &Tensor,
    [rows, columns]: [usize; 2],
    shape: &[usize],
) -> Result<Tensor> {
    const NAMES: [&str; 2] = ["transpose_4", "transpose_2"];
    let y = device.empty(shape, x.dtype())?;
    // Tiles are square, or as narrow as the matrix.
    let tile_rows = if columns < 32 && rows >= 32 { TILE / columns.max(1) } else { rows.clamp(1, 32) };
    device
        .kernel(Module::Layout, NAMES[x.dtype().index()])?
        .tensor(x)
        .tensor(&y)
        .long(rows)
        .long(columns)
        .int(tile_rows)
        .blocks([rows.div_ceil(tile_rows) * columns.div_ceil(TILE / tile_rows), 1, 1])
        .threads(THREADS)
        .run()?;
    Ok(y)
}

/// y of `shape`, seen as one of `extents`, whose element (i₀, i₁, …) is x's at Σ iₖ · strideₖ.
pub(super) fn permute(
    device: &CudaDevice,
    x: &Tensor,
    extents: [usize; DIMENSIONS],
    strides: [usize; DIMENSIONS],
    shape: &[usize],
) -> Result<Tensor> {
    const NAMES: [&str; 2] = ["permute_4", "permute_2"];
    let y = device.empty(shape, x.dtype())?;
    let fields =
        Fields::default().ints(DIMENSIONS, extents.map(|n| n as i32)).longs(DIMENSIONS, strides.map(|n| n as i64));
    device
        .kernel(Module::Layout, NAMES[x.dtype().index()])?
        .tensor(x)
        .tensor(&y)
        .bytes(fields.bytes())
        .long(x.len())
        .blocks([x.len().div_ceil(THREADS), 1, 1])
        .threads(THREADS)
        .run()?;
    Ok(y)
}

fn blocks(units: usize) -> [usize; 3] {
    [units.div_ceil(THREADS * UNITS), 1, 1]
}

/// The place in a table of names, and the bytes, of the largest unit of which all lengths are multiples; all are even.
fn unit(lengths_bytes: impl IntoIterator<Item = usize>) -> (usize, usize) {
    let all = lengths_bytes.into_iter().fold(0, |all, bytes| all | bytes);
    if all.is_multiple_of(16) {
        (2, 16)
    } else if all.is_multiple_of(4) {
        (1, 4)
    } else {
        (0, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_divide_all_lengths() {
        assert_eq!([unit([32, 0, 48]), unit([32, 4]), unit([12, 6]), unit([])], [(2, 16), (1, 4), (0, 2), (2, 16)]);
    }
}
