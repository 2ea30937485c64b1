//! Layer `process`.
pub mod preflight;
