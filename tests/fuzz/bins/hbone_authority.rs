//! The target `hbone_authority` as libFuzzer runs it.

#![no_main]

#[path = "../targets/hbone_authority.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
