//! The one place that reads the clock. Everything below it takes time as an argument, so that tests and the
//! simulation decide what time it is: with the cargo feature `sim`, a thread that has set a time lives in that one.

pub use std::time::{Duration, Instant, SystemTime};

/// Monotonic now.
pub fn now() -> Instant {
    #[cfg(feature = "sim")]
    if let Some(now) = simulated::now() {
        return now;
    }
    Instant::now()
}

/// Wall-clock now, for log lines and certificate validity only.
pub fn wall() -> SystemTime {
    #[cfg(feature = "sim")]
    if let Some(wall) = simulated::wall() {
        return wall;
    }
    SystemTime::now()
}

/// Whether the calling thread lives in a time of its own, where only what is waited for passes.
pub fn is_simulated() -> bool {
    #[cfg(feature = "sim")]
    return simulated::get().is_some();
    #[cfg(not(feature = "sim"))]
    false
}

/// Time of a thread that simulates.
#[cfg(feature = "sim")]
pub mod simulated {
    use std::cell::Cell;

    use super::{Duration, Instant, SystemTime};

    /// What the clocks of the calling thread show.
    #[derive(Debug, Clone, Copy)]
    pub struct Time {
        pub now: Instant,
        pub wall: SystemTime,
        /// By how much both go on with every look at the monotonic clock: a slow CPU.
        pub step: Duration,
    }

    thread_local! {
        static TIME: Cell<Option<Time>> = const { Cell::new(None) };
    }

    /// `None`: real time again.
    pub fn set(time: Option<Time>) {
        TIME.set(time);
    }

    pub fn get() -> Option<Time> {
        TIME.get()
    }

    pub(super) fn now() -> Option<Instant> {
        let mut time = TIME.get()?;
        let now = time.now;
        time.now += time.step;
        time.wall += time.step;
        TIME.set(Some(time));
        Some(now)
    }

    pub(super) fn wall() -> Option<SystemTime> {
        TIME.get().map(|time| time.wall)
    }
}
