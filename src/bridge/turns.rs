//! How long the turns of a worker take: what everything else on that worker waits for, at worst.
//!
//! Written by the worker at the end of each turn, from clock reads that the turn makes anyway; read by any thread. Time
//! in which the scheduler ran somebody else is left out of long turns (`worker::turn_time`).
//! Buckets are log-linear, four to an octave, so that a bound is known to a quarter.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Below 4 us one bucket for each, then four for each octave up to 2^24 us; longer turns are in the last one.
const BUCKETS: usize = 4 + 22 * 4;
/// A turn that takes at least as long is counted apart: no bucket begins there.
const LONG: Duration = Duration::from_millis(1);

/// One worker's turns as they are counted.
#[derive(Debug)]
pub struct TurnCounters {
    buckets: [AtomicU64; BUCKETS],
    long: AtomicU64,
    total_ns: AtomicU64,
    longest_ns: AtomicU64,
}

/// Turns by duration, since the start.
#[derive(Clone, PartialEq, Eq)]
pub struct TurnHistogram {
    buckets: [u64; BUCKETS],
    /// Those of a millisecond or more.
    pub long: u64,
    pub total: Duration,
    pub longest: Duration,
}

impl TurnCounters {
    /// By the one worker whose turns these are: it needs no read-modify-write.
    pub fn record(&self, turn: Duration) {
        let add = |counter: &AtomicU64, more: u64| {
            counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
        };
        let ns = turn.as_nanos() as u64;
        add(&self.buckets[bucket_of(turn.as_micros() as u64)], 1);
        add(&self.total_ns, ns);
        if turn >= LONG {
            add(&self.long, 1);
        }
        if ns > self.longest_ns.load(Ordering::Relaxed) {
            self.longest_ns.store(ns, Ordering::Relaxed);
        }
    }

    /// Buckets are read one after the other: a turn that ends meanwhile may be in one number and not in another.
    pub fn read(&self) -> TurnHistogram {
        TurnHistogram {
            buckets: std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed)),
            long: self.long.load(Ordering::Relaxed),
            total: Duration::from_nanos(self.total_ns.load(Ordering::Relaxed)),
            longest: Duration::from_nanos(self.longest_ns.load(Ordering::Relaxed)),
        }
    }
}

impl Default for TurnCounters {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            long: AtomicU64::new(0),
            total_ns: AtomicU64::new(0),
            longest_ns: AtomicU64::new(0),
        }
    }
}

impl TurnHistogram {
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Each bucket that has turns: the duration that all of them stayed below, and how many they are.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let bound = |at| Duration::from_micros(bound_us(at));
        let filled = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(move |(at, count)| (bound(at), *count))
    }

    /// A duration that the part `quantile` of all turns stayed below; no more than a quarter above the smallest such.
    pub fn below(&self, quantile: f64) -> Duration {
        let wanted = self.count() as f64 * quantile;
        let mut seen = 0;
        for (bound, count) in self.buckets() {
            seen += count;
            if seen as f64 >= wanted {
                return bound;
            }
        }
        Duration::ZERO
    }

    pub fn add(&mut self, other: &Self) {
        for (ours, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *ours += theirs;
        }
        self.long += other.long;
        self.total += other.total;
        self.longest = self.longest.max(other.longest);
    }
}

impl Default for TurnHistogram {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            long: 0,
            total: Duration::ZERO,
            longest: Duration::ZERO,
        }
    }
}

/// As the log shows it.
impl fmt::Display for TurnHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |duration: Duration| duration.as_micros();
        write!(
            f,
            "{} turns, half below {} us, 99.9 % below {} us, {} of a millisecond or more, the longest {} us",
            self.count(),
            us(self.below(0.5)),
            us(self.below(0.999)),
            self.long,
            us(self.longest)
        )
    }
}

impl fmt::Debug for TurnHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn bucket_of(us: u64) -> usize {
    if us < 4 {
        return us as usize;
    }
    let octave = us.ilog2() as usize;
    let quarter = (us >> (octave - 2)) & 3;
    (4 + (octave - 2) * 4 + quarter as usize).min(BUCKETS - 1)
}

/// The first duration above the bucket.
fn bound_us(bucket: usize) -> u64 {
    if bucket < 4 {
        return bucket as u64 + 1;
    }
    let (octave, quarter) = ((bucket - 4) / 4 + 2, (bucket - 4) % 4);
    (1 << octave) + ((quarter as u64 + 1) << (octave - 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_in_the_bucket_below_its_bound() {
        for us in (0..100_000).chain([1 << 20, (1 << 24) - 1]) {
            let bucket = bucket_of(us);
            assert!(us < bound_us(bucket), "{us}");
            assert!(bucket == 0 || us >= bound_us(bucket - 1), "{us}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(bound_us(BUCKETS - 1), 1 << 24);
    }

    #[test]
    fn turns_are_counted_summed_and_ranked() {
        let counters = TurnCounters::default();
        for us in 1..1000 {
            counters.record(Duration::from_micros(us));
        }
        counters.record(Duration::from_millis(1));
        counters.record(Duration::from_millis(3));
        let turns = counters.read();
        assert_eq!(turns.count(), 1001);
        assert_eq!(turns.longest, Duration::from_millis(3));
        assert_eq!(turns.total, Duration::from_micros(500_500 + 3000));
        assert_eq!(turns.long, 2);
        assert_eq!(turns.below(0.5), Duration::from_micros(512));
        let mut twice = turns.clone();
        twice.add(&turns);
        assert_eq!(
            (twice.count(), twice.long, twice.longest),
            (2002, 4, turns.longest)
        );
        assert_eq!(
            turns.to_string(),
            "1001 turns, half below 512 us, 99.9 % below 1024 us, 2 of a millisecond or more, the longest 3000 us"
        );
    }
}
