//! Layer `wire`: byte formats, as pure functions and sans-IO state machines.
//!
//! Nothing here knows a file descriptor, a clock, the environment or randomness; bytes and seeds arrive as
//! arguments. Every parser of peer bytes is bounded by `limits`, has a fuzz target under `tests/fuzz` and never
//! panics.

pub mod baggage;
pub mod ca;
pub mod hbone;
pub mod http2;
pub mod proxy_protocol;
pub mod traceparent;

pub mod zds;
