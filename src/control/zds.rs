//! ZDS
pub mod backoff;
pub mod protocol;
