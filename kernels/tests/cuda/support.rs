//! What all of these tests need.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kernels::{CudaDevice, Dtype, Tensor};
use standin::Standin;

/// The stand-in and its device, for one test at a time: seeds and faults are the whole driver's.
pub struct Bench {
    pub standin: &'static Standin,
    pub device: CudaDevice,
    _alone: MutexGuard<'static, ()>,
}

/// Waits for its turn.
pub fn bench() -> Bench {
    static TURN: Mutex<()> = Mutex::new(());
    let alone = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let standin = Standin::load().expect("the stand-in driver");
    // The address sanitizer sees what goes beyond an allocation, not what goes beyond a part of one.
    let sanitized = std::env::var("ZOETROPE_STANDIN").is_ok_and(|choice| choice == "asan");
    let device = if sanitized { CudaDevice::open_exact(0) } else { CudaDevice::open(0) };
    Bench { standin, device: device.expect("the stand-in's device"), _alone: alone }
}

impl Bench {
    /// Runs `work` under several orders of the threads.
    pub fn each_order(&self, mut work: impl FnMut()) {
        for seed in 0..3 {
            self.standin.seed(seed);
            work();
        }
    }

    pub fn on_device(&self, host: &Tensor) -> Tensor {
        host.to_device(&self.device).unwrap()
    }
}

/// Numbers between −1 and 1 that look random and are the same each time; `seed` picks others.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, shape).unwrap()
}

/// ‖a − b‖ / ‖b‖ in f64; not a number when either has one that is not.
pub fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_vec_f32(), b.to_vec_f32());
    let difference: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| f64::from(*b).powi(2)).sum();
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

/// Fails unless the device's result has the host's shape and dtype, and its numbers within what `dtype` allows: 1e-4 in
/// f32 (sums in another order), 1e-2 in bf16 (8 bits of mantissa).
#[track_caller]
pub fn assert_close(device: &Tensor, host: &Tensor, dtype: Dtype) {
    assert_eq!(device.dtype(), host.dtype());
    let (error, allowed) = (relative_error(device, host), if dtype == Dtype::F32 { 1e-4 } else { 1e-2 });
    assert!(error <= allowed, "relative error {error:.2e} of {:?}, at most {allowed:.0e} allowed", host.shape());
}
