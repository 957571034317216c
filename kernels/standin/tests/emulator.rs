//! The emulator finds what is wrong in a kernel: each claim with a kernel that is wrong on purpose and its right twin.
#![allow(unsafe_code, reason = "calls the stand-in driver's functions")]

mod driver;

use driver::Driver;

const THREADS: usize = 128;
const SEEDS: u32 = 8;
/// What the driver says of a kernel that failed.
const LAUNCH_FAILED: i32 = 719;

fn ascending(count: usize) -> Vec<f32> {
    (0..count).map(|value| value as f32).collect()
}

#[test]
fn a_missing_barrier_gives_wrong_results_under_some_thread_order() {
    let Some(driver) = Driver::open(0) else { return };
    let reversed: Vec<f32> = ascending(THREADS).into_iter().rev().collect();
    let is_right = |kernel: &str, seed| {
        driver.standin.seed(seed);
        let x = driver.upload(&ascending(THREADS));
        assert_eq!(driver.launch(kernel, THREADS, 0, &[&x.address]), 0);
        x.download() == reversed
    };
    assert!((0..SEEDS).all(|seed| is_right("reverse_with_barrier", seed)));
    assert!((0..SEEDS).any(|seed| !is_right("reverse_without_barrier", seed)));
}

#[test]
fn a_background_copy_is_not_there_before_it_is_waited_for() {
    let Some(driver) = Driver::open(1) else { return };
    let values = ascending(4 * THREADS);
    let copied = |kernel: &str| {
        let (x, y) = (driver.upload(&values), driver.upload(&vec![0.0; values.len()]));
        assert_eq!(driver.launch(kernel, THREADS, 16 * THREADS, &[&x.address, &y.address]), 0);
        y.download()
    };
    assert_eq!(copied("copy_after_waiting"), values);
    assert!(copied("copy_without_waiting").iter().all(|value| value.is_nan()));
}

#[test]
fn a_barrier_that_some_threads_never_reach_fails_the_launch_and_spoils_the_context() {
    let Some(driver) = Driver::open(2) else { return };
    let x = driver.upload(&ascending(THREADS));
    assert_eq!(driver.launch("divergent_barrier", THREADS, 0, &[&x.address]), LAUNCH_FAILED);
    assert_eq!(driver.launch("reverse_with_barrier", THREADS, 0, &[&x.address]), LAUNCH_FAILED);
}

#[test]
fn launches_are_counted_by_kernel() {
    let Some(driver) = Driver::open(3) else { return };
    let x = driver.upload(&ascending(8));
    assert_eq!(driver.standin.launches("store_global"), Some(0));
    assert_eq!(driver.launch("store_global", THREADS, 0, &[&x.address, &7i32]), 0);
    assert_eq!(driver.standin.launches("store_global"), Some(1));
    assert_eq!(driver.standin.launches("no_such_kernel"), None);
    assert!(driver.standin.kernels().contains(&"store_global".to_owned()));
}
