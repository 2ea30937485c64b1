//! The target `xds_response` as libFuzzer runs it.

#![no_main]

#[path = "../targets/xds_response.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
