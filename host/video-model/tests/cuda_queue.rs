//! The device queue over a CUDA device: steps on the stand-in driver, which runs the kernels on the CPU and fails when told to.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use futures::executor::block_on;
use kernels::{Tensor, add};
use pipeline::{Lane, StageContext, StageError, StageResult};
use standin::Standin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use video_model::device_queue::{Bill, DeviceQueue, Session};
use video_model::devices::{CudaEngine, Device, DeviceChoice, SensorBoard, ThisMachine};

/// CUDA's number for an access outside of all allocations: the context is lost.
const ILLEGAL_ADDRESS: i32 = 700;
/// Not a multiple of any vector.
const LEN: usize = 1003;

/// Adds the same tensor at each step.
struct Sums {
    weights: Tensor,
    x: Option<Tensor>,
    left: u32,
}

impl Session for Sums {
    type Output = Vec<f32>;

    fn steps(&self) -> u32 {
        3
    }

    fn cost_class(&self) -> u64 {
        1
    }

    fn step(&mut self) -> StageResult<Option<Vec<f32>>> {
        let staged = |error: kernels::Error| match error.spoils_device() {
            true => StageError::DeviceFailed { own_step: true },
            false => StageError::Internal(error.to_string()),
        };
        let x = match self.x.take() {
            Some(x) => x,
            None => Tensor::from_f32(&[1.0; LEN], &[LEN]).map_err(staged)?,
        };
        let x = add(&x, &self.weights).map_err(staged)?;
        self.left -= 1;
        if self.left == 0 {
            return Ok(Some(x.to_vec_f32()));
        }
        self.x = Some(x);
        Ok(None)
    }
}

/// With two devices, for one test at a time: a fault is the whole process's.
fn driver() -> (&'static Standin, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    let alone = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let standin = Standin::load().expect("the stand-in driver");
    standin.devices(2);
    (standin, alone)
}

/// As long as the device is not reset.
fn weights(device: &CudaEngine) -> Tensor {
    let mut made = None;
    device.scope(&mut || made = Some(Tensor::from_f32(&[0.5; LEN], &[LEN]).unwrap()));
    made.unwrap()
}

#[test]
fn a_fault_of_the_driver_ends_the_attempt_and_after_a_reset_the_device_works_again() {
    let (standin, _alone) = driver();
    let device = Arc::new(CudaEngine::open(1, 1, Arc::new(SensorBoard::default())).unwrap());
    assert_eq!((device.id().to_string().as_str(), device.name().is_empty()), ("cuda:1", false));
    let resets = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&resets);
    let after_reset = move || {
        counted.fetch_add(1, Ordering::SeqCst);
    };
    let queue = DeviceQueue::start(device.clone(), 8, after_reset).unwrap();
    let cx = StageContext::unmetered(Lane(0));
    let sums = |weights: &Tensor| Sums { weights: weights.clone(), x: None, left: 3 };

    let (first_life, first) = (queue.life(), weights(&device));
    let summed = block_on(queue.run(&cx, first_life, Bill::DIFFUSE, sums(&first))).unwrap();
    assert_eq!(summed, [2.5; LEN]);

    standin.fail_after(1, ILLEGAL_ADDRESS, 1);
    let failed = block_on(queue.run(&cx, first_life, Bill::DIFFUSE, sums(&first)));
    assert_eq!(failed, Err(StageError::DeviceFailed { own_step: true }));
    assert_eq!((resets.load(Ordering::SeqCst), cx.meter.snapshot().gpu_ms()), (1, 0));
    let lost = block_on(queue.run(&cx, first_life, Bill::DIFFUSE, sums(&first)));
    assert_eq!(lost, Err(StageError::DeviceFailed { own_step: false }));
    drop(first);

    let (second_life, second) = (queue.life(), weights(&device));
    let summed = block_on(queue.run(&cx, second_life, Bill::DIFFUSE, sums(&second))).unwrap();
    assert_eq!(summed, [2.5; LEN]);
    let stats = queue.stats();
    assert_eq!((stats.billed_ms + stats.refunded_ms, stats.faults), (stats.busy_ms, 1));
    assert_eq!(cx.meter.snapshot().gpu_ms(), stats.billed_ms);
}

#[test]
fn the_devices_of_the_machine_are_found_by_their_names() {
    let (_standin, _alone) = driver();
    let open = |choice: &str| choice.parse::<DeviceChoice>().unwrap().open(&ThisMachine::new(Some(1)), usize::MAX);
    let ids = |devices: Vec<Arc<dyn Device>>| devices.iter().map(|d| d.id().to_string()).collect::<Vec<_>>();
    for (choice, found) in [("auto", vec!["cuda:0", "cuda:1"]), ("cuda:1", vec!["cuda:1"]), ("cpu", vec!["cpu"])] {
        assert_eq!(ids(open(choice).unwrap()), found, "{choice}");
    }
    let refused = open("cuda:7").map(drop).unwrap_err().to_string();
    assert!(refused.contains("cuda:7") && refused.contains("cuda:0 to cuda:1"), "{refused}");
}
