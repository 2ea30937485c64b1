//! The target `xds` as libFuzzer runs it.

#![no_main]

#[path = "../targets/xds.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
