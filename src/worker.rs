//! Layer `worker`.
