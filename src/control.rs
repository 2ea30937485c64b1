//! Layer `control`.

pub mod access_log;
pub mod certificates;
pub mod log_line;
pub mod pods;
pub mod readiness;
pub mod zds;
