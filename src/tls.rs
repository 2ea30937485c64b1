//! Layer `tls`.
