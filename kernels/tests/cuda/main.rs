//! The device's side of every operation, against the host's, on the stand-in driver.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod attention;
mod conv;
mod device;
mod elementwise;
mod layout;
mod linear;
mod measure;
mod norm;
mod resample;
mod rope;
mod sanitized;
mod support;
