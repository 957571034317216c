//! A kernel's launch: its arguments in order, its shape, and off.
#![allow(unsafe_code, reason = "hands raw arguments to the driver")]

use std::ffi::c_void;

use cudarc::driver::{result, sys};

use super::buffer::CudaBuffer;
use super::device::CudaDevice;
use super::driver::Checked;
use crate::error::{Result, argument_error};
use crate::tensor::Tensor;

/// Most arguments of a kernel.
const ARGUMENTS_MAX: usize = 40;

/// A launch that is being put together. Arguments are matched with the kernel's by their order alone: the kernel tests run
/// every launch.
#[must_use = "a launch runs when told to"]
pub(crate) struct Launch<'d> {
    device: &'d CudaDevice,
    name: &'static str,
    function: sys::CUfunction,
    arguments: Vec<Argument>,
    blocks: [usize; 3],
    threads: usize,
    shared_bytes: usize,
    fault: Option<String>,
}

/// The bytes of an argument, aligned for any type.
enum Argument {
    Word(u64),
    Bytes(Vec<u128>),
}

impl Argument {
    fn pointer(&self) -> *mut c_void {
        match self {
            Self::Word(word) => std::ptr::from_ref(word).cast_mut().cast(),
            Self::Bytes(bytes) => bytes.as_ptr().cast_mut().cast(),
        }
    }
}

impl<'d> Launch<'d> {
    pub(super) fn new(device: &'d CudaDevice, name: &'static str, function: sys::CUfunction) -> Self {
        let arguments = Vec::with_capacity(16);
        Self { device, name, function, arguments, blocks: [1; 3], threads: 1, shared_bytes: 0, fault: None }
    }

    /// The address of a tensor's first element.
    pub(crate) fn tensor(self, tensor: &Tensor) -> Self {
        match tensor.cuda() {
            Some(cuda) => self.word(cuda.buffer.pointer()),
            None => {
                let fault = format!("argument {} of {} is in host memory", self.arguments.len(), self.name);
                Self { fault: Some(fault), ..self.word(0) }
            }
        }
    }

    /// The address of a tensor's first element, or null.
    pub(crate) fn optional(self, tensor: Option<&Tensor>) -> Self {
        match tensor {
            Some(tensor) => self.tensor(tensor),
            None => self.null(),
        }
    }

    /// The address of a buffer.
    pub(crate) fn buffer(self, buffer: &CudaBuffer) -> Self {
        self.word(buffer.pointer())
    }

    /// A pointer to nothing.
    pub(crate) fn null(self) -> Self {
        self.word(0)
    }

    /// An address on the device.
    pub(crate) fn address(self, address: u64) -> Self {
        self.word(address)
    }

    /// An `int`; a size that none can hold is an error of the launch.
    pub(crate) fn int(self, value: usize) -> Self {
        match i32::try_from(value) {
            Ok(value) => self.word(u64::from(value.cast_unsigned())),
            Err(_) => {
                let fault = format!("argument {} of {} is too large: {value}", self.arguments.len(), self.name);
                Self { fault: Some(fault), ..self.word(0) }
            }
        }
    }

    /// An `int` that may be negative.
    pub(crate) fn signed(self, value: i32) -> Self {
        self.word(u64::from(value.cast_unsigned()))
    }

    /// A `long long`.
    pub(crate) fn long(self, value: usize) -> Self {
        self.word(value as u64)
    }

    /// A `float`.
    pub(crate) fn float(self, value: f32) -> Self {
        self.word(u64::from(value.to_bits()))
    }

    /// A struct by value.
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        let mut words = vec![0u128; bytes.len().div_ceil(16)];
        for (word, part) in words.iter_mut().zip(bytes.chunks(16)) {
            let mut padded = [0; 16];
            padded[..part.len()].copy_from_slice(part);
            *word = u128::from_ne_bytes(padded);
        }
        self.arguments.push(Argument::Bytes(words));
        self
    }

    fn word(mut self, word: u64) -> Self {
        self.arguments.push(Argument::Word(word));
        self
    }

    /// Blocks of the grid in x, y, z. A grid without blocks runs nothing.
    pub(crate) fn blocks(self, blocks: [usize; 3]) -> Self {
        Self { blocks, ..self }
    }

    /// Threads of a block.
    pub(crate) fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Dynamic shared memory of a block.
    pub(crate) fn shared_bytes(self, shared_bytes: usize) -> Self {
        Self { shared_bytes, ..self }
    }

    /// Queues the launch behind all that was queued before.
    pub(crate) fn run(self) -> Result<()> {
        if let Some(fault) = self.fault {
            return argument_error(self.name, fault);
        }
        let fits = |at: usize, max: usize| self.blocks[at] <= max;
        if !fits(0, 0x7fff_ffff) || !fits(1, 65_535) || !fits(2, 65_535) || self.arguments.len() > ARGUMENTS_MAX {
            return argument_error(self.name, format!("{:?} blocks are more than a grid can have", self.blocks));
        }
        if self.blocks.contains(&0) {
            return Ok(());
        }
        self.device.enter(self.name)?;
        self.device.allow_shared(self.name, self.function, self.shared_bytes)?;
        let mut pointers: Vec<*mut c_void> = self.arguments.iter().map(Argument::pointer).collect();
        let [x, y, z] = self.blocks.map(|n| n as u32);
        let (threads, shared) = ((self.threads as u32, 1, 1), self.shared_bytes as u32);
        // SAFETY: the driver copies the arguments before it returns. That they are those of the kernel, and point to as much
        // memory as it uses, is what the operation that put the launch together has checked.
        let launched = unsafe {
            result::launch_kernel(self.function, (x, y, z), threads, shared, self.device.stream().raw(), &mut pointers)
        };
        self.device.remember(launched.checked(self.name))
    }
}
