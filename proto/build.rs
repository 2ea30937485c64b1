//! Compiles the protobuf schemas without needing `protoc`.

fn main() {}
