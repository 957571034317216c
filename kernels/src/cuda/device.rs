//! One device: its context, its stream, its memory, and the tensors on it.
#![allow(unsafe_code, reason = "calls into the driver")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::{result, sys};

use super::buffer::CudaBuffer;
use super::driver::Checked;
use super::launch::Launch;
use super::memory::{Context, Pool, Sizes};
use super::modules::Module;
use super::probe::probe;
use super::staging::Staging;
use crate::buffer::Zero;
use crate::error::{Error, Result, argument_error};
use crate::linear::CublasLt;
use crate::tensor::{CudaStorage, Dtype, Storage, Tensor};

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaInfo {
    /// Its number.
    pub ordinal: usize,
    /// The vendor's name for it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Memory of a block that a kernel may ask for.
    pub shared_bytes_max: usize,
    /// All of its memory.
    pub memory_bytes: u64,
    /// Its place on the PCI bus, `domain:bus:device.function` in hexadecimal: by this other tools know it.
    pub bus_id: String,
}

/// A handle to one device, from [`CudaDevice::open`] until it is reset. Cheap to clone.
#[derive(Clone)]
pub struct CudaDevice {
    inner: Arc<Inner>,
}

struct Inner {
    info: CudaInfo,
    context: Arc<Context>,
    /// Where new buffers come from.
    pool: Arc<Pool>,
    /// Held for each call that uses the stream, and all the while that a graph is recorded on it: what other threads queue
    /// (a model that is being loaded) must not become part of the graph.
    stream_use: Mutex<()>,
    kernels: Mutex<Kernels>,
    staging: Staging,
    /// Recorded around timed work.
    events: [sys::CUevent; 2],
    /// The first error that spoilt the context, or a result that could not be made.
    fault: Mutex<Option<Error>>,
    /// Looked for with the first product.
    cublaslt: OnceLock<std::result::Result<CublasLt, String>>,
    /// Whether products may go to cuBLASLt.
    library_wanted: AtomicBool,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Inner {}
// SAFETY: as above; what changes has locks.
unsafe impl Sync for Inner {}

#[derive(Default)]
struct Kernels {
    modules: HashMap<Module, sys::CUmodule>,
    functions: HashMap<(Module, &'static str), sys::CUfunction>,
    /// Dynamic shared memory that a function was allowed to use, beyond what all may.
    allowed: HashMap<usize, usize>,
}

/// Dynamic shared memory that needs no permission.
const SHARED_BYTES_FREE: usize = 48 << 10;

thread_local! {
    // As with arenas: an argument would go through every function of every model and change none of their results. A scope
    // is entered by whoever owns the device, and left again when it ends.
    static CURRENT: RefCell<Option<CudaDevice>> = const { RefCell::new(None) };
    // Set while this thread records a graph: the pool that the graph's memory comes from.
    static RECORDING: RefCell<Option<Arc<Pool>>> = const { RefCell::new(None) };
}

/// The device's stream, and the right to use it.
pub(crate) struct StreamTurn<'d> {
    stream: sys::CUstream,
    _alone: Option<MutexGuard<'d, ()>>,
}

impl StreamTurn<'_> {
    pub(crate) fn raw(&self) -> sys::CUstream {
        self.stream
    }
}

impl CudaDevice {
    /// Opens device `ordinal`.
    pub fn open(ordinal: usize) -> Result<Self> {
        Self::open_with(ordinal, Sizes::Regions)
    }

    /// Opens device `ordinal` for a checker of memory (compute-sanitizer): every tensor is an allocation of its own, as long
    /// as its values, so that an access beyond is seen. Slow, and it records no graphs.
    pub fn open_exact(ordinal: usize) -> Result<Self> {
        Self::open_with(ordinal, Sizes::Exact)
    }

    fn open_with(ordinal: usize, sizes: Sizes) -> Result<Self> {
        const OP: &str = "CudaDevice::open";
        let count = match probe() {
            Ok(count) => count,
            Err(absent) => return argument_error(OP, format!("there is no cuda:{ordinal}: {absent}")),
        };
        if ordinal >= count {
            let there = if count == 1 { "only cuda:0".to_owned() } else { format!("cuda:0 to cuda:{}", count - 1) };
            return argument_error(OP, format!("there is no cuda:{ordinal}: this machine has {there}"));
        }
        let device = result::device::get(ordinal as i32).checked(OP)?;
        // SAFETY: the device exists.
        let raw = unsafe { result::primary_ctx::retain(device) }.checked(OP)?;
        // SAFETY: just retained.
        unsafe { result::ctx::set_current(raw) }.checked(OP)?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).checked(OP)?;
        let context = Arc::new(Context::new(raw, stream));
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).checked(OP);
        let inner = Inner {
            info: info(OP, ordinal, device)?,
            pool: Pool::new(Arc::clone(&context), sizes),
            stream_use: Mutex::new(()),
            context,
            kernels: Mutex::default(),
            staging: Staging::new(),
            events: [event()?, event()?],
            fault: Mutex::new(None),
            cublaslt: OnceLock::new(),
            library_wanted: AtomicBool::new(true),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What it is.
    pub fn info(&self) -> &CudaInfo {
        &self.inner.info
    }

    /// cuBLASLt's version, or why the program's own kernels do all matrix products.
    pub fn matmul_library(&self) -> std::result::Result<String, String> {
        match self.library() {
            Ok(library) => Ok(library.version()),
            Err(why) => Err(format!("{why}: matrix products by the program's own kernels")),
        }
    }

    /// Whether matrix products may go to cuBLASLt, where it is there. They may at first; benchmarks compare.
    pub fn use_matmul_library(&self, wanted: bool) {
        self.inner.library_wanted.store(wanted, Ordering::Relaxed);
    }

    /// cuBLASLt, when it is there and wanted.
    pub(crate) fn cublaslt(&self) -> Option<&CublasLt> {
        let wanted = self.inner.library_wanted.load(Ordering::Relaxed);
        if wanted { self.library().as_ref().ok() } else { None }
    }

    fn library(&self) -> &std::result::Result<CublasLt, String> {
        self.inner.cublaslt.get_or_init(|| match self.enter("cublasLtCreate") {
            Ok(()) => CublasLt::open(),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Runs `work` on this thread; tensors that it makes live on the device. Scopes nest.
    pub fn scope<R>(&self, work: impl FnOnce() -> R) -> R {
        let _entered = Entered::new(Some(self.clone()));
        work()
    }

    /// Runs `work` on this thread; tensors that it makes live in host memory, whatever scope it is in.
    pub fn outside<R>(work: impl FnOnce() -> R) -> R {
        let _entered = Entered::new(None);
        work()
    }

    /// The device whose scope this thread is in.
    pub fn current() -> Option<Self> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Runs `work`, waits for the device, and tells the nanoseconds that the device took from the first operation queued to
    /// the end of the last, by events on its stream (a resolution of about half a microsecond).
    pub fn timed<R>(&self, work: impl FnOnce() -> R) -> Result<(R, u64)> {
        const OP: &str = "CudaDevice::timed";
        let [start, end] = self.inner.events;
        let record = |event| {
            self.enter(OP)?;
            // SAFETY: event and stream are of this context.
            self.remember(unsafe { result::event::record(event, self.stream().raw()) }.checked(OP))
        };
        record(start)?;
        let made = work();
        record(end)?;
        self.synchronize()?;
        // SAFETY: both were recorded, and the stream is idle.
        let ms = self.remember(unsafe { result::event::elapsed(start, end) }.checked(OP))?;
        Ok((made, (f64::from(ms) * 1e6).round() as u64))
    }

    /// Waits until all queued work is done; tells the first error since the device was opened.
    pub fn synchronize(&self) -> Result<()> {
        const OP: &str = "CudaDevice::synchronize";
        self.enter(OP)?;
        // SAFETY: the stream is of this context.
        self.remember(unsafe { result::stream::synchronize(self.stream().raw()) }.checked(OP))
    }

    /// Throws the context away, with everything that was in it, and opens the device again. Tensors and models of the old
    /// handle refuse all work from then on; dropping them is all that is left to do with them.
    pub fn reset(&self) -> Result<Self> {
        const OP: &str = "CudaDevice::reset";
        self.inner.context.die();
        let device = result::device::get(self.inner.info.ordinal as i32).checked(OP)?;
        // SAFETY: the handles of the old context are never used again: it is dead.
        unsafe { sys::cuDevicePrimaryCtxReset_v2(device) }.result().checked(OP)?;
        Self::open_with(self.inner.info.ordinal, self.pool().sizes())
    }

    /// Makes room for tensors of `bytes` in all, so that none of them asks the driver for memory.
    pub fn reserve(&self, bytes: usize) -> Result<()> {
        self.pool().reserve("CudaDevice::reserve", bytes)
    }

    /// Bytes that the driver has free, and all that there are.
    pub fn free_bytes(&self) -> Result<(u64, u64)> {
        const OP: &str = "CudaDevice::free_bytes";
        self.enter(OP)?;
        result::mem_get_info().checked(OP).map(|(free, total)| (free as u64, total as u64))
    }

    /// Bytes of the tensors on the device.
    pub fn live_bytes(&self) -> usize {
        self.pool().bytes().live
    }

    /// The largest that [`CudaDevice::live_bytes`] has been, since the last [`CudaDevice::restart_peak`].
    pub fn peak_bytes(&self) -> usize {
        self.pool().bytes().peak
    }

    /// Bytes that were taken from the driver for tensors.
    pub fn held_bytes(&self) -> usize {
        self.pool().bytes().held
    }

    /// How often memory was asked of the driver.
    pub fn growths(&self) -> usize {
        self.pool().bytes().growths
    }

    /// Counts the peak from the present on.
    pub fn restart_peak(&self) {
        self.pool().restart_peak();
    }

    /// Overwrites with zeros what dropped tensors have left behind: done when a job ends.
    pub fn scrub(&self) -> Result<()> {
        self.enter("CudaDevice::scrub")?;
        self.pool().scrub("CudaDevice::scrub")
    }

    /// Gives memory that no tensor is in back to the driver.
    pub fn trim(&self) -> Result<()> {
        self.enter("CudaDevice::trim")?;
        self.pool().trim("CudaDevice::trim")
    }

    /// An f32 tensor that shows what its memory held before. For tests alone.
    #[doc(hidden)]
    pub fn uninitialised_for_tests(&self, shape: &[usize]) -> Result<Tensor> {
        self.empty(shape, Dtype::F32)
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// A tensor with whatever its memory held before: the caller writes all of it.
    pub(crate) fn empty(&self, shape: &[usize], dtype: Dtype) -> Result<Tensor> {
        const OP: &str = "Tensor";
        self.enter(OP)?;
        let len: usize = shape.iter().product();
        let buffer = self.buffer(OP, len * dtype.size_bytes())?;
        Ok(Tensor::new(Storage::Cuda(CudaStorage { buffer, dtype, len }), shape))
    }

    /// `bytes` of device memory.
    pub(crate) fn buffer(&self, op: &'static str, bytes: usize) -> Result<CudaBuffer> {
        CudaBuffer::take(op, self, self.pool(), bytes)
    }

    /// A copy of `values` on the device.
    pub(crate) fn upload<T: Zero>(&self, op: &'static str, values: &[T]) -> Result<CudaBuffer> {
        let buffer = self.buffer(op, size_of_val(values))?;
        buffer.write(op, 0, values)?;
        Ok(buffer)
    }

    /// What `work` makes; or, for functions that cannot tell an error, a tensor without memory: the device remembers the
    /// error and refuses all further work, so nobody reads what was not made.
    pub(crate) fn or_poisoned(&self, shape: &[usize], dtype: Dtype, work: impl FnOnce() -> Result<Tensor>) -> Tensor {
        work().unwrap_or_else(|error| {
            self.fail(error);
            let len: usize = shape.iter().product();
            let buffer = CudaBuffer::absent(self, len * dtype.size_bytes());
            Tensor::new(Storage::Cuda(CudaStorage { buffer, dtype, len }), shape)
        })
    }

    /// A launch of kernel `name`.
    pub(crate) fn kernel(&self, module: Module, name: &'static str) -> Result<Launch<'_>> {
        self.enter(name)?;
        let mut kernels = lock(&self.inner.kernels);
        let function = match kernels.functions.get(&(module, name)) {
            Some(function) => *function,
            None => kernels.find(module, name)?,
        };
        Ok(Launch::new(self, name, function))
    }

    /// Lets a kernel use so much dynamic shared memory.
    pub(super) fn allow_shared(&self, op: &'static str, function: sys::CUfunction, bytes: usize) -> Result<()> {
        if bytes <= SHARED_BYTES_FREE {
            return Ok(());
        }
        if bytes > self.info().shared_bytes_max {
            let max = self.info().shared_bytes_max;
            let detail = format!("needs {bytes} bytes of shared memory a block, this device has {max}");
            return Err(Error::DeviceKernel { op, detail });
        }
        let mut kernels = lock(&self.inner.kernels);
        let allowed = kernels.allowed.entry(function as usize).or_default();
        if *allowed < bytes {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            unsafe { result::function::set_function_attribute(function, attribute, bytes as i32) }.checked(op)?;
            *allowed = bytes;
        }
        Ok(())
    }

    /// Makes the device's context this thread's; an error when the device has failed.
    pub(crate) fn enter(&self, op: &'static str) -> Result<()> {
        if let Some(fault) = &*lock(&self.inner.fault) {
            return Err(fault.clone());
        }
        self.inner.context.enter(op)
    }

    /// Passes a result on; an error that spoils the device is kept.
    pub(crate) fn remember<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && error.spoils_device()
        {
            self.fail(error.clone());
        }
        result
    }

    /// The stream, for one call; waits while another thread records a graph on it.
    pub(crate) fn stream(&self) -> StreamTurn<'_> {
        let recording = RECORDING.with_borrow(|pool| pool.is_some());
        StreamTurn { stream: self.inner.context.stream, _alone: (!recording).then(|| lock(&self.inner.stream_use)) }
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.inner.context
    }

    pub(super) fn staging(&self) -> &Staging {
        &self.inner.staging
    }

    /// Runs `work` with this thread's new buffers from the pool of a graph that it records.
    pub(super) fn recording<R>(&self, pool: Arc<Pool>, work: impl FnOnce() -> R) -> R {
        struct Over;
        impl Drop for Over {
            fn drop(&mut self) {
                RECORDING.set(None);
            }
        }
        RECORDING.set(Some(pool));
        let _over = Over;
        work()
    }

    fn pool(&self) -> Arc<Pool> {
        RECORDING.with_borrow(|pool| pool.clone()).unwrap_or_else(|| Arc::clone(&self.inner.pool))
    }

    fn fail(&self, error: Error) {
        lock(&self.inner.fault).get_or_insert(error);
    }
}

impl Kernels {
    fn find(&mut self, module: Module, name: &'static str) -> Result<sys::CUfunction> {
        let loaded = match self.modules.get(&module) {
            Some(loaded) => *loaded,
            None => {
                // SAFETY: the image is a whole fatbin, or a text that ends with a zero.
                let loaded = unsafe { result::module::load_data(module.image().as_ptr().cast()) }.map_err(|e| {
                    Error::DeviceKernel { op: name, detail: module.why_not_loaded(&super::driver::describe(&e)) }
                })?;
                self.modules.insert(module, loaded);
                loaded
            }
        };
        let symbol = std::ffi::CString::new(name).unwrap_or_default();
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(loaded, symbol) }.checked(name)?;
        self.functions.insert((module, name), function);
        Ok(function)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.enter("release of a device").is_err() {
            // A handle of a context that is gone may not be used, not even to release it.
            std::mem::forget(self.cublaslt.take());
            return;
        }
        // SAFETY: all handles are of this context, and with the last handle of the device nobody uses them any more. What
        // was queued may still use them.
        unsafe {
            let _ = result::stream::synchronize(self.context.stream);
            for event in self.events {
                let _ = result::event::destroy(event);
            }
            for module in lock(&self.kernels).modules.values() {
                let _ = result::module::unload(*module);
            }
        }
    }
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaDevice").field("ordinal", &self.inner.info.ordinal).finish_non_exhaustive()
    }
}

/// While it lives, this thread's tensors are made on a device (or in host memory).
struct Entered {
    before: Option<CudaDevice>,
    /// It puts back what this thread had.
    stays_on_its_thread: PhantomData<*const ()>,
}

impl Entered {
    fn new(device: Option<CudaDevice>) -> Self {
        Self { before: CURRENT.replace(device), stays_on_its_thread: PhantomData }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under these locks is a single one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn info(op: &'static str, ordinal: usize, device: sys::CUdevice) -> Result<CudaInfo> {
    use sys::CUdevice_attribute as Attribute;
    // SAFETY: the device exists.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) }.checked(op);
    Ok(CudaInfo {
        ordinal,
        name: result::device::get_name(device).checked(op)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
        shared_bytes_max: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }.checked(op)? as u64,
        bus_id: format!(
            "{:08x}:{:02x}:{:02x}.0",
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?
        ),
    })
}
