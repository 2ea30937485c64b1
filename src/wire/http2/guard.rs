//! Rates at which a peer may do what costs us work without serving anybody.
//!
//! Owned by one connection. A meter is a leaky bucket kept as one point in time (the generic cell rate algorithm):
//! it needs no timer, and silence costs nothing. The bounds and what an honest peer does are in `limits.rs`.
//!
//! Rapid reset (CVE-2023-44487) and its provoked form (CVE-2025-8671) are told apart from honest resets by
//! whether the stream was answered: a node whose applications reset thousands of connections per second resets
//! streams that were served, an attacker resets streams whose work was wasted.

use std::time::{Duration, Instant};

use super::error::{ConnectionError, Reason};
use crate::limits::{self, Rate};

/// A leaky bucket: `None` is empty, otherwise the time at which it will be.
#[derive(Debug, Default, Clone, Copy)]
struct Meter {
    empty_at: Option<Instant>,
}

impl Meter {
    /// False when the units overflow the bucket.
    fn charge(&mut self, now: Instant, units: u32, rate: Rate) -> bool {
        let unit = Duration::from_secs(1) / rate.per_second;
        let empty_at = self.empty_at.map_or(now, |at| at.max(now)) + unit * units;
        self.empty_at = Some(empty_at);
        empty_at.saturating_duration_since(now) <= unit * rate.burst
    }
}

#[derive(Debug, Default)]
pub(super) struct Guard {
    resets: Meter,
    header_lists: Meter,
    settings: Meter,
    pings: Meter,
    data_empty: Meter,
    window_updates: Meter,
    window_updates_explained: u32,
    idle_frames: Meter,
    tiny_held: u32,
}

impl Guard {
    /// The peer gave up a stream that was not answered, or opened one that had to be refused.
    pub fn reset_unserved(&mut self, now: Instant) -> Result<(), ConnectionError> {
        check(
            self.resets.charge(now, 1, limits::HTTP2_RESETS_UNSERVED),
            Reason::RapidReset,
        )
    }

    /// The peer made us reset a stream by breaking a rule, answered or not.
    pub fn reset_provoked(&mut self, now: Instant) -> Result<(), ConnectionError> {
        let weight = limits::HTTP2_RESET_PROVOKED_WEIGHT;
        check(
            self.resets.charge(now, weight, limits::HTTP2_RESETS_UNSERVED),
            Reason::ProvokedReset,
        )
    }

    pub fn header_list_too_large(&mut self, now: Instant) -> Result<(), ConnectionError> {
        check(
            self.header_lists
                .charge(now, 1, limits::HTTP2_HEADER_LISTS_TOO_LARGE),
            Reason::HeaderList,
        )
    }

    pub fn settings(&mut self, now: Instant) -> Result<(), ConnectionError> {
        check(
            self.settings.charge(now, 1, limits::HTTP2_SETTINGS),
            Reason::SettingsFlood,
        )
    }

    pub fn ping(&mut self, now: Instant) -> Result<(), ConnectionError> {
        check(self.pings.charge(now, 1, limits::HTTP2_PINGS), Reason::PingFlood)
    }

    pub fn data_empty(&mut self, now: Instant) -> Result<(), ConnectionError> {
        check(
            self.data_empty.charge(now, 1, limits::HTTP2_DATA_EMPTY),
            Reason::DataEmptyFlood,
        )
    }

    pub fn window_update(&mut self, now: Instant) -> Result<(), ConnectionError> {
        if self.window_updates_explained > 0 {
            self.window_updates_explained -= 1;
            return Ok(());
        }
        let held = self.window_updates.charge(now, 1, limits::HTTP2_WINDOW_UPDATES);
        check(held, Reason::WindowUpdateFlood)
    }

    /// We sent DATA, which the peer will credit.
    pub fn data_sent(&mut self, bytes: usize) {
        let explains =
            bytes as u32 / limits::HTTP2_WINDOW_UPDATE_DATA_BYTES + limits::HTTP2_WINDOW_UPDATES_PER_DATA;
        self.window_updates_explained =
            (self.window_updates_explained + explains).min(limits::HTTP2_WINDOW_UPDATES_EXPLAINED_MAX);
    }

    /// A frame that changes nothing.
    pub fn idle_frame(&mut self, now: Instant) -> Result<(), ConnectionError> {
        check(
            self.idle_frames.charge(now, 1, limits::HTTP2_FRAMES_IDLE),
            Reason::IdleFrameFlood,
        )
    }

    /// A tiny DATA frame joined unread bytes of its stream.
    pub fn hold_tiny(&mut self) -> Result<(), ConnectionError> {
        self.tiny_held += 1;
        check(
            self.tiny_held <= limits::HTTP2_DATA_TINY_HELD,
            Reason::DataTinyFlood,
        )
    }

    pub fn release_tiny(&mut self, frames: u32) {
        self.tiny_held -= frames;
    }
}

/// How many of the tiny frames that a stream holds leave with `consumed` of its `unread` bytes. Frames are not
/// remembered one by one, so that this is an estimate; it is exact when all or nothing is consumed.
pub(super) fn tiny_released(held: u32, consumed: u64, unread: u64) -> u32 {
    if held == 0 || unread == 0 {
        return held;
    }
    (u64::from(held) * consumed).div_ceil(unread).min(u64::from(held)) as u32
}

fn check(within: bool, reason: Reason) -> Result<(), ConnectionError> {
    if within { Ok(()) } else { Err(reason.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 100,
        burst: 20,
    };

    #[test]
    fn a_meter_takes_its_burst_and_not_one_more() {
        let now = Instant::now();
        let mut meter = Meter::default();
        for n in 0..20 {
            assert!(meter.charge(now, 1, RATE), "{n}");
        }
        assert!(!meter.charge(now, 1, RATE));
    }

    #[test]
    fn a_meter_sustains_its_rate_forever_and_notices_one_above_it() {
        let start = Instant::now();
        let mut meter = Meter::default();
        for n in 0..10_000u32 {
            assert!(
                meter.charge(start + Duration::from_millis(10) * n, 1, RATE),
                "{n}"
            );
        }
        let mut meter = Meter::default();
        let held = (0..10_000u32)
            .take_while(|n| meter.charge(start + Duration::from_millis(9) * *n, 1, RATE))
            .count();
        assert!(
            (150..250).contains(&held),
            "10 % above the rate takes ten bursts: {held}"
        );
    }

    #[test]
    fn window_updates_that_our_data_explains_are_free() {
        let now = Instant::now();
        let mut guard = Guard::default();
        for _ in 0..100_000 {
            guard.data_sent(4096);
            guard.window_update(now).expect("two per 4 KiB, as Go sends");
            guard.window_update(now).expect("two per 4 KiB, as Go sends");
        }
        let mut guard = Guard::default();
        let flood = (0..100_000)
            .take_while(|_| guard.window_update(now).is_ok())
            .count();
        assert_eq!(flood, limits::HTTP2_WINDOW_UPDATES.burst as usize);
    }

    #[test]
    fn the_estimate_of_held_frames_reaches_zero_with_the_last_byte() {
        assert_eq!(tiny_released(10, 100, 100), 10);
        assert_eq!(tiny_released(10, 50, 100), 5);
        assert_eq!(tiny_released(10, 1, 100), 1);
        assert_eq!(tiny_released(0, 1, 100), 0);
        assert_eq!(tiny_released(7, 0, 0), 7, "nothing unread holds nothing");
    }
}
