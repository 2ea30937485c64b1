//! Layer `process`: what happens once per process, around the threads.
//!
//! Main thread. The only layer that knows all others, and the only one that ends the process.

pub mod boot;
pub mod command;
pub mod log_filter;
pub mod logging;
pub mod preflight;
pub mod servers;
pub mod signals;
pub mod version;
