//! Layer `control`.

pub mod access_log;
pub mod certificates;
pub mod demands;
pub mod log_line;
pub mod pods;
pub mod readiness;
pub mod zds;
