//! How long the ZDS client waits before it tries again.
//!
//! Control thread, pure: time and randomness are arguments. Specification: upstream's delays, with one addition:
//! a connection that broke before it ever became ready counts as a failed announcement, so that an agent which
//! closes (or talks nonsense) at once is not called in a busy loop.

use std::time::Duration;

use crate::clock::Instant;
use crate::control::spread;

const CONNECT_DELAY_MIN: Duration = Duration::from_millis(20);
const DELAY_MAX: Duration = Duration::from_secs(15);
const ANNOUNCE_DELAY_FIRST: Duration = Duration::from_millis(500);
const ANNOUNCE_DELAY_AFTER_READY: Duration = Duration::from_millis(5);
/// An agent that was away for so long is asked at `DELAY_MAX` only.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// After a `connect` that failed: 20 ms, doubling, at most 15 s.
#[derive(Debug)]
pub struct ConnectDelay(Duration);

impl ConnectDelay {
    pub fn new() -> Self {
        Self(CONNECT_DELAY_MIN)
    }

    pub fn take(&mut self) -> Duration {
        let delay = self.0;
        self.0 = (delay * 2).min(DELAY_MAX);
        delay
    }
}

impl Default for ConnectDelay {
    fn default() -> Self {
        Self::new()
    }
}

/// After a connection that ended before it was ready.
#[derive(Debug)]
pub struct AnnounceDelay {
    next: Duration,
    since: Instant,
}

impl AnnounceDelay {
    pub fn new(now: Instant) -> Self {
        Self {
            next: ANNOUNCE_DELAY_FIRST,
            since: now,
        }
    }

    /// The agent's snapshot was received and served.
    pub fn ready(&mut self, now: Instant) {
        *self = Self {
            next: ANNOUNCE_DELAY_AFTER_READY,
            since: now,
        };
    }

    /// `random` is uniform in 0..1; it moves the delay by up to 20 % either way.
    pub fn take(&mut self, now: Instant, random: f64) -> Duration {
        if now.saturating_duration_since(self.since) >= PATIENCE {
            return DELAY_MAX;
        }
        let delay = spread(self.next, random);
        self.next = (self.next * 2).min(DELAY_MAX);
        delay.min(DELAY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connecting_is_tried_at_doubling_delays_up_to_fifteen_seconds() {
        let mut delay = ConnectDelay::new();
        let delays: Vec<u128> = (0..12).map(|_| delay.take().as_millis()).collect();
        assert_eq!(
            delays,
            [20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000]
        );
    }

    #[test]
    fn announcing_starts_slowly_before_the_first_success_and_fast_after_it() {
        let start = crate::clock::now();
        let mut delay = AnnounceDelay::new(start);
        assert_eq!(delay.take(start, 0.5), Duration::from_millis(500));
        assert_eq!(delay.take(start, 0.5), Duration::from_millis(1000));
        delay.ready(start);
        assert_eq!(delay.take(start, 0.5), Duration::from_millis(5));
        assert_eq!(delay.take(start, 0.0), Duration::from_millis(8));
        assert_eq!(delay.take(start, 1.0), Duration::from_millis(24));
    }

    #[test]
    fn after_fifteen_minutes_without_success_the_delay_is_flat() {
        let start = crate::clock::now();
        let mut delay = AnnounceDelay::new(start);
        assert_eq!(delay.take(start + PATIENCE, 0.0), DELAY_MAX);
        assert_eq!(delay.take(start + PATIENCE, 1.0), DELAY_MAX);
    }
}
