use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use std::{
    ffi::{CStr, CString, c_char, c_int, c_long, c_uint},
    path::PathBuf,
    sync::OnceLock,
};

/// The stand-in of this process.
pub struct Standin {
    library: Library,
}

impl Standin {
    /// Loads the stand-in, once for the process; to be called before anything looks for a CUDA driver.
    ///
    /// The variable `ZOETROPE_STANDIN` chooses: unset the plain build, `asan` the one under the address sanitizer (see
    /// [`sanitized`](crate::sanitized)), anything with a slash the folder of another build. None, and a line that says why,
    /// where the emulator does not run; then `ZOETROPE_REQUIRE_ALL` makes it a panic.
    pub fn load() -> Option<&'static Self> {
        // Loading is a fact of the whole process.
        static LOADED: OnceLock<Option<Standin>> = OnceLock::new();
        LOADED.get_or_init(|| folder().map(Self::open)).as_ref()
    }

    /// The stand-in whose kernels are the wrong ones of `faulty/`, for tests of the emulator itself.
    pub fn load_faulty() -> Option<&'static Self> {
        static LOADED: OnceLock<Option<Standin>> = OnceLock::new();
        LOADED.get_or_init(|| folder().map(|folder| Self::open(folder.join("faulty")))).as_ref()
    }

    fn open(folder: PathBuf) -> Self {
        let open = |name: &str| {
            let path = folder.join(name);
            // SAFETY: the library's initialisers only fill its table of kernels.
            unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let library = open("libcuda.so");
        if folder.join("libcublasLt.so").exists() {
            // Stays in the process: nobody asks it anything here.
            std::mem::forget(open("libcublasLt.so"));
        }
        Self { library }
    }

    /// How often the kernel has run in this process; None when there is none of that name.
    pub fn launches(&self, kernel: &str) -> Option<u64> {
        let name = CString::new(kernel).ok()?;
        // SAFETY: the signature is the one in driver.cpp.
        let launches =
            unsafe { self.function::<unsafe extern "C" fn(*const c_char) -> c_long>("launches")(name.as_ptr()) };
        u64::try_from(launches).ok()
    }

    /// The names of all kernels.
    pub fn kernels(&self) -> Vec<String> {
        // SAFETY: the signature is the one in driver.cpp; the text lives until the next call, and is copied here.
        let names = unsafe { CStr::from_ptr(self.function::<unsafe extern "C" fn() -> *const c_char>("kernels")()) };
        names.to_string_lossy().lines().map(str::to_owned).collect()
    }

    /// Chooses the order in which threads run between barriers, for the launches of the calling thread from now on.
    pub fn seed(&self, seed: u32) {
        // SAFETY: the signature is the one in driver.cpp.
        unsafe { self.function::<unsafe extern "C" fn(c_uint)>("seed")(seed) }
    }

    /// Makes sure that there are at least so many devices. A test that breaks one takes one of its own.
    pub fn devices(&self, count: usize) {
        // SAFETY: the signature is the one in driver.cpp.
        unsafe { self.function::<unsafe extern "C" fn(c_int)>("devices")(count as c_int) }
    }

    /// Sets how much memory a device has.
    pub fn memory_bytes(&self, device: usize, bytes: usize) {
        // SAFETY: the signature is the one in driver.cpp.
        unsafe { self.function::<unsafe extern "C" fn(c_int, usize)>("memory")(device as c_int, bytes) }
    }

    /// Sets a device's compute capability, for who opens it from now on.
    pub fn capability(&self, device: usize, (major, minor): (u32, u32)) {
        // SAFETY: the signature is the one in driver.cpp.
        let set = unsafe { self.function::<unsafe extern "C" fn(c_int, c_int)>("capability") };
        // SAFETY: as above.
        unsafe { set(device as c_int, (10 * major + minor) as c_int) }
    }

    /// Makes a launch on the device fail with the driver's error number after `launches` good ones. Its context is spoilt
    /// until it is reset, as after a fault of a real kernel.
    pub fn fail_after(&self, device: usize, error: i32, launches: u64) {
        // SAFETY: the signature is the one in driver.cpp.
        let fail = unsafe { self.function::<unsafe extern "C" fn(c_int, c_int, c_long)>("fail") };
        // SAFETY: as above.
        unsafe { fail(device as c_int, error, launches as c_long) }
    }

    /// Whether every module is refused, as by a driver that knows none of the compiled architectures.
    pub fn refuse_modules(&self, refuse: bool) {
        // SAFETY: the signature is the one in driver.cpp.
        unsafe { self.function::<unsafe extern "C" fn(c_int)>("refuse_modules")(c_int::from(refuse)) }
    }

    /// How many bytes are allocated on the device.
    pub fn used_bytes(&self, device: usize) -> usize {
        // SAFETY: the signature is the one in driver.cpp.
        unsafe { self.function::<unsafe extern "C" fn(c_int) -> usize>("used_bytes")(device as c_int) }
    }

    /// How often a captured graph was launched, on any device.
    pub fn graph_launches(&self) -> usize {
        // SAFETY: the signature is the one in driver.cpp.
        unsafe { self.function::<unsafe extern "C" fn() -> c_int>("graph_launches")() as usize }
    }

    /// How often the stand-in of another library (cuBLASLt) has queued work, on any device.
    pub fn enqueued(&self) -> usize {
        // SAFETY: the signature is the one in driver.cpp.
        unsafe { self.function::<unsafe extern "C" fn() -> c_long>("enqueued")() as usize }
    }

    /// A function of the library by its whole name.
    ///
    /// # Safety
    /// `F` must be the function's type.
    ///
    /// # Panics
    /// Without such a function.
    pub unsafe fn symbol<F>(&self, name: &str) -> Symbol<F> {
        // SAFETY: the caller's.
        unsafe { self.library.get(name) }.unwrap_or_else(|error| panic!("the stand-in has no {name}: {error}"))
    }

    unsafe fn function<F>(&self, name: &str) -> Symbol<F> {
        // SAFETY: the caller's.
        unsafe { self.symbol(&format!("zoetrope_standin_{name}")) }
    }
}

#[cfg(emulator)]
fn folder() -> Option<PathBuf> {
    let built = PathBuf::from(env!("OUT_DIR"));
    Some(match std::env::var("ZOETROPE_STANDIN") {
        Err(_) => built.join("plain"),
        Ok(choice) if choice.contains('/') => choice.into(),
        Ok(choice) => built.join(choice),
    })
}

#[cfg(not(emulator))]
#[allow(clippy::print_stderr, reason = "whoever runs the tests must see what was skipped")]
fn folder() -> Option<PathBuf> {
    assert!(std::env::var_os("ZOETROPE_REQUIRE_ALL").is_none(), "the emulator needs x86-64 Linux");
    eprintln!("skipped: the emulator of CUDA kernels runs on x86-64 Linux only");
    None
}
