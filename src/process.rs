//! Layer `process`.

pub mod logging;
