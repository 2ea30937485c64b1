//! The target `http2` as libFuzzer runs it.

#![no_main]

#[path = "../targets/http2.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
