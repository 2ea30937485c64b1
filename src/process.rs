//! Layer `process`.
