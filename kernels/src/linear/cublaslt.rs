//! Products by cuBLASLt: looked for at run time, asked once per shape, queued on the device's stream.
//!
//! The library counts columns first. A row-major y [m, n] is its D of n rows and m columns; x [m, k] is its B [k, m], and W
//! [n, k] its A [k, n], transposed. So the bias, one value per row of D, is ours: one per output.
#![allow(unsafe_code, reason = "calls into cuBLASLt")]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use crate::cuda::CudaDevice;
use crate::error::{Error, Result};
use crate::tensor::Dtype;

/// Most memory that an algorithm may use beside its operands; what the vendor advises for Hopper.
const WORKSPACE_BYTES_MAX: usize = 32 << 20;

/// `cublasOperation_t`, which the bindings of this library lack.
const AS_IT_IS: i32 = 0;
const TRANSPOSED: i32 = 1;

/// Type of both operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Operand {
    F32,
    Bf16,
    E4m3,
}

/// What a plan is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) m: usize,
    pub(super) n: usize,
    /// Values of a row, padding included.
    pub(super) k: usize,
    pub(super) operand: Operand,
    pub(super) out: Dtype,
    /// Whether the product is added to what is there.
    pub(super) adds: bool,
    /// Whether there is a bias, of the result's dtype.
    pub(super) bias: bool,
    /// Whether tanh-GELU comes last.
    pub(super) gelu: bool,
}

/// Where the operands lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) w: u64,
    pub(super) x: u64,
    pub(super) bias: u64,
    pub(super) out: u64,
}

/// The library on one device.
pub(crate) struct CublasLt {
    handle: sys::cublasLtHandle_t,
    version: usize,
    /// None for shapes that the library does not take. The lock is held while a product is queued, because a plan's
    /// description holds the address of the bias.
    plans: Mutex<HashMap<Shape, Option<Plan>>>,
}

// SAFETY: the library's handles may be used from any thread; plans are used under a lock.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

impl CublasLt {
    /// Looks for the library; says why there is none. A device's context must be current.
    pub(crate) fn open() -> std::result::Result<Self, String> {
        // SAFETY: loading the library runs its initialisers, as every program that links it does.
        if !unsafe { sys::is_culib_present() } {
            return Err("no cuBLASLt (libcublasLt) on this machine".to_owned());
        }
        let handle = result::create_handle().map_err(|e| format!("cuBLASLt does not start ({})", words(&e)))?;
        // SAFETY: takes nothing.
        let version = unsafe { sys::cublasLtGetVersion() };
        Ok(Self { handle, version, plans: Mutex::default() })
    }

    /// Name and version.
    pub(crate) fn version(&self) -> String {
        let (major, minor, patch) = (self.version / 10_000, self.version / 100 % 100, self.version % 100);
        format!("cuBLASLt {major}.{minor}.{patch}")
    }

    /// Queues the product; false when the library does not take this shape.
    pub(super) fn multiply(&self, device: &CudaDevice, shape: Shape, at: Addresses) -> Result<bool> {
        const OP: &str = "cublasLtMatmul";
        device.enter(OP)?;
        // Before the plans: whoever records a graph keeps others off the stream, and must not wait for them here.
        let stream = device.stream();
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(shape) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => place.insert(Plan::new(self.handle, shape).map_err(|e| failed(OP, &e))?),
        };
        let Some(plan) = plan else { return Ok(false) };
        // Dropped when the product is queued: whoever gets the memory next is queued behind it.
        let workspace = device.buffer(OP, plan.workspace_bytes)?;
        // SAFETY: the caller's addresses are of device memory that holds the operands of this shape; the workspace is as
        // large as the algorithm asked for.
        let queued = unsafe { plan.run(self.handle, at, workspace.pointer(), stream.raw()) };
        device.remember(queued.map_err(|e| failed(OP, &e)))?;
        Ok(true)
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: made by `open`, dropped once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// One shape's descriptions and the algorithm that the library chose for it.
struct Plan {
    description: Description,
    a: Layout,
    b: Layout,
    d: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace_bytes: usize,
    adds: bool,
    bias: bool,
}

impl Plan {
    /// None when the library has no algorithm for the shape.
    fn new(handle: sys::cublasLtHandle_t, shape: Shape) -> std::result::Result<Option<Self>, CublasError> {
        use sys::cudaDataType::{CUDA_R_8F_E4M3, CUDA_R_16BF, CUDA_R_32F};
        let operand = match shape.operand {
            Operand::F32 => CUDA_R_32F,
            Operand::Bf16 => CUDA_R_16BF,
            Operand::E4m3 => CUDA_R_8F_E4M3,
        };
        let out = match shape.out {
            Dtype::F32 => CUDA_R_32F,
            Dtype::Bf16 => CUDA_R_16BF,
        };
        let description = Description::new(shape, out)?;
        let a = Layout::new(operand, shape.k, shape.n)?;
        let b = Layout::new(operand, shape.k, shape.m)?;
        let d = Layout::new(out, shape.n, shape.m)?;
        let preference = Preference::new()?;
        // SAFETY: all descriptions live; C is described as D because it is D.
        let found =
            unsafe { result::get_matmul_algo_heuristic(handle, description.0, a.0, b.0, d.0, d.0, preference.0) };
        match found {
            Ok(found) => {
                let (algorithm, workspace_bytes) = (found.algo, found.workspaceSize);
                Ok(Some(Self { description, a, b, d, algorithm, workspace_bytes, adds: shape.adds, bias: shape.bias }))
            }
            Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// # Safety
    /// The addresses must hold operands of the plan's shape, the workspace as many bytes as the plan says.
    unsafe fn run(
        &self,
        handle: sys::cublasLtHandle_t,
        at: Addresses,
        workspace: u64,
        stream: cudarc::driver::sys::CUstream,
    ) -> std::result::Result<(), CublasError> {
        if self.bias {
            self.description.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at.bias)?;
        }
        let (alpha, beta) = (1.0f32, if self.adds { 1.0f32 } else { 0.0 });
        let pointer = |address: u64| address as *mut c_void;
        // SAFETY: the caller's contract; the factors are read before the call returns.
        unsafe {
            result::matmul(
                handle,
                self.description.0,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                pointer(at.w),
                self.a.0,
                pointer(at.x),
                self.b.0,
                pointer(at.out),
                self.d.0,
                pointer(at.out),
                self.d.0,
                &self.algorithm,
                pointer(workspace),
                self.workspace_bytes,
                stream.cast(),
            )
        }
    }
}

/// What is computed. f32 operands are multiplied as such: without a mode of its own the library uses no TF32.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new(shape: Shape, out: sys::cudaDataType) -> std::result::Result<Self, CublasError> {
        use sys::cublasLtEpilogue_t as Epilogue;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = Self(result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?);
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &AS_IT_IS)?;
        let epilogue = match (shape.bias, shape.gelu) {
            (false, false) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
            (true, false) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
            (false, true) => Epilogue::CUBLASLT_EPILOGUE_GELU,
            (true, true) => Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
        };
        description.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        if shape.bias {
            description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &out)?;
        }
        Ok(description)
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> std::result::Result<(), CublasError> {
        // SAFETY: the description lives, the attribute's value has the type that the library documents.
        unsafe {
            result::set_matmul_desc_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by `new`, dropped once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// A dense matrix whose columns follow each other.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(of: sys::cudaDataType, rows: usize, columns: usize) -> std::result::Result<Self, CublasError> {
        result::create_matrix_layout(of, rows as u64, columns as u64, rows as i64).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, dropped once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> std::result::Result<Self, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let preference = Self(result::create_matmul_pref()?);
        let bytes = std::ptr::from_ref(&WORKSPACE_BYTES_MAX).cast();
        // SAFETY: the preference lives, the value is the 64-bit number that the library documents.
        unsafe {
            let attribute = CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(preference.0, attribute, bytes, size_of::<usize>())?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `new`, dropped once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn words(error: &CublasError) -> String {
    format!("{:?}", error.0)
}

fn failed(op: &'static str, error: &CublasError) -> Error {
    Error::Device { op, detail: words(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_library_gets_a_reason_instead_of_a_panic() {
        // SAFETY: as in `open`.
        if unsafe { sys::is_culib_present() } {
            return;
        }
        let why = CublasLt::open().err().unwrap_or_default();
        assert_eq!(why, "no cuBLASLt (libcublasLt) on this machine");
    }
}
