//! The one place that reads the clock. Everything below it takes time as an argument, so that tests and the
//! simulation decide what time it is.

pub use std::time::{Duration, Instant, SystemTime};

/// Monotonic now.
pub fn now() -> Instant {
    Instant::now()
}

/// Wall-clock now, for log lines and certificate validity only.
pub fn wall() -> SystemTime {
    SystemTime::now()
}
