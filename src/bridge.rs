//! Layer `bridge`.
