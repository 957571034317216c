//! The address sanitizer sees what a kernel does beyond its memory: each launch in a process of its own.
#![allow(unsafe_code, reason = "calls the stand-in driver's functions")]

mod driver;

use driver::Driver;
use std::process::{Command, Output};

/// Values in each kind of memory.
const COUNT: usize = 8;

/// Launches `kernel` with an index to write, in a process under the sanitizer.
fn launched(kernel: &str, index: usize) -> Option<Output> {
    let mut this = Command::new(std::env::current_exe().expect("this program has a path"));
    let this = standin::sanitized(&mut this)?.args(["--exact", "child", "--ignored"]);
    Some(this.env("KERNEL", kernel).env("INDEX", index.to_string()).output().expect("this program starts"))
}

#[test]
#[ignore = "run by the other tests, in a process under the sanitizer"]
fn child() {
    let (Ok(kernel), Ok(index)) = (std::env::var("KERNEL"), std::env::var("INDEX")) else { return };
    let index: i32 = index.parse().expect("a number");
    let driver = Driver::open(0).expect("the parent asks only where there is an emulator");
    let x = driver.upload(&[0.0; COUNT]);
    let shared_bytes = if kernel == "store_dynamic_shared" { COUNT * 4 } else { 0 };
    assert_eq!(driver.launch(&kernel, 1, shared_bytes, &[&x.address, &index]), 0);
    assert_eq!(x.download()[if kernel == "store_global" { index as usize } else { 0 }], 1.0);
}

#[track_caller]
fn is_reported(kernel: &str, report: &str) {
    let Some(good) = launched(kernel, COUNT - 1) else { return };
    let text = String::from_utf8_lossy(&good.stdout);
    assert!(good.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&good.stderr));
    let bad = launched(kernel, COUNT).expect("the first ran");
    let text = String::from_utf8_lossy(&bad.stderr);
    assert!(!bad.status.success() && text.contains(report) && text.contains("faulty.cu"), "{text}");
}

#[test]
fn a_store_beyond_an_allocation_is_reported() {
    is_reported("store_global", "heap-buffer-overflow");
}

#[test]
fn a_store_beyond_a_shared_array_is_reported() {
    is_reported("store_static_shared", "global-buffer-overflow");
}

#[test]
fn a_store_beyond_the_launch_s_shared_memory_is_reported() {
    is_reported("store_dynamic_shared", "heap-buffer-overflow");
}
