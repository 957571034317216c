use standin::Standin;
use std::{
    any::Any,
    ffi::{CString, c_char, c_int, c_uint, c_void},
    ptr::{null_mut, without_provenance_mut},
};

/// Devices that the tests share out among themselves.
const DEVICES: usize = 8;

/// One device of the stand-in with the wrong kernels.
pub struct Driver {
    pub standin: &'static Standin,
}

pub struct Buffer {
    standin: &'static Standin,
    pub address: u64,
    count: usize,
}

impl Driver {
    /// Makes the device current for the calling thread.
    pub fn open(device: usize) -> Option<Self> {
        let standin = Standin::load_faulty()?;
        standin.devices(DEVICES);
        let mut context = null_mut::<c_void>();
        // SAFETY: the signatures are the driver's.
        unsafe {
            let retain =
                standin.symbol::<unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int>("cuDevicePrimaryCtxRetain");
            assert_eq!(retain(&mut context, device as c_int), 0);
            let set = standin.symbol::<unsafe extern "C" fn(*mut c_void) -> c_int>("cuCtxSetCurrent");
            assert_eq!(set(context), 0);
        }
        Some(Self { standin })
    }

    pub fn upload(&self, values: &[f32]) -> Buffer {
        let mut address = 0;
        let bytes = size_of_val(values);
        // SAFETY: the signatures are the driver's; the copy is over when it returns.
        unsafe {
            let allocate = self.standin.symbol::<unsafe extern "C" fn(*mut u64, usize) -> c_int>("cuMemAlloc_v2");
            assert_eq!(allocate(&mut address, bytes), 0);
            type Copy = unsafe extern "C" fn(u64, *const c_void, usize, *mut c_void) -> c_int;
            let copy = self.standin.symbol::<Copy>("cuMemcpyHtoDAsync_v2");
            assert_eq!(copy(address, values.as_ptr().cast(), bytes, null_mut()), 0);
        }
        Buffer { standin: self.standin, address, count: values.len() }
    }

    /// Launches one block; the driver's result.
    pub fn launch(&self, kernel: &str, threads: usize, shared_bytes: usize, arguments: &[&dyn Any]) -> i32 {
        let name = CString::new(kernel).expect("no zero in a name");
        let mut function = null_mut::<c_void>();
        let mut pointers: Vec<*mut c_void> =
            arguments.iter().map(|argument| (&raw const **argument).cast_mut().cast()).collect();
        type Launch = unsafe extern "C" fn(
            *mut c_void,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            *mut c_void,
            *mut *mut c_void,
            *mut *mut c_void,
        ) -> c_int;
        type Find = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *const c_char) -> c_int;
        // SAFETY: the signatures are the driver's, the arguments those of the kernel.
        unsafe {
            let find = self.standin.symbol::<Find>("cuModuleGetFunction");
            match find(&mut function, without_provenance_mut(1), name.as_ptr()) {
                0 => {}
                error => return error,
            }
            let launch = self.standin.symbol::<Launch>("cuLaunchKernel");
            let (threads, shared) = (threads as c_uint, shared_bytes as c_uint);
            launch(function, 1, 1, 1, threads, 1, 1, shared, null_mut(), pointers.as_mut_ptr(), null_mut())
        }
    }
}

impl Buffer {
    pub fn download(&self) -> Vec<f32> {
        let mut values = vec![0f32; self.count];
        type Copy = unsafe extern "C" fn(*mut c_void, u64, usize, *mut c_void) -> c_int;
        // SAFETY: the signature is the driver's; the copy is over when it returns.
        unsafe {
            let copy = self.standin.symbol::<Copy>("cuMemcpyDtoHAsync_v2");
            assert_eq!(copy(values.as_mut_ptr().cast(), self.address, 4 * self.count, null_mut()), 0);
        }
        values
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the signature is the driver's. A spoilt context refuses, and its memory goes with it.
        unsafe { self.standin.symbol::<unsafe extern "C" fn(u64) -> c_int>("cuMemFree_v2")(self.address) };
    }
}
