//! Weights in device memory: rows as torch has them, padded to whole 16-byte chunks.

use super::bias_values;
use crate::cuda::{CudaBuffer, CudaDevice, Module};
use crate::error::{Error, Result, argument_error, shape_error};
use crate::tensor::{Dtype, Tensor};

/// What is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    F32,
    Bf16,
    Int8,
    E4m3,
}

impl Kind {
    /// Bytes of a value.
    pub(super) fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Int8 | Self::E4m3 => 1,
        }
    }

    /// 16-byte chunks of a row of k values.
    pub(super) fn chunks(self, k: usize) -> usize {
        (k * self.size_bytes()).div_ceil(16)
    }
}

/// Least compute capability of the kernels that multiply e4m3.
const E4M3_CAPABILITY: (u32, u32) = (8, 9);

/// The weight and bias of a linear layer on a device.
#[derive(Debug)]
pub(super) struct CudaLinear {
    pub(super) device: CudaDevice,
    pub(super) kind: Kind,
    pub(super) n: usize,
    pub(super) k: usize,
    /// n rows of `kind.chunks(k)` chunks, zeros from k on.
    pub(super) rows: Rows,
    /// f32 `[n]`, for kinds of 8 bits.
    pub(super) scales: Option<CudaBuffer>,
    /// f32 `[n]`.
    pub(super) bias: Option<Tensor>,
    /// The bias in bf16, where that loses nothing: what cuBLASLt adds to bf16 results.
    pub(super) bias_bf16: Option<CudaBuffer>,
}

/// Rows of values, padded to whole chunks.
#[derive(Debug)]
pub(super) enum Rows {
    /// A tensor that lies so already.
    Shared(Tensor),
    Own(CudaBuffer),
}

impl Rows {
    pub(super) fn address(&self) -> u64 {
        match self {
            Self::Shared(tensor) => tensor.cuda().map_or(0, |cuda| cuda.buffer.pointer()),
            Self::Own(buffer) => buffer.pointer(),
        }
    }
}

impl CudaLinear {
    pub(super) fn new(
        op: &'static str,
        device: &CudaDevice,
        weight: &Tensor,
        shape: [usize; 2],
        bias: Option<&Tensor>,
        dtype: Dtype,
    ) -> Result<Self> {
        let rows = padded_rows(device, weight, shape, dtype)?;
        let kind = match dtype {
            Dtype::F32 => Kind::F32,
            Dtype::Bf16 => Kind::Bf16,
        };
        Self::packed(op, device, kind, shape, (rows, None), bias)
    }

    pub(super) fn int8(
        op: &'static str,
        device: &CudaDevice,
        weight: &Tensor,
        shape: [usize; 2],
        bias: Option<&Tensor>,
    ) -> Result<Self> {
        let (rows, scales) = quantised_rows(device, weight, shape, Kind::Int8, true)?;
        check_scales(op, &scales, shape[0])?;
        Self::packed(op, device, Kind::Int8, shape, (Rows::Own(rows), Some(scales)), bias)
    }

    pub(super) fn e4m3(
        op: &'static str,
        device: &CudaDevice,
        weight: &Tensor,
        shape: [usize; 2],
        bias: Option<&Tensor>,
    ) -> Result<Self> {
        check_e4m3(op, device.info().capability)?;
        let (rows, scales) = quantised_rows(device, weight, shape, Kind::E4m3, false)?;
        check_scales(op, &scales, shape[0])?;
        Self::packed(op, device, Kind::E4m3, shape, (Rows::Own(rows), Some(scales)), bias)
    }

    /// The caller has checked the lengths and scales.
    pub(super) fn from_int8(
        op: &'static str,
        device: &CudaDevice,
        weight: &[i8],
        scales: &[f32],
        shape: [usize; 2],
        bias: Option<&Tensor>,
    ) -> Result<Self> {
        let [n, k] = shape;
        let pitch = 16 * Kind::Int8.chunks(k);
        let rows = if pitch == k {
            device.upload(op, weight)?
        } else {
            let mut padded = vec![0i8; n * pitch];
            padded
                .chunks_exact_mut(pitch)
                .zip(weight.chunks_exact(k))
                .for_each(|(to, row)| to[..k].copy_from_slice(row));
            device.upload(op, &padded)?
        };
        let scales = device.upload(op, scales)?;
        let bias = bias.map(|bias| bias.to_device(device)).transpose()?;
        Self::packed(op, device, Kind::Int8, shape, (Rows::Own(rows), Some(scales)), bias.as_ref())
    }

    fn packed(
        op: &'static str,
        device: &CudaDevice,
        kind: Kind,
        [n, k]: [usize; 2],
        (rows, scales): (Rows, Option<CudaBuffer>),
        bias: Option<&Tensor>,
    ) -> Result<Self> {
        let bias = bias.map(|bias| f32_rows(op, device, bias, 1, n)).transpose()?;
        let bias_bf16 = match &bias {
            Some(bias) if kind == Kind::Bf16 => exact_bf16(op, device, bias)?,
            _ => None,
        };
        Ok(Self { device: device.clone(), kind, n, k, rows, scales, bias, bias_bf16 })
    }

    pub(super) fn dtype(&self) -> Dtype {
        match self.kind {
            Kind::F32 => Dtype::F32,
            Kind::Bf16 | Kind::Int8 | Kind::E4m3 => Dtype::Bf16,
        }
    }

    pub(super) fn stored_bytes(&self) -> usize {
        let vectors = usize::from(self.bias.is_some()) + usize::from(self.scales.is_some());
        let bias_bf16 = self.bias_bf16.as_ref().map_or(0, CudaBuffer::bytes);
        16 * self.n * self.kind.chunks(self.k) + 4 * self.n * vectors + bias_bf16
    }
}

pub(super) fn check_e4m3(op: &'static str, capability: (u32, u32)) -> Result<()> {
    if capability >= E4M3_CAPABILITY {
        return Ok(());
    }
    let ((major, minor), (needed, of)) = (capability, E4M3_CAPABILITY);
    let detail = format!(
        "e4m3 products need a device of compute capability {needed}.{of} or newer, this one has {major}.{minor}"
    );
    Err(Error::DeviceKernel { op, detail })
}

fn check_scales(op: &'static str, scales: &CudaBuffer, n: usize) -> Result<()> {
    match scales.read::<f32>(op, 0, n)?.iter().position(|scale| !scale.is_finite()) {
        None => Ok(()),
        Some(j) => argument_error(op, format!("the weight of output {j} is not finite")),
    }
}

/// The bias rounded to bf16, if that changes none of its values.
fn exact_bf16(op: &'static str, device: &CudaDevice, bias: &Tensor) -> Result<Option<CudaBuffer>> {
    let host = bias.to_host()?;
    let values = bias_values(op, Some(&host), host.len())?.map_or(vec![], |values| values.to_vec());
    let rounded: Vec<half::bf16> = values.iter().map(|v| half::bf16::from_f32(*v)).collect();
    let exact = values.iter().zip(&rounded).all(|(value, rounded)| rounded.to_f32() == *value);
    if exact { device.upload(op, &rounded).map(Some) } else { Ok(None) }
}

/// `rows` rows of n values, checked and as f32.
pub(super) fn f32_rows(op: &'static str, device: &CudaDevice, x: &Tensor, rows: usize, n: usize) -> Result<Tensor> {
    let shaped = match x.shape() {
        [len] => rows == 1 && *len == n,
        [count, len] => *count == rows && *len == n,
        _ => false,
    };
    if !shaped {
        return shape_error(op, format!("a vector of {n} is needed, {:?} given", x.shape()));
    }
    if x.dtype() == Dtype::F32 {
        return Ok(x.clone());
    }
    let wide = device.empty(x.shape(), Dtype::F32)?;
    copy_rows(device, x, [rows, n], Dtype::F32, n, wide.cuda().map_or(0, |cuda| cuda.buffer.pointer()))?;
    Ok(wide)
}

/// x [m, k] in `dtype`, padded to whole chunks; shared when it lies so already.
pub(super) fn padded_rows(device: &CudaDevice, x: &Tensor, [m, k]: [usize; 2], dtype: Dtype) -> Result<Rows> {
    let values = 16 / dtype.size_bytes();
    if x.dtype() == dtype && k.is_multiple_of(values) {
        return Ok(Rows::Shared(x.clone()));
    }
    let pitch = k.next_multiple_of(values);
    let padded = device.buffer("linear", m * pitch * dtype.size_bytes())?;
    copy_rows(device, x, [m, k], dtype, pitch, padded.pointer())?;
    Ok(Rows::Own(padded))
}

/// Copies x [m, k] to rows of `pitch` values of dtype `to` at `address`.
fn copy_rows(device: &CudaDevice, x: &Tensor, [m, k]: [usize; 2], to: Dtype, pitch: usize, address: u64) -> Result<()> {
    let name = match (x.dtype(), to) {
        (Dtype::F32, Dtype::F32) => "copy_rows_f32_to_f32",
        (Dtype::F32, Dtype::Bf16) => "copy_rows_f32_to_bf16",
        (Dtype::Bf16, Dtype::F32) => "copy_rows_bf16_to_f32",
        (Dtype::Bf16, Dtype::Bf16) => "copy_rows_bf16_to_bf16",
    };
    let launch = device.kernel(Module::Linear, name)?.tensor(x).address(address).int(m).int(k).int(pitch);
    launch.blocks([(m * pitch.div_ceil(8)).div_ceil(256), 1, 1]).threads(256).run()
}

/// x [m, k] as bytes of `kind` with a scale per row. `divides`: see the kernel.
pub(super) fn quantised_rows(
    device: &CudaDevice,
    x: &Tensor,
    [m, k]: [usize; 2],
    kind: Kind,
    divides: bool,
) -> Result<(CudaBuffer, CudaBuffer)> {
    let pitch = 16 * kind.chunks(k);
    let (rows, scales) = (device.buffer("linear", m * pitch)?, device.buffer("linear", 4 * m)?);
    let name = match (kind, x.dtype()) {
        (Kind::E4m3, Dtype::F32) => "quantise_e4m3_f32",
        (Kind::E4m3, Dtype::Bf16) => "quantise_e4m3_bf16",
        (_, Dtype::F32) => "quantise_int8_f32",
        (_, Dtype::Bf16) => "quantise_int8_bf16",
    };
    let launch = device.kernel(Module::Linear, name)?.tensor(x).buffer(&rows).buffer(&scales);
    launch.int(k).int(pitch).int(usize::from(divides)).blocks([m, 1, 1]).threads(256).run()?;
    Ok((rows, scales))
}
