//! How a kernel's tensor copies see a matrix in device memory.
#![allow(unsafe_code, reason = "calls into the driver")]

use cudarc::driver::sys;

use super::driver::Checked;
use crate::error::{Result, dtype_error, shape_error};
use crate::tensor::{Dtype, Tensor};

/// Columns of bf16 in a box: 128 bytes, the length of the swizzle.
const BOX_COLUMNS: u32 = 64;

/// The driver's description of a matrix and of the boxes in which a kernel copies it; passed to kernels by value.
pub(crate) struct TensorMap {
    raw: sys::CUtensorMap,
}

impl TensorMap {
    /// The first `rows` rows of a bf16 matrix, in boxes of 64 columns and `box_rows` rows. In shared memory boxes lie in the
    /// 128-byte swizzle; what is beyond the matrix is zero there.
    pub(crate) fn of_rows(op: &'static str, matrix: &Tensor, rows: usize, box_rows: u32) -> Result<Self> {
        use sys::{
            CUtensorMapDataType as DataType, CUtensorMapFloatOOBfill as Fill, CUtensorMapInterleave as Interleave,
            CUtensorMapL2promotion as Promotion, CUtensorMapSwizzle as Swizzle,
        };
        let (Some(cuda), &[there, columns]) = (matrix.cuda(), matrix.shape()) else {
            return shape_error(op, format!("{:?} is no matrix on the device", matrix.shape()));
        };
        if matrix.dtype() != Dtype::Bf16 {
            return dtype_error(op, format!("a tensor map of {:?}", matrix.dtype()));
        }
        if rows > there || columns % 8 != 0 {
            return shape_error(op, format!("a tensor map of {rows} rows of {columns} of [{there}, {columns}]"));
        }
        cuda.buffer.device().enter(op)?;
        let mut raw = sys::CUtensorMap { opaque: [0; 16] };
        let address = cuda.buffer.pointer() as *mut std::ffi::c_void;
        // SAFETY: the driver writes `raw` alone, and reads arrays of two sizes, one stride, two box sizes and two steps. The
        // matrix has the rows and columns.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut raw,
                DataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                address,
                [columns as u64, rows as u64].as_ptr(),
                [2 * columns as u64].as_ptr(),
                [BOX_COLUMNS, box_rows].as_ptr(),
                [1, 1].as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .checked(op)?;
        Ok(Self { raw })
    }

    /// As an argument of a kernel.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.raw.opaque.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}
