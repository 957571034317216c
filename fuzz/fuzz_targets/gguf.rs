//! A weight file: header, then every tensor in each way.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| video_model::fuzzing::weights(bytes));
