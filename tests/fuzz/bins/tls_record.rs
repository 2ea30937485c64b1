//! The target `tls_record` as libFuzzer runs it.

#![no_main]

#[path = "../targets/tls_record.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::run(input));
