//! The twins of Hopper's instructions find what is wrong in a kernel, and compute what a right one asks for.
#![allow(unsafe_code, reason = "calls the stand-in driver's functions")]

mod driver;

use driver::{Buffer, Driver};
use std::ffi::{c_int, c_uint, c_void};

const WARPGROUP: usize = 128;
const LAUNCH_FAILED: i32 = 719;

/// The faults of `faulty/hopper.cu`, in its order.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Right,
    NoWaitForCopies,
    NoWaitForProducts,
    NoFence,
    WrongStride,
    WrongStart,
    BytesThatNeverCome,
    SumsWritten,
    TileOverwritten,
}

/// A matrix of small whole numbers, on the device and mapped for tensor copies.
struct Matrix {
    values: Vec<f32>,
    columns: usize,
    _memory: Buffer,
    map: Map,
}

#[derive(Clone, Copy)]
#[repr(align(128))]
struct Map {
    _opaque: [u64; 16],
}

impl Matrix {
    fn new(driver: &Driver, rows: usize, columns: usize) -> Self {
        let values: Vec<f32> = (0..rows * columns).map(|i| ((i * i + 7 * i) % 23) as f32 - 11.0).collect();
        // Whole numbers as small as these are bf16: the upper halves of their f32.
        let bits = |value: f32| value.to_bits() >> 16;
        let pairs: Vec<f32> = values.chunks(2).map(|p| f32::from_bits(bits(p[0]) | bits(p[1]) << 16)).collect();
        let memory = driver.upload(&pairs);
        let map = encode(driver, &memory, [columns as u64, rows as u64], [64, rows as c_uint], 3).expect("a map");
        Self { values, columns, _memory: memory, map }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }
}

/// What the driver says to a map of [columns, rows] in boxes in a swizzle.
fn encode(driver: &Driver, memory: &Buffer, sizes: [u64; 2], boxes: [c_uint; 2], swizzle: c_int) -> Result<Map, c_int> {
    type Encode = unsafe extern "C" fn(
        *mut Map,
        c_int,
        c_uint,
        *mut c_void,
        *const u64,
        *const u64,
        *const c_uint,
        *const c_uint,
        c_int,
        c_int,
        c_int,
        c_int,
    ) -> c_int;
    const BFLOAT16: c_int = 9;
    let mut map = Map { _opaque: [0; 16] };
    let (address, strides, steps) = (memory.address as *mut c_void, [2 * sizes[0]], [1, 1]);
    // SAFETY: the signature is the driver's.
    let result = unsafe {
        let encode = driver.standin.symbol::<Encode>("cuTensorMapEncodeTiled");
        let (sizes, strides) = (sizes.as_ptr(), strides.as_ptr());
        encode(&mut map, BFLOAT16, 2, address, sizes, strides, boxes.as_ptr(), steps.as_ptr(), 0, swizzle, 2, 0)
    };
    if result == 0 { Ok(map) } else { Err(result) }
}

/// Runs `multiply`; its result when the launch was good, and what it should be.
fn multiply(driver: &Driver, fault: Fault) -> (Option<Vec<f32>>, Vec<f32>) {
    let (a, b) = (Matrix::new(driver, 64, 64), Matrix::new(driver, 128, 64));
    let d = driver.upload(&[0.0; 64 * 128]);
    let shared_bytes = 1024 + (64 + 128) * 128 + 8;
    let result = driver.launch("multiply", WARPGROUP, shared_bytes, &[&a.map, &b.map, &d.address, &(fault as c_int)]);
    let dot = |i: usize| a.row(i / 128).iter().zip(b.row(i % 128)).map(|(a, b)| a * b).sum();
    ((result == 0).then(|| d.download()), (0..64 * 128).map(dot).collect())
}

#[test]
fn a_right_product_of_tensor_copies_is_exact_in_any_order_of_threads() {
    let Some(driver) = Driver::open(4) else { return };
    for seed in 0..4 {
        driver.standin.seed(seed);
        let (made, right) = multiply(&driver, Fault::Right);
        assert_eq!(made.as_ref(), Some(&right));
    }
}

#[test]
fn a_descriptor_that_is_wrong_gives_a_wrong_product() {
    let Some(driver) = Driver::open(4) else { return };
    for fault in [Fault::WrongStride, Fault::WrongStart, Fault::NoWaitForProducts] {
        let (made, right) = multiply(&driver, fault);
        assert!(made.is_some_and(|made| made != right), "{fault:?}");
    }
}

#[test]
fn what_the_hardware_leaves_undefined_fails_the_launch() {
    let faults =
        [Fault::NoWaitForCopies, Fault::NoFence, Fault::BytesThatNeverCome, Fault::SumsWritten, Fault::TileOverwritten];
    for (device, fault) in (0..8).filter(|device| *device != 4).zip(faults) {
        let Some(driver) = Driver::open(device) else { return };
        assert_eq!(multiply(&driver, fault).0, None, "{fault:?}");
    }
}

#[test]
fn an_operand_with_a_row_per_k_is_read_as_its_descriptor_says() {
    let Some(driver) = Driver::open(4) else { return };
    let v = Matrix::new(&driver, 16, 64);
    let choose = |fault: Fault| {
        let d = driver.upload(&[0.0; 64 * 64]);
        assert_eq!(driver.launch("choose_rows", WARPGROUP, 4096, &[&v.map, &d.address, &(fault as c_int)]), 0);
        d.download()
    };
    let right: Vec<f32> = (0..64).flat_map(|row| v.row(row % 16).to_vec()).collect();
    assert_eq!(choose(Fault::Right), right);
    assert_ne!(choose(Fault::WrongStride), right);
}

#[test]
fn waits_for_what_nobody_does_end_the_launch() {
    for (device, kernel, threads) in [(6, "share_registers", 3 * WARPGROUP), (7, "meet", 64)] {
        let Some(driver) = Driver::open(device) else { return };
        let launch = |good: c_int| driver.launch(kernel, threads, 0, &[&driver.upload(&[0.0; 384]).address, &good]);
        assert_eq!((launch(1), launch(0)), (0, LAUNCH_FAILED), "{kernel}");
    }
}

#[test]
fn tensor_maps_that_the_driver_would_refuse_are_refused() {
    let Some(driver) = Driver::open(4) else { return };
    let memory = driver.upload(&[0.0; 64 * 64 / 2]);
    let encoded = |sizes, boxes, swizzle| encode(&driver, &memory, sizes, boxes, swizzle).map(|_| ());
    assert_eq!(encoded([64, 64], [64, 64], 3), Ok(()));
    // More than there is, rows that are not multiples of 16 bytes, boxes beyond 256 or wider than the swizzle.
    for (sizes, boxes) in [([64, 65], [64, 64]), ([60, 64], [64, 64]), ([64, 64], [64, 257]), ([64, 64], [72, 64])] {
        assert_eq!(encoded(sizes, boxes, 3), Err(1), "{sizes:?} {boxes:?}");
    }
}
