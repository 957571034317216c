//! `linear` and `linear_residual` on a device: by cuBLASLt where it does all that is asked, else by the kernels of
//! `cuda/linear.cu`.
//!
//! Who multiplies:
//!
//! | | |
//! |---|---|
//! | cuBLASLt alone | f32, and bf16 of more than 64 rows: no activation or tanh-GELU (its GELU is that one), no gate; a bias in the result's dtype; without a gate it adds to the residual itself |
//! | cuBLASLt, then `linear_finish` | other bf16 epilogues from compute capability 9 and k = 1024 on, and e4m3 from 9 on |
//! | our kernels | everything else: int8, few rows, gates and SiLU before capability 9, and all of it where there is no cuBLASLt |
//!
//! The epilogue in a kernel of its own moves 8 bytes more per result (f32 sums written and read) than ours, which has it
//! fused. Up to capability 8.9 the library and our kernels use the same instructions, so fewer bytes decide. From 9 on the
//! library has wgmma or tcgen05, faster than mma.sync (which there has no e4m3 at all): 8 bytes at 4 TB/s are 2 ps, 2·k FLOP
//! at 450 instead of 750 TFLOP/s are 1.8·k fs, even at k of about 1100. These rates are estimates, not measurements.

use super::cublaslt::{Addresses, CublasLt, Operand, Shape};
use super::cuda_weight::{CudaLinear, Kind, Rows, f32_rows, padded_rows, quantised_rows};
use crate::activation::Activation;
use crate::cuda::{CudaBuffer, Module, device_of};
use crate::error::{Result, argument_error, dtype_error};
use crate::tensor::{Dtype, Tensor};

/// Most rows that the kernels for few rows take.
const FEW_ROWS: usize = 64;
/// Least k that pays for an epilogue of its own, where the library's products are faster than ours.
const APART_K_MIN: usize = 1024;
/// Compute capability from which on they are.
const FASTER_LIBRARY: (u32, u32) = (9, 0);

/// What is done with one product, and where it goes.
struct Call<'a> {
    x: &'a Tensor,
    m: usize,
    /// The address of the result.
    out: u64,
    dtype: Dtype,
    /// f32 [groups, n].
    gates: Option<&'a Tensor>,
    groups: usize,
    /// Whether the result is added to what is there.
    adds: bool,
    activation: Activation,
}

/// x as the product reads it.
struct Left {
    rows: Rows,
    scales: Option<CudaBuffer>,
}

/// The twin of the struct in `epilogue.cuh`.
#[repr(C)]
struct Epilogue {
    /// Bias, gates, scales of rows and of columns.
    vectors: [u64; 4],
    /// m, n, rows per gate, whether it adds, the activation's code.
    numbers: [i32; 5],
    slope: f32,
}

impl Epilogue {
    fn bytes(&self) -> Vec<u8> {
        let vectors = self.vectors.iter().flat_map(|address| address.to_ne_bytes());
        let numbers = self.numbers.iter().flat_map(|number| number.to_ne_bytes());
        vectors.chain(numbers).chain(self.slope.to_ne_bytes()).collect()
    }
}

impl CudaLinear {
    /// All tensors must be where the weight is.
    pub(super) fn check_place(&self, op: &'static str, tensors: &[&Tensor]) -> Result<()> {
        match device_of(op, tensors)? {
            Some(device) if device.is(&self.device) => Ok(()),
            Some(_) => argument_error(op, "the weight is on another device than its input"),
            None => argument_error(op, "the weight is on a device, its input in host memory"),
        }
    }

    pub(super) fn linear(&self, x: &Tensor, m: usize, activation: Activation, dtype: Dtype) -> Result<Tensor> {
        let y = self.device.empty(&[m, self.n], dtype)?;
        let out = address(&y);
        self.product(&Call { x, m, out, dtype, gates: None, groups: 1, adds: false, activation })?;
        Ok(y)
    }

    /// The caller has checked the shapes, but not that a single gate has n values.
    pub(super) fn linear_residual(
        &self,
        x: &Tensor,
        m: usize,
        gate: Option<&Tensor>,
        groups: usize,
        residual: &mut Tensor,
    ) -> Result<()> {
        const OP: &str = "linear_residual";
        if residual.dtype() != Dtype::F32 {
            return dtype_error(OP, "the tensor written to must be f32");
        }
        let gates = gate.map(|gate| f32_rows(OP, &self.device, gate, groups, self.n)).transpose()?;
        residual.unique(OP)?;
        let (out, gates, activation) = (address(residual), gates.as_ref(), Activation::None);
        self.product(&Call { x, m, out, dtype: Dtype::F32, gates, groups, adds: true, activation })
    }

    fn product(&self, call: &Call<'_>) -> Result<()> {
        if call.m == 0 {
            return Ok(());
        }
        let left = self.left(call)?;
        if let Some(library) = self.device.cublaslt()
            && self.by_library(library, call, &left)?
        {
            return Ok(());
        }
        self.by_kernel(call, &left)
    }

    fn left(&self, call: &Call<'_>) -> Result<Left> {
        let shape = [call.m, self.k];
        match self.kind {
            Kind::F32 | Kind::Bf16 => {
                Ok(Left { rows: padded_rows(&self.device, call.x, shape, self.dtype())?, scales: None })
            }
            Kind::Int8 | Kind::E4m3 => {
                let (rows, scales) = quantised_rows(&self.device, call.x, shape, self.kind, false)?;
                Ok(Left { rows: Rows::Own(rows), scales: Some(scales) })
            }
        }
    }

    fn by_kernel(&self, call: &Call<'_>, left: &Left) -> Result<()> {
        let tile = Tile::choose(self.kind, call.m, self.n, self.device.info().multiprocessors);
        let launch = self.device.kernel(Module::Linear, tile.kernel(self.kind, call.dtype))?;
        let launch = launch.address(left.rows.address()).address(self.rows.address()).address(call.out);
        let launch = launch.bytes(&self.epilogue(call, left).bytes()).int(self.kind.chunks(self.k));
        launch.blocks(tile.blocks(call.m, self.n)).threads(tile.threads()).shared_bytes(tile.shared_bytes()).run()
    }

    /// False when the library is not for this product.
    fn by_library(&self, library: &CublasLt, call: &Call<'_>, left: &Left) -> Result<bool> {
        let operand = match self.kind {
            Kind::F32 => Operand::F32,
            Kind::Bf16 if call.m > FEW_ROWS => Operand::Bf16,
            Kind::E4m3 if call.m > FEW_ROWS => Operand::E4m3,
            _ => return Ok(false),
        };
        let k = 16 * self.kind.chunks(self.k) / self.kind.size_bytes();
        let shape =
            Shape { m: call.m, n: self.n, k, operand, out: call.dtype, adds: call.adds, bias: false, gelu: false };
        let addresses = Addresses { w: self.rows.address(), x: left.rows.address(), bias: 0, out: call.out };
        if let Some(bias) = self.library_bias(call) {
            let shape = Shape { bias: bias != 0, gelu: call.activation == Activation::GeluTanh, ..shape };
            return library.multiply(&self.device, shape, Addresses { bias, ..addresses });
        }
        let worth = match operand {
            Operand::F32 => false,
            Operand::Bf16 => k >= APART_K_MIN,
            Operand::E4m3 => true,
        };
        if !worth || self.device.info().capability < FASTER_LIBRARY {
            return Ok(false);
        }
        let sums = self.device.empty(&[call.m, self.n], Dtype::F32)?;
        let shape = Shape { out: Dtype::F32, adds: false, ..shape };
        if !library.multiply(&self.device, shape, Addresses { out: address(&sums), ..addresses })? {
            return Ok(false);
        }
        let name = match call.dtype {
            Dtype::F32 => "linear_finish_f32",
            Dtype::Bf16 => "linear_finish_bf16",
        };
        let launch = self.device.kernel(Module::Linear, name)?.tensor(&sums).address(call.out);
        let launch = launch.bytes(&self.epilogue(call, left).bytes());
        launch.blocks([(call.m * self.n.div_ceil(4)).div_ceil(256), 1, 1]).threads(256).run()?;
        Ok(true)
    }

    /// The bias (0 for none) as the library's own epilogue adds it; none when that epilogue is not ours.
    fn library_bias(&self, call: &Call<'_>) -> Option<u64> {
        let plain = match call.activation {
            Activation::None => true,
            Activation::GeluTanh => !call.adds,
            _ => false,
        };
        if !plain || call.gates.is_some() || self.scales.is_some() {
            return None;
        }
        match (&self.bias, call.dtype) {
            (None, _) => Some(0),
            (Some(bias), Dtype::F32) => Some(address(bias)),
            (Some(_), Dtype::Bf16) if self.kind == Kind::Bf16 => self.bias_bf16.as_ref().map(CudaBuffer::pointer),
            _ => None,
        }
    }

    fn epilogue(&self, call: &Call<'_>, left: &Left) -> Epilogue {
        let (code, slope) = call.activation.device_code();
        let pointer = |buffer: &Option<CudaBuffer>| buffer.as_ref().map_or(0, CudaBuffer::pointer);
        let (bias, gates) = (self.bias.as_ref().map_or(0, address), call.gates.map_or(0, address));
        let int = |value: usize| i32::try_from(value).unwrap_or(i32::MAX);
        Epilogue {
            vectors: [bias, gates, pointer(&left.scales), pointer(&self.scales)],
            numbers: [int(call.m), int(self.n), int(call.m / call.groups), i32::from(call.adds), code],
            slope,
        }
    }
}

fn address(tensor: &Tensor) -> u64 {
    tensor.cuda().map_or(0, |cuda| cuda.buffer.pointer())
}

/// How a product is cut into blocks; the shapes are those of `linear.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tile {
    Large,
    Medium,
    Small,
    Rows8,
    Rows32,
    /// The only one of f32.
    F32,
}

impl Tile {
    /// The tile that keeps the multiprocessors busy for the shortest time, by an estimate: larger tiles read less and
    /// multiply faster, but the last wave of blocks may leave most of the device idle.
    fn choose(kind: Kind, m: usize, n: usize, multiprocessors: usize) -> Self {
        let candidates: &[(Self, usize)] = match kind {
            Kind::F32 => return Self::F32,
            _ if m <= 8 => return Self::Rows8,
            _ if m <= FEW_ROWS => return Self::Rows32,
            Kind::E4m3 => &[(Self::Medium, 90), (Self::Small, 60)],
            Kind::Bf16 | Kind::Int8 => &[(Self::Large, 100), (Self::Medium, 90), (Self::Small, 60)],
        };
        let time = |(tile, percent): (Self, usize)| {
            let ([rows, columns], [tiles, ..]) = (tile.shape(), tile.blocks(m, n));
            tiles.div_ceil(multiprocessors.max(1)) * rows * columns * 100 / percent
        };
        candidates.iter().copied().min_by_key(|&candidate| time(candidate)).map_or(Self::Small, |(tile, _)| tile)
    }

    /// Rows and columns.
    fn shape(self) -> [usize; 2] {
        match self {
            Self::Large => [128, 256],
            Self::Medium | Self::F32 => [128, 128],
            Self::Small => [64, 64],
            Self::Rows8 => [8, 16],
            Self::Rows32 => [32, 16],
        }
    }

    fn blocks(self, m: usize, n: usize) -> [usize; 3] {
        let [rows, columns] = self.shape();
        match self {
            Self::Rows8 | Self::Rows32 => [n.div_ceil(columns), m.div_ceil(rows), 1],
            _ => [m.div_ceil(rows) * n.div_ceil(columns), 1, 1],
        }
    }

    fn threads(self) -> usize {
        if self == Self::Small { 128 } else { 256 }
    }

    /// Stages of 64 bytes of k of every row and column.
    fn shared_bytes(self) -> usize {
        let stages = match self {
            Self::Large | Self::Small => 4,
            Self::Medium | Self::F32 => 3,
            Self::Rows8 | Self::Rows32 => 0,
        };
        stages * 64 * self.shape().iter().sum::<usize>()
    }

    fn kernel(self, kind: Kind, out: Dtype) -> &'static str {
        let [f32, bf16] = match (kind, self) {
            (Kind::F32, _) | (_, Self::F32) => ["linear_f32_f32", "linear_f32_bf16"],
            (Kind::Bf16, Self::Large) => ["linear_bf16_large_f32", "linear_bf16_large_bf16"],
            (Kind::Bf16, Self::Medium) => ["linear_bf16_medium_f32", "linear_bf16_medium_bf16"],
            (Kind::Bf16, Self::Small) => ["linear_bf16_small_f32", "linear_bf16_small_bf16"],
            (Kind::Bf16, Self::Rows8) => ["linear_bf16_rows8_f32", "linear_bf16_rows8_bf16"],
            (Kind::Bf16, Self::Rows32) => ["linear_bf16_rows32_f32", "linear_bf16_rows32_bf16"],
            (Kind::Int8, Self::Large) => ["linear_int8_large_f32", "linear_int8_large_bf16"],
            (Kind::Int8, Self::Medium) => ["linear_int8_medium_f32", "linear_int8_medium_bf16"],
            (Kind::Int8, Self::Small) => ["linear_int8_small_f32", "linear_int8_small_bf16"],
            (Kind::Int8, Self::Rows8) => ["linear_int8_rows8_f32", "linear_int8_rows8_bf16"],
            (Kind::Int8, Self::Rows32) => ["linear_int8_rows32_f32", "linear_int8_rows32_bf16"],
            (Kind::E4m3, Self::Large | Self::Medium) => ["linear_e4m3_medium_f32", "linear_e4m3_medium_bf16"],
            (Kind::E4m3, Self::Small) => ["linear_e4m3_small_f32", "linear_e4m3_small_bf16"],
            (Kind::E4m3, Self::Rows8) => ["linear_e4m3_rows8_f32", "linear_e4m3_rows8_bf16"],
            (Kind::E4m3, Self::Rows32) => ["linear_e4m3_rows32_f32", "linear_e4m3_rows32_bf16"],
        };
        match out {
            Dtype::F32 => f32,
            Dtype::Bf16 => bf16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cuda_weight::check_e4m3;
    use super::*;

    #[test]
    fn tiles_follow_the_shape_and_the_device() {
        // Wan 1.3B at 480×832, 81 frames, on 132 multiprocessors.
        assert_eq!(Tile::choose(Kind::Bf16, 32_760, 8960, 132), Tile::Large);
        assert_eq!(Tile::choose(Kind::Bf16, 32_760, 1536, 132), Tile::Large);
        // Too few tiles for every multiprocessor to get one.
        assert_eq!(Tile::choose(Kind::Int8, 512, 1536, 132), Tile::Small);
        assert_eq!(Tile::choose(Kind::Bf16, 1, 9216, 132), Tile::Rows8);
        assert_eq!(Tile::choose(Kind::E4m3, 64, 9216, 132), Tile::Rows32);
        assert_eq!(Tile::choose(Kind::F32, 1, 16, 132), Tile::F32);
    }

    #[test]
    fn e4m3_is_refused_on_devices_without_it() {
        assert!(check_e4m3("test", (8, 9)).is_ok() && check_e4m3("test", (10, 0)).is_ok());
        let error = check_e4m3("test", (8, 6)).unwrap_err().to_string();
        assert!(error.contains("8.9 or newer") && error.contains("has 8.6"), "{error}");
    }
}
