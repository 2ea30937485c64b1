//! The target `zds` as libFuzzer runs it.

#![no_main]

#[path = "../targets/zds.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
