//! Attention on the device: which kernel, and its launch. The kernels' contracts are in `cuda/attention.cu` and
//! `cuda/attention_hopper.cu`.

use std::f32::consts::LOG2_E;

use super::{AttentionShape, OP};
use crate::cuda::{CudaDevice, Module, TensorMap};
use crate::error::Result;
use crate::tensor::{Dtype, Tensor};

/// The caller has checked shapes and dtypes.
pub(super) fn attention(
    device: &CudaDevice,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: AttentionShape,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let out = device.empty(q.shape(), q.dtype())?;
    let bias = bias.map(|b| b.to_dtype(Dtype::F32));
    let call = Call { device, q, k, v, shape, bias: bias.as_ref(), out: &out };
    match q.dtype() {
        Dtype::F32 => call.on_cores("attention_fma_f32")?,
        Dtype::Bf16 => match (call.on_hopper(), Mma::for_width(shape.head_dim)) {
            (Some(kernel), _) => call.with_tensor_copies(kernel)?,
            (None, Some(mma)) => call.on_tensor_cores(mma)?,
            (None, None) => call.on_cores("attention_fma_bf16")?,
        },
    }
    Ok(out)
}

struct Call<'a> {
    device: &'a CudaDevice,
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    shape: AttentionShape,
    /// f32.
    bias: Option<&'a Tensor>,
    out: &'a Tensor,
}

/// A width of heads that a kernel of `attention.cu` was built for; narrower heads are filled with zeros.
struct Mma {
    width: usize,
    plain: &'static str,
    biased: &'static str,
}

const MMA: [Mma; 7] = [
    Mma { width: 32, plain: "attention_mma_32_bf16", biased: "attention_mma_32_biased_bf16" },
    Mma { width: 64, plain: "attention_mma_64_bf16", biased: "attention_mma_64_biased_bf16" },
    Mma { width: 80, plain: "attention_mma_80_bf16", biased: "attention_mma_80_biased_bf16" },
    Mma { width: 96, plain: "attention_mma_96_bf16", biased: "attention_mma_96_biased_bf16" },
    Mma { width: 128, plain: "attention_mma_128_bf16", biased: "attention_mma_128_biased_bf16" },
    Mma { width: 192, plain: "attention_mma_192_bf16", biased: "attention_mma_192_biased_bf16" },
    Mma { width: 256, plain: "attention_mma_256_bf16", biased: "attention_mma_256_biased_bf16" },
];

impl Mma {
    const THREADS: usize = 128;

    /// The narrowest that is wide enough.
    fn for_width(head_dim: usize) -> Option<&'static Self> {
        MMA.iter().find(|mma| head_dim <= mma.width)
    }

    /// Queries of a block.
    fn rows(&self) -> usize {
        if self.width <= 128 { 128 } else { 64 }
    }

    /// Queries, a tile of keys and one of values; rows are a power of two long.
    fn shared_bytes(&self) -> usize {
        let keys = if self.width <= 64 { 64 } else { 32 };
        (self.rows() + 2 * keys) * self.width.next_power_of_two() * 2
    }
}

/// Of `attention_hopper.cu`: queries of a block and keys of a tile.
const HOPPER_ROWS: usize = 128;
/// One warpgroup copies, two compute.
const HOPPER_THREADS: usize = 384;

/// Queries, two tiles of keys and two of values; what alignment to 1024 may take, and the barriers.
fn hopper_shared_bytes(head_dim: usize) -> usize {
    5 * HOPPER_ROWS * head_dim * 2 + 1024 + 128
}

/// Of `attention_fma`: queries of a block, columns of the values of a block, threads.
const FMA_ROWS: usize = 64;
const FMA_COLUMNS: usize = 128;
const FMA_THREADS: usize = 256;

impl Call<'_> {
    /// The kernel for Hopper, where device, shape and scale suit it.
    fn on_hopper(&self) -> Option<&'static str> {
        let suits = self.device.info().capability == (9, 0) && self.needs_no_bias();
        match self.shape.head_dim {
            64 if suits => Some("attention_hopper_64_bf16"),
            128 if suits => Some("attention_hopper_128_bf16"),
            _ => None,
        }
    }

    /// Whether the order of scores is that of the products, so that the scale can wait until the exponent.
    fn needs_no_bias(&self) -> bool {
        self.bias.is_none() && self.shape.scale > 0.0
    }

    fn with_tensor_copies(&self, kernel: &'static str) -> Result<()> {
        let AttentionShape { queries, visible, heads, head_dim, scale, .. } = self.shape;
        // What masked keys hold is not even read.
        let map = |x, rows| TensorMap::of_rows(OP, x, rows, HOPPER_ROWS as u32);
        let maps = [map(self.q, queries)?, map(self.k, visible)?, map(self.v, visible)?];
        let launch = self.device.kernel(Module::AttentionHopper, kernel)?;
        maps.iter()
            .fold(launch, |launch, map| launch.bytes(&map.bytes()))
            .tensor(self.out)
            .int(queries)
            .int(visible)
            .float(scale * LOG2_E)
            .blocks([queries.div_ceil(HOPPER_ROWS), heads, 1])
            .threads(HOPPER_THREADS)
            .shared_bytes(hopper_shared_bytes(head_dim))
            .run()
    }

    fn on_tensor_cores(&self, mma: &Mma) -> Result<()> {
        let kernel = if self.needs_no_bias() { mma.plain } else { mma.biased };
        let blocks = [self.shape.queries.div_ceil(mma.rows()), self.shape.heads, 1];
        self.launch(kernel, blocks, Mma::THREADS, mma.shared_bytes())
    }

    fn on_cores(&self, kernel: &'static str) -> Result<()> {
        let AttentionShape { queries, heads, head_dim, .. } = self.shape;
        let blocks = [queries.div_ceil(FMA_ROWS), heads, head_dim.div_ceil(FMA_COLUMNS)];
        self.launch(kernel, blocks, FMA_THREADS, 0)
    }

    /// Launches a kernel of `attention.cu`.
    fn launch(&self, kernel: &'static str, blocks: [usize; 3], threads: usize, shared_bytes: usize) -> Result<()> {
        self.device
            .kernel(Module::Attention, kernel)?
            .tensor(self.q)
            .tensor(self.k)
            .tensor(self.v)
            .optional(self.bias)
            .tensor(self.out)
            .bytes(&self.arguments()?)
            .blocks(blocks)
            .threads(threads)
            .shared_bytes(shared_bytes)
            .run()
    }

    /// The struct `Attention` of `attention.cu`.
    fn arguments(&self) -> Result<Vec<u8>> {
        let AttentionShape { queries, keys, visible, heads, head_dim, scale } = self.shape;
        let mut bytes = Vec::with_capacity(24);
        for size in [queries, keys, visible, heads, head_dim] {
            let Ok(size) = i32::try_from(size) else {
                return crate::error::argument_error(OP, format!("{size} tokens or heads are too many"));
            };
            bytes.extend(size.to_ne_bytes());
        }
        bytes.extend(scale.to_ne_bytes());
        Ok(bytes)
    }
}
