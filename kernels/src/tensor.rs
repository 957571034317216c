//! Contiguous tensors: a shape of one to five dimensions over shared storage on a device.

use std::ops::{Deref, Range};
use std::sync::Arc;

use half::bf16;
use half::slice::HalfFloatSliceExt;

use crate::buffer::{Buffer, Zero};
use crate::copy;
use crate::cuda::{CudaBuffer, CudaDevice, device_of};
use crate::error::{Result, argument_error, dtype_error, shape_error};
use crate::layout::cuda as layout;

/// Where a tensor lives and its operations run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// Host memory; operations run on rayon's current thread pool.
    Cpu,
    /// The NVIDIA device of this number; operations are queued on its stream.
    Cuda(usize),
}

/// Element type of a tensor, and of the multiplications that read packed weights.
///
/// `F32` is the parity mode. `Bf16` rounds weights and activations to bfloat16 where matrix products read them and still
/// sums in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// bfloat16: the upper half of a binary32.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }

    /// Its place in a table of a kernel's versions: f32, then bf16.
    pub(crate) fn index(self) -> usize {
        match self {
            Dtype::F32 => 0,
            Dtype::Bf16 => 1,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Storage {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
    Cuda(CudaStorage),
}

/// Elements in device memory.
#[derive(Debug)]
pub(crate) struct CudaStorage {
    pub(crate) buffer: CudaBuffer,
    pub(crate) dtype: Dtype,
    pub(crate) len: usize,
}

/// A contiguous, row-major tensor. Cloning and reshaping share the storage; operations return new tensors.
///
/// What is made from host values inside [`CudaDevice::scope`] is copied to that device.
#[derive(Debug, Clone)]
pub struct Tensor {
    storage: Arc<Storage>,
    shape: Vec<usize>,
}

const RANK_MAX: usize = 5;

impl Tensor {
    /// A tensor of `Dtype::F32` from a slice in row-major order, which is copied.
    pub fn from_f32(data: &[f32], shape: &[usize]) -> Result<Self> {
        check_shape("Tensor::from_f32", data.len(), shape)?;
        match CudaDevice::current() {
            Some(device) => Self::uploaded(&device, data, Dtype::F32, shape),
            None => Ok(Self::new(Storage::F32(Buffer::from_slice(data)), shape)),
        }
    }

    /// Like [`Tensor::from_f32`], taking the buffer over without a copy.
    pub fn from_vec(data: Vec<f32>, shape: &[usize]) -> Result<Self> {
        check_shape("Tensor::from_f32", data.len(), shape)?;
        match CudaDevice::current() {
            Some(device) => Self::uploaded(&device, &data, Dtype::F32, shape),
            None => Ok(Self::new(Storage::F32(data.into()), shape)),
        }
    }

    /// A tensor of `Dtype::Bf16` from a slice in row-major order.
    pub fn from_bf16(data: &[bf16], shape: &[usize]) -> Result<Self> {
        check_shape("Tensor::from_bf16", data.len(), shape)?;
        match CudaDevice::current() {
            Some(device) => Self::uploaded(&device, data, Dtype::Bf16, shape),
            None => Ok(Self::new(Storage::Bf16(Buffer::from_slice(data)), shape)),
        }
    }

    /// A tensor of zeros.
    pub fn zeros(shape: &[usize], dtype: Dtype) -> Result<Self> {
        let len = element_count("Tensor::zeros", shape)?;
        check_shape("Tensor::zeros", len, shape)?;
        if let Some(device) = CudaDevice::current() {
            let zeros = device.empty(shape, dtype)?;
            if let Some(cuda) = zeros.cuda() {
                cuda.buffer.clear("Tensor::zeros")?;
            }
            return Ok(zeros);
        }
        let storage = match dtype {
            Dtype::F32 => Storage::F32(Buffer::zeros(len)),
            Dtype::Bf16 => Storage::Bf16(Buffer::zeros(len)),
        };
        Ok(Self::new(storage, shape))
    }

    /// Lengths of the dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match &*self.storage {
            Storage::F32(v) => v.len(),
            Storage::Bf16(v) => v.len(),
            Storage::Cuda(v) => v.len,
        }
    }

    /// True when there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        match &*self.storage {
            Storage::F32(_) => Dtype::F32,
            Storage::Bf16(_) => Dtype::Bf16,
            Storage::Cuda(v) => v.dtype,
        }
    }

    /// Where the storage lives.
    pub fn device(&self) -> Device {
        match self.cuda() {
            Some(cuda) => Device::Cuda(cuda.buffer.device().info().ordinal),
            None => Device::Cpu,
        }
    }

    /// A copy in host memory, for which the device is waited for; shares the storage when it is there already.
    pub fn to_host(&self) -> Result<Self> {
        const OP: &str = "Tensor::to_host";
        let Some(CudaStorage { buffer, dtype, len }) = self.cuda() else { return Ok(self.clone()) };
        let storage = match dtype {
            Dtype::F32 => Storage::F32(buffer.read(OP, 0, *len)?),
            Dtype::Bf16 => Storage::Bf16(buffer.read(OP, 0, *len)?),
        };
        Ok(Self::new(storage, &self.shape))
    }

    /// A copy on `device`; shares the storage when it is there already.
    pub fn to_device(&self, device: &CudaDevice) -> Result<Self> {
        match &*self.storage {
            Storage::F32(v) => Self::uploaded(device, v, Dtype::F32, &self.shape),
            Storage::Bf16(v) => Self::uploaded(device, v, Dtype::Bf16, &self.shape),
            Storage::Cuda(cuda) if cuda.buffer.device().is(device) => Ok(self.clone()),
            Storage::Cuda(_) => self.to_host()?.to_device(device),
        }
    }

    /// Overwrites the elements of an f32 tensor, wherever it lives and whoever shares its storage on a device: how a
    /// recorded graph gets new inputs.
    pub fn write_f32(&mut self, values: &[f32]) -> Result<()> {
        const OP: &str = "Tensor::write_f32";
        if values.len() != self.len() || self.dtype() != Dtype::F32 {
            return shape_error(OP, format!("{} f32 values for {:?} {:?}", values.len(), self.dtype(), self.shape));
        }
        match self.cuda() {
            Some(cuda) => cuda.buffer.write(OP, 0, values),
            None => {
                self.f32_mut(OP)?.copy_from_slice(values);
                Ok(())
            }
        }
    }

    /// A copy that shares nothing with this tensor, in the same place.
    pub fn duplicate(&self) -> Result<Self> {
        let mut copy = self.clone();
        copy.unique("Tensor::duplicate")?;
        Ok(copy)
    }

    /// Overwrites the elements with those of `source`, of the same shape and dtype and in the same place; on a device,
    /// whoever shares this tensor's storage sees them too.
    pub fn overwrite(&mut self, source: &Self) -> Result<()> {
        const OP: &str = "Tensor::overwrite";
        if self.shape != source.shape || self.dtype() != source.dtype() {
            return shape_error(OP, format!("{:?} does not take {:?}", self.shape, source.shape));
        }
        match (self.cuda(), source.cuda()) {
            (Some(to), Some(from)) => to.buffer.copy(OP, 0, &from.buffer, 0, from.buffer.bytes()),
            (None, None) => {
                self.storage = Arc::clone(&source.storage);
                Ok(())
            }
            _ => argument_error(OP, "the tensors are not in one place"),
        }
    }

    /// The elements as f32, in row-major order. Waits for the device where they are on one; NaN if that device has failed,
    /// which its next operation tells.
    pub fn to_vec_f32(&self) -> Vec<f32> {
        self.f32_values().to_vec()
    }

    /// The same values in another element type; shares the storage when the type is already right.
    pub fn to_dtype(&self, dtype: Dtype) -> Self {
        match dtype {
            _ if self.dtype() == dtype => self.clone(),
            _ => crate::elementwise::convert(self, dtype),
        }
    }

    /// The same storage under another shape of as many elements.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        check_shape("Tensor::reshape", self.len(), shape)?;
        Ok(Self { storage: Arc::clone(&self.storage), shape: shape.to_vec() })
    }

    /// A copy of entries `range` of the outermost dimension (frames of a clip, rows of a matrix).
    pub fn slice_outer(&self, range: Range<usize>) -> Result<Self> {
        let outer = self.shape[0];
        if range.start > range.end || range.end > outer {
            return argument_error("Tensor::slice_outer", format!("{range:?} is outside of 0..{outer}"));
        }
        let inner: usize = self.shape[1..].iter().product();
        let elements = range.start * inner..range.end * inner;
        let mut shape = self.shape.clone();
        shape[0] = range.len();
        let storage = match &*self.storage {
            Storage::F32(v) => Storage::F32(Buffer::from_slice(&v[elements])),
            Storage::Bf16(v) => Storage::Bf16(Buffer::from_slice(&v[elements])),
            Storage::Cuda(CudaStorage { buffer, dtype, .. }) => {
                let (part, bytes) = (buffer.device().empty(&shape, *dtype)?, dtype.size_bytes());
                part.copy_from("Tensor::slice_outer", 0, self, elements.start * bytes, elements.len() * bytes)?;
                return Ok(part);
            }
        };
        Ok(Self::new(storage, &shape))
    }

    /// Tensors joined along the outermost dimension; the other dimensions and the dtypes must agree.
    pub fn concat_outer(parts: &[&Tensor]) -> Result<Self> {
        const OP: &str = "Tensor::concat_outer";
        let Some(first) = parts.first() else { return argument_error(OP, "needs at least one tensor") };
        if let Some(odd) = parts.iter().find(|p| p.shape[1..] != first.shape[1..]) {
            return shape_error(OP, format!("{:?} and {:?} differ past the first dimension", first.shape, odd.shape));
        }
        let mut shape = first.shape.clone();
        shape[0] = parts.iter().map(|p| p.shape[0]).sum();
        if let Some(device) = device_of(OP, parts)? {
            check_dtypes(OP, parts)?;
            let (joined, mut to) = (device.empty(&shape, first.dtype())?, 0);
            for part in parts {
                let bytes = part.len() * part.dtype().size_bytes();
                joined.copy_from(OP, to, part, 0, bytes)?;
                to += bytes;
            }
            return Ok(joined);
        }
        match first.dtype() {
            Dtype::F32 => Ok(Self::new(Storage::F32(join(OP, parts, Tensor::as_f32)?), &shape)),
            Dtype::Bf16 => Ok(Self::new(Storage::Bf16(join(OP, parts, Tensor::as_bf16)?), &shape)),
        }
    }

    /// Element `i` of the result (of `shape`) is element `from(i)` of this tensor, which is in host memory.
    pub(crate) fn rearranged(&self, shape: &[usize], from: impl Fn(usize) -> usize) -> Self {
        let order = (0..self.len()).map(from);
        let storage = match &*self.storage {
            Storage::F32(v) => Storage::F32(Buffer::collect(v.len(), order.map(|i| v[i]))),
            Storage::Bf16(v) => Storage::Bf16(Buffer::collect(v.len(), order.map(|i| v[i]))),
            Storage::Cuda(_) => unreachable!("devices have kernels for each order"),
        };
        Self::new(storage, shape)
    }

    /// Rows `ids` (checked by the caller) of a matrix of width `d`.
    pub(crate) fn gather_rows(&self, ids: &[u32], d: usize) -> Result<Self> {
        fn gather<T: Copy>(values: &[T], ids: &[u32], d: usize) -> Buffer<T> {
            let mut rows = Buffer::with_capacity(ids.len() * d);
            ids.iter().for_each(|&id| rows.extend_from_slice(&values[id as usize * d..][..d]));
            rows
        }
        let storage = match &*self.storage {
            Storage::F32(v) => Storage::F32(gather(v, ids, d)),
            Storage::Bf16(v) => Storage::Bf16(gather(v, ids, d)),
            Storage::Cuda(v) => return layout::gather_rows(v.buffer.device(), self, ids, d),
        };
        Ok(Self::new(storage, &[ids.len(), d]))
    }

    /// Entries `range` (checked by the caller) of the last dimension, as a tensor of `shape`.
    pub(crate) fn slice_inner(&self, shape: &[usize], range: Range<usize>) -> Result<Self> {
        fn cut<T: Copy + Send + Sync>(values: &[T], width: usize, range: &Range<usize>) -> Buffer<T> {
            let rows = values.len() / width.max(1);
            copy::join_rows(rows, &[copy::Part { values, width, start: range.start, count: range.len() }])
        }
        let width = self.shape[self.shape.len() - 1];
        let storage = match &*self.storage {
            Storage::F32(v) => Storage::F32(cut(v, width, &range)),
            Storage::Bf16(v) => Storage::Bf16(cut(v, width, &range)),
            Storage::Cuda(v) => {
                let part = layout::Part { values: self, width, start: range.start, count: range.len() };
                return layout::join_rows(v.buffer.device(), &[part], shape, v.dtype);
            }
        };
        Ok(Self::new(storage, shape))
    }

    /// Tensors joined along the last dimension; the caller has checked the other dimensions.
    pub(crate) fn concat_inner(op: &'static str, parts: &[&Tensor]) -> Result<Self> {
        let mut shape = parts[0].shape.clone();
        let last = shape.len() - 1;
        let rows: usize = shape[..last].iter().product();
        shape[last] = parts.iter().map(|p| p.shape[last]).sum();
        if let Some(device) = device_of(op, parts)? {
            check_dtypes(op, parts)?;
            let whole: Vec<layout::Part<'_>> = parts.iter().map(|part| layout::Part::whole(part)).collect();
            return layout::join_rows(&device, &whole, &shape, parts[0].dtype());
        }
        match parts[0].dtype() {
            Dtype::F32 => Ok(Self::new(Storage::F32(interleave(op, parts, rows, Tensor::as_f32)?), &shape)),
            Dtype::Bf16 => Ok(Self::new(Storage::Bf16(interleave(op, parts, rows, Tensor::as_bf16)?), &shape)),
        }
    }

    /// A matrix [m, k] in host memory with a column of zeros added: bf16 products read pairs.
    pub(crate) fn with_zero_column(&self, m: usize, k: usize) -> Self {
        fn widen<T: Copy + Default>(values: &[T], m: usize, k: usize) -> Buffer<T> {
            let rows = values.chunks_exact(k).flat_map(|row| row.iter().copied().chain([T::default()]));
            Buffer::collect(m * (k + 1), rows)
        }
        let storage = match &*self.storage {
            Storage::F32(v) => Storage::F32(widen(v, m, k)),
            Storage::Bf16(v) => Storage::Bf16(widen(v, m, k)),
            Storage::Cuda(_) => unreachable!("products on a device pad what they read"),
        };
        Self::new(storage, &[m, k + 1])
    }

    /// Copies `bytes` from byte `from` of another tensor on the same device to byte `to` of this one, which nobody shares.
    fn copy_from(&self, op: &'static str, to: usize, source: &Self, from: usize, bytes: usize) -> Result<()> {
        match (self.cuda(), source.cuda()) {
            (Some(target), Some(source)) => target.buffer.copy(op, to, &source.buffer, from, bytes),
            _ => argument_error(op, "a copy between host and device"),
        }
    }

    fn uploaded<T: Zero>(device: &CudaDevice, values: &[T], dtype: Dtype, shape: &[usize]) -> Result<Self> {
        let copy = device.empty(shape, dtype)?;
        if let Some(cuda) = copy.cuda() {
            cuda.buffer.write("Tensor", 0, values)?;
        }
        Ok(copy)
    }

    /// The elements, when they are in device memory.
    pub(crate) fn cuda(&self) -> Option<&CudaStorage> {
        match &*self.storage {
            Storage::Cuda(cuda) => Some(cuda),
            Storage::F32(_) | Storage::Bf16(_) => None,
        }
    }

    /// Makes this tensor the only owner of its storage, by a copy when it is shared: to be called before writing in place.
    pub(crate) fn unique(&mut self, op: &'static str) -> Result<()> {
        if Arc::get_mut(&mut self.storage).is_some() {
            return Ok(());
        }
        let copy = match &*self.storage {
            Storage::F32(v) => Storage::F32(Buffer::from_slice(v)),
            Storage::Bf16(v) => Storage::Bf16(Buffer::from_slice(v)),
            Storage::Cuda(CudaStorage { buffer, dtype, len }) => {
                let copy = buffer.device().buffer(op, buffer.bytes())?;
                copy.copy(op, 0, buffer, 0, buffer.bytes())?;
                Storage::Cuda(CudaStorage { buffer: copy, dtype: *dtype, len: *len })
            }
        };
        self.storage = Arc::new(copy);
        Ok(())
    }

    pub(crate) fn new(storage: Storage, shape: &[usize]) -> Self {
        Self { storage: Arc::new(storage), shape: shape.to_vec() }
    }

    /// A result computed in f32, stored as `dtype`. The caller has made the length fit the shape.
    pub(crate) fn from_result(data: Vec<f32>, shape: &[usize], dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::new(Storage::F32(data.into()), shape),
            Dtype::Bf16 => Self::new(Storage::Bf16(round_bf16(&data)), shape),
        }
    }

    /// The elements in row-major order, when they are stored as f32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &*self.storage {
            Storage::F32(v) => Some(v),
            Storage::Bf16(_) | Storage::Cuda(_) => None,
        }
    }

    pub(crate) fn as_bf16(&self) -> Option<&[bf16]> {
        match &*self.storage {
            Storage::Bf16(v) => Some(v),
            Storage::F32(_) | Storage::Cuda(_) => None,
        }
    }

    /// The elements as f32, without a copy when they are stored so.
    pub(crate) fn f32_values(&self) -> F32Values<'_> {
        match &*self.storage {
            Storage::F32(v) => F32Values::Borrowed(v),
            Storage::Bf16(v) => {
                let mut wide = Buffer::zeros(v.len());
                v.convert_to_f32_slice(&mut wide);
                F32Values::Owned(wide)
            }
            Storage::Cuda(_) => match self.to_host() {
                Ok(host) => F32Values::Owned(Buffer::from_slice(&host.f32_values())),
                Err(_) => F32Values::from(vec![f32::NAN; self.len()]),
            },
        }
    }

    /// Mutable f32 elements; copies first when the storage is shared.
    pub(crate) fn f32_mut(&mut self, op: &'static str) -> Result<&mut [f32]> {
        self.unique(op)?;
        match Arc::get_mut(&mut self.storage) {
            Some(Storage::F32(v)) => Ok(v),
            Some(Storage::Cuda(_)) => argument_error(op, "the tensor written to must be in host memory"),
            _ => dtype_error(op, "the tensor written to must be f32"),
        }
    }
}

/// A tensor's elements as f32: its own, or a conversion of them.
pub(crate) enum F32Values<'a> {
    Borrowed(&'a [f32]),
    Owned(Buffer<f32>),
}

impl Deref for F32Values<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Self::Borrowed(values) => values,
            Self::Owned(values) => values,
        }
    }
}

impl From<Vec<f32>> for F32Values<'_> {
    fn from(values: Vec<f32>) -> Self {
        Self::Owned(values.into())
    }
}

fn join<T: Copy>(op: &'static str, parts: &[&Tensor], view: fn(&Tensor) -> Option<&[T]>) -> Result<Buffer<T>> {
    let mut out = Buffer::with_capacity(parts.iter().map(|p| p.len()).sum());
    for part in parts {
        match view(part) {
            Some(values) => out.extend_from_slice(values),
            None => return dtype_error(op, "the tensors differ in dtype"),
        }
    }
    Ok(out)
}

fn check_dtypes(op: &'static str, parts: &[&Tensor]) -> Result<()> {
    match parts.iter().all(|part| part.dtype() == parts[0].dtype()) {
        true => Ok(()),
        false => dtype_error(op, "the tensors differ in dtype"),
    }
}

/// One row of each part in turn.
fn interleave<T: Copy + Send + Sync>(
    op: &'static str,
    parts: &[&Tensor],
    rows: usize,
    view: fn(&Tensor) -> Option<&[T]>,
) -> Result<Buffer<T>> {
    let mut slices = Vec::with_capacity(parts.len());
    for part in parts {
        let width = part.shape[part.shape.len() - 1];
        match view(part) {
            Some(values) => slices.push(copy::Part { values, width, start: 0, count: width }),
            None => return dtype_error(op, "the tensors differ in dtype"),
        }
    }
    Ok(copy::join_rows(rows, &slices))
}

pub(crate) fn round_bf16(values: &[f32]) -> Buffer<bf16> {
    let mut out = Buffer::zeros(values.len());
    out.convert_from_f32_slice(values);
    out
}

fn element_count(op: &'static str, shape: &[usize]) -> Result<usize> {
    match shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n)) {
        Some(count) => Ok(count),
        None => shape_error(op, format!("{shape:?} has more elements than can be addressed")),
    }
}

fn check_shape(op: &'static str, len: usize, shape: &[usize]) -> Result<()> {
    if shape.is_empty() || shape.len() > RANK_MAX {
        return shape_error(op, format!("{shape:?} must have 1 to {RANK_MAX} dimensions"));
    }
    let count = element_count(op, shape)?;
    if count != len {
        return shape_error(op, format!("{shape:?} has {count} elements, the data {len}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn data_that_does_not_fill_the_shape_is_an_error_not_a_panic() {
        assert!(matches!(Tensor::from_f32(&[1.0; 5], &[2, 3]), Err(Error::ShapeMismatch { .. })));
        assert!(matches!(Tensor::from_f32(&[1.0], &[]), Err(Error::ShapeMismatch { .. })));
        assert!(matches!(Tensor::zeros(&[usize::MAX, 2], Dtype::F32), Err(Error::ShapeMismatch { .. })));
        assert!(matches!(Tensor::zeros(&[1; 6], Dtype::F32), Err(Error::ShapeMismatch { .. })));
    }

    #[test]
    fn bf16_round_trip_keeps_values_that_bf16_can_hold() {
        let values = [0.0, -1.5, 3.0, 1e30, -2.0f32.powi(-100)];
        let x = Tensor::from_f32(&values, &[5]).unwrap().to_dtype(Dtype::Bf16);
        assert_eq!(x.dtype(), Dtype::Bf16);
        let back = x.to_vec_f32();
        for (a, b) in values.iter().zip(&back) {
            assert!((a - b).abs() <= a.abs() / 256.0, "{a} came back as {b}");
        }
        assert_eq!(back[1], -1.5);
    }

    #[test]
    fn slices_and_concat_are_inverse() {
        let x = Tensor::from_vec((0..12).map(|i| i as f32).collect(), &[3, 2, 2]).unwrap();
        let (a, b) = (x.slice_outer(0..1).unwrap(), x.slice_outer(1..3).unwrap());
        assert_eq!(b.shape(), &[2, 2, 2]);
        assert_eq!(Tensor::concat_outer(&[&a, &b]).unwrap().to_vec_f32(), x.to_vec_f32());
        assert!(x.slice_outer(2..4).is_err());
        assert!(Tensor::concat_outer(&[&a, &b.to_dtype(Dtype::Bf16)]).is_err());
    }

    #[test]
    fn writing_to_a_shared_tensor_leaves_the_other_handle_alone() {
        let mut x = Tensor::zeros(&[2], Dtype::F32).unwrap();
        let other = x.clone();
        x.f32_mut("test").unwrap()[0] = 1.0;
        assert_eq!(other.to_vec_f32(), vec![0.0, 0.0]);
        assert_eq!(x.to_vec_f32(), vec![1.0, 0.0]);
    }
}
