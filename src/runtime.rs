//! Layer `runtime`.
