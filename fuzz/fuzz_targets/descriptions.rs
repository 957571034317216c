//! The JSON files that describe a model, with a zero byte between.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| video_model::fuzzing::descriptions(bytes));
