//! Layer `config`.
