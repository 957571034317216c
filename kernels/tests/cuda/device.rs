use crate::support::{bench, random, relative_error};
use kernels::{CudaDevice, Device, Dtype, Error, Tensor, add};

#[test]
fn tensors_go_to_the_device_and_come_back_unchanged() {
    let bench = bench();
    // Longer than the staging memory.
    for (len, dtype) in [(1, Dtype::F32), (77, Dtype::Bf16), (3 << 20, Dtype::F32)] {
        let host = random(&[len], 7).to_dtype(dtype);
        let there = bench.on_device(&host);
        assert_eq!((there.device(), there.dtype()), (Device::Cuda(0), dtype));
        assert_eq!(there.to_host().unwrap().to_vec_f32(), host.to_vec_f32());
    }
}

#[test]
fn tensors_made_in_a_scope_live_on_its_device() {
    let bench = bench();
    let made = bench.device.scope(|| [Tensor::zeros(&[3], Dtype::F32), Tensor::from_f32(&[1.0, 2.0], &[2])]);
    let [zeros, values] = made.map(Result::unwrap);
    assert_eq!((zeros.device(), zeros.to_vec_f32()), (Device::Cuda(0), vec![0.0; 3]));
    assert_eq!(values.to_vec_f32(), [1.0, 2.0]);
    let outside = bench.device.scope(|| CudaDevice::outside(|| Tensor::zeros(&[3], Dtype::F32).unwrap()));
    assert_eq!(outside.device(), Device::Cpu);
}

#[test]
fn writing_to_a_shared_tensor_changes_what_shares_its_memory() {
    let bench = bench();
    let mut input = bench.on_device(&random(&[5], 1));
    let of_a_graph = input.clone();
    input.write_f32(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    assert_eq!(of_a_graph.to_vec_f32(), [1.0, 2.0, 3.0, 4.0, 5.0]);
    assert!(input.write_f32(&[1.0]).is_err());
}

#[test]
fn memory_comes_back_and_is_used_again() {
    let bench = bench();
    let make = || bench.device.scope(|| Tensor::zeros(&[1 << 20], Dtype::F32).unwrap());
    drop((make(), make()));
    let (growths, live) = (bench.device.growths(), bench.device.live_bytes());
    for _ in 0..10 {
        let pair = (make(), make());
        assert_eq!(bench.device.live_bytes(), live + (8 << 20));
        drop(pair);
    }
    assert_eq!((bench.device.growths(), bench.device.live_bytes()), (growths, live));
    bench.device.trim().unwrap();
    assert_eq!(bench.device.held_bytes(), 0);
}

#[test]
fn a_scrubbed_device_shows_nothing_of_what_was_there() {
    let bench = bench();
    drop(bench.on_device(&random(&[1 << 16], 3)));
    bench.device.scrub().unwrap();
    let next = bench.device.uninitialised_for_tests(&[1 << 16]).unwrap();
    assert!(next.to_vec_f32().iter().all(|&v| v == 0.0));
}

#[test]
fn more_than_the_device_has_is_refused_with_need_and_have() {
    let bench = bench();
    let total = bench.device.info().memory_bytes as usize;
    let error = bench.device.reserve(total + 1).unwrap_err();
    assert!(matches!(error, Error::DeviceMemory { .. }) && error.to_string().contains("are free"), "{error}");
    assert!(!error.spoils_device());
    bench.device.reserve(1 << 20).unwrap();
}

#[test]
fn a_device_that_is_not_there_is_refused_with_those_that_are() {
    let _bench = bench();
    let error = CudaDevice::open(7).unwrap_err().to_string();
    assert!(error.contains("cuda:7") && error.contains("only cuda:0"), "{error}");
}

#[test]
fn after_a_reset_old_tensors_refuse_work_and_new_ones_do_it() {
    let bench = bench();
    let old = bench.on_device(&random(&[4], 1));
    let device = bench.device.reset().unwrap();
    assert!(matches!(old.to_host(), Err(Error::Device { .. })));
    assert!(old.to_vec_f32().iter().all(|v| v.is_nan()));
    drop(old);
    let host = random(&[4], 2);
    assert_eq!(relative_error(&host.to_device(&device).unwrap(), &host), 0.0);
}

#[test]
fn the_time_of_work_is_the_devices() {
    let bench = bench();
    let (made, ns) = bench.device.timed(|| bench.on_device(&random(&[1 << 20], 1))).unwrap();
    assert_eq!(made.len(), 1 << 20);
    assert!(ns > 1_000, "{ns} ns for a copy of 4 MB");
}

#[test]
fn a_recorded_graph_gives_what_its_inputs_are_now() {
    let bench = bench();
    let [mut x, y] = [1, 2].map(|seed| bench.on_device(&random(&[1000], seed)));
    let before = bench.standin.graph_launches();
    // What is made on the way is dropped while recording, and its memory used again.
    let (sum, graph) = bench.device.capture(|| add(&add(&add(&x, &y)?, &y)?, &x)).unwrap();
    for seed in [3, 4] {
        let now = random(&[1000], seed);
        x.write_f32(&now.to_vec_f32()).unwrap();
        graph.launch().unwrap();
        let y = y.to_host().unwrap();
        assert_eq!(relative_error(&sum, &add(&add(&add(&now, &y).unwrap(), &y).unwrap(), &now).unwrap()), 0.0);
    }
    assert_eq!(bench.standin.graph_launches() - before, 2);
    assert!(graph.held_bytes() >= 3 * 4000);
}

#[test]
fn a_graph_that_waits_for_the_host_is_refused_and_the_device_can_be_reset() {
    let bench = bench();
    let x = bench.on_device(&random(&[10], 1));
    let error = bench.device.capture(|| x.to_host()).unwrap_err();
    assert!(matches!(error, Error::Device { .. }), "{error}");
    let device = bench.device.reset().unwrap();
    assert!(random(&[10], 1).to_device(&device).is_ok());
}

#[test]
fn what_other_threads_queue_does_not_become_part_of_a_graph() {
    let bench = bench();
    let x = bench.on_device(&random(&[1 << 14], 1));
    let host = random(&[1 << 14], 2);
    let (sum, graph) = std::thread::scope(|threads| {
        let (started, begun) = std::sync::mpsc::channel();
        let loader = {
            let (device, host) = (bench.device.clone(), &host);
            threads.spawn(move || {
                begun.recv().unwrap();
                host.to_device(&device).unwrap()
            })
        };
        let recorded = bench.device.capture(|| {
            started.send(()).unwrap();
            // Long enough for the other thread to try.
            std::thread::sleep(std::time::Duration::from_millis(20));
            add(&x, &x)
        });
        let loaded = loader.join().unwrap();
        assert_eq!(relative_error(&loaded, &host), 0.0);
        recorded.unwrap()
    });
    graph.launch().unwrap();
    assert_eq!(relative_error(&sum, &add(&x, &x).unwrap()), 0.0);
}

#[test]
fn modules_that_the_driver_refuses_are_an_error_that_spoils_nothing() {
    let bench = bench();
    let x = bench.on_device(&random(&[100], 1));
    bench.standin.refuse_modules(true);
    let refused = add(&x, &x);
    bench.standin.refuse_modules(false);
    let error = refused.unwrap_err();
    assert!(matches!(error, Error::DeviceKernel { .. }) && error.to_string().contains("elementwise.fatbin"), "{error}");
    assert!(!error.spoils_device());
    assert!(add(&x, &x).is_ok());
}
