//! Layer `wire`.
