//! The `uztunnel` binary.

fn main() {}
