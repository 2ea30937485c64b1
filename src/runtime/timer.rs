//! A hierarchical timer wheel: starting and cancelling are O(1), the tick is one millisecond.
//!
//! Time comes in as an argument. A timer never fires early; it fires at the first `expire` at or after its
//! deadline, rounded up to the tick.

use std::time::{Duration, Instant};

use crate::planted::{Bug, is_planted};

const SLOTS: usize = 64;
const SLOT_BITS: u32 = 6;
/// 64^5 ms: 12 days. Longer deadlines are parked in the last level and looked at again.
const LEVELS: usize = 5;
const NONE: u32 = u32::MAX;
const TICKS_MAX: u64 = 1 << (SLOT_BITS * LEVELS as u32);

/// A running timer. Stale ids (fired or cancelled) are harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimerId {
    index: u32,
    generation: u32,
}

/// The timers of one worker; each carries a `T` that tells what to do when it fires.
pub struct Wheel<T> {
    start: Instant,
    /// Ticks that were processed.
    tick: u64,
    heads: [[u32; SLOTS]; LEVELS],
    occupied: [u64; LEVELS],
    entries: Vec<Entry<T>>,
    free: u32,
    len: usize,
}

struct Entry<T> {
    generation: u32,
    deadline: u64,
    place: Place,
    previous: u32,
    next: u32,
    what: Option<T>,
}

#[derive(Clone, Copy)]
struct Place {
    level: u8,
    slot: u8,
}

impl<T> Wheel<T> {
    pub fn new(now: Instant) -> Self {
        Self {
            start: now,
            tick: 0,
            heads: [[NONE; SLOTS]; LEVELS],
            occupied: [0; LEVELS],
            entries: Vec::new(),
            free: NONE,
            len: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn start(&mut self, deadline: Instant, what: T) -> TimerId {
        let ticks = deadline
            .saturating_duration_since(self.start)
            .as_nanos()
            .div_ceil(1_000_000) as u64;
        let deadline = ticks.max(self.tick + 1);
        let index = self.allocate(deadline, what);
        self.link(index);
        self.len += 1;
        TimerId {
            index,
            generation: self.entries[index as usize].generation,
        }
    }

    /// Stops a timer. `None` when it fired or was cancelled already.
    pub fn cancel(&mut self, id: TimerId) -> Option<T> {
        if !self.is_running(id) {
            return None;
        }
        self.unlink(id.index);
        Some(self.release(id.index))
    }

    /// Whether the timer has neither fired nor been cancelled.
    pub fn is_running(&self, id: TimerId) -> bool {
        let entry = self.entries.get(id.index as usize);
        entry.is_some_and(|entry| entry.generation == id.generation && entry.what.is_some())
    }

    /// How long until the next call of `expire` can have something to do. May be too early, never too late.
    pub fn next_in(&self, now: Instant) -> Option<Duration> {
        let tick = self.next_tick()?;
        let at = self.start + Duration::from_millis(tick);
        Some(at.saturating_duration_since(now))
    }

    /// Moves time on to `now` and appends everything that is due.
    pub fn expire(&mut self, now: Instant, due: &mut Vec<T>) {
        let target = now.saturating_duration_since(self.start).as_millis() as u64;
        while self.tick < target {
            let Some(next) = self.next_tick().filter(|next| *next <= target) else {
                self.tick = target;
                return;
            };
            self.tick = next;
            self.cascade(due);
        }
    }

    /// The earliest tick at which some slot has to be looked at.
    fn next_tick(&self) -> Option<u64> {
        (0..LEVELS)
            .filter(|level| self.occupied[*level] != 0)
            .map(|level| {
                let shift = SLOT_BITS * level as u32;
                let position = self.tick >> shift;
                let from = (position as u32 + 1) & (SLOTS as u32 - 1);
                let distance = self.occupied[level].rotate_right(from).trailing_zeros();
                (position + 1 + u64::from(distance)) << shift
            })
            .min()
    }

    /// Fires or moves down the entries of every slot that begins at the current tick, widest first.
    fn cascade(&mut self, due: &mut Vec<T>) {
        for level in (0..LEVELS).rev() {
            let shift = SLOT_BITS * level as u32;
            if self.tick & ((1 << shift) - 1) != 0 {
                continue;
            }
            let slot = (self.tick >> shift) as usize & (SLOTS - 1);
            let mut index = std::mem::replace(&mut self.heads[level][slot], NONE);
            self.occupied[level] &= !(1 << slot);
            while index != NONE {
                let next = self.entries[index as usize].next;
                if self.entries[index as usize].deadline <= self.tick {
                    let what = self.release(index);
                    due.push(what);
                } else if is_planted(Bug::TimerLostAtWrap) && slot == 0 {
                    self.release(index);
                } else {
                    self.link(index);
                }
                index = next;
            }
        }
    }

    fn place(&self, deadline: u64) -> Place {
        let deadline = deadline.min(self.tick + TICKS_MAX - 1);
        let distance = deadline - self.tick;
        let level = ((63 - distance.max(1).leading_zeros()) / SLOT_BITS).min(LEVELS as u32 - 1);
        Place {
            level: level as u8,
            slot: ((deadline >> (SLOT_BITS * level)) & (SLOTS as u64 - 1)) as u8,
        }
    }

    fn link(&mut self, index: u32) {
        let place = self.place(self.entries[index as usize].deadline);
        let (level, slot) = (usize::from(place.level), usize::from(place.slot));
        let head = self.heads[level][slot];
        if head != NONE {
            self.entries[head as usize].previous = index;
        }
        let entry = &mut self.entries[index as usize];
        entry.place = place;
        entry.previous = NONE;
        entry.next = head;
        self.heads[level][slot] = index;
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, index: u32) {
        let Entry {
            place,
            previous,
            next,
            ..
        } = self.entries[index as usize];
        let (level, slot) = (usize::from(place.level), usize::from(place.slot));
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
        } else {
            self.heads[level][slot] = next;
            if next == NONE {
                self.occupied[level] &= !(1 << slot);
            }
        }
    }

    fn allocate(&mut self, deadline: u64, what: T) -> u32 {
        let place = Place { level: 0, slot: 0 };
        if self.free != NONE {
            let index = self.free;
            let entry = &mut self.entries[index as usize];
            self.free = entry.next;
            entry.deadline = deadline;
            entry.what = Some(what);
            return index;
        }
        let index = u32::try_from(self.entries.len()).expect("invariant: limits keep timers far below 2^32");
        self.entries.push(Entry {
            generation: 0,
            deadline,
            place,
            previous: NONE,
            next: NONE,
            what: Some(what),
        });
        index
    }

    fn release(&mut self, index: u32) -> T {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.next = self.free;
        self.free = index;
        self.len -= 1;
        entry
            .what
            .take()
            .expect("invariant: a linked timer holds its value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Runs the wheel as a worker does: sleeps until `next_in`, then expires.
    fn run(wheel: &mut Wheel<u64>, start: Instant, until_ms: u64) -> Vec<(u64, u64)> {
        let mut fired = Vec::new();
        let mut now = start;
        while let Some(wait) = wheel.next_in(now) {
            now += wait;
            let at = (now - start).as_millis() as u64;
            if at > until_ms {
                break;
            }
            let mut due = Vec::new();
            wheel.expire(now, &mut due);
            fired.extend(due.into_iter().map(|what| (at, what)));
        }
        fired
    }

    #[test]
    fn ten_thousand_timers_fire_once_each_at_their_deadline() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let mut random = fastrand::Rng::with_seed(7);
        let mut expected: Vec<u64> = (0..10_000).map(|_| random.u64(1..400_000)).collect();
        for deadline in &expected {
            wheel.start(start + ms(*deadline), *deadline);
        }
        let fired = run(&mut wheel, start, u64::MAX);
        assert!(fired.iter().all(|(at, deadline)| at == deadline));
        expected.sort_unstable();
        assert_eq!(
            fired.iter().map(|(_, deadline)| *deadline).collect::<Vec<_>>(),
            expected
        );
        assert!(wheel.is_empty());
    }

    #[test]
    fn a_cancelled_timer_does_not_fire_and_its_id_stays_stale() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let cancelled = wheel.start(start + ms(10), 1);
        assert_eq!(wheel.cancel(cancelled), Some(1));
        wheel.start(start + ms(10), 2);
        assert_eq!(wheel.cancel(cancelled), None);
        assert_eq!(run(&mut wheel, start, 1_000), vec![(10, 2)]);
    }

    #[test]
    fn a_late_call_fires_everything_that_is_overdue() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        for deadline in [1, 63, 64, 65, 4_095, 4_096, 5_000, 300_000] {
            wheel.start(start + ms(deadline), deadline);
        }
        let mut due = Vec::new();
        wheel.expire(start + ms(5_000), &mut due);
        due.sort_unstable();
        assert_eq!(due, vec![1, 63, 64, 65, 4_095, 4_096, 5_000]);
        assert_eq!(wheel.len(), 1);
    }

    #[test]
    fn a_deadline_beyond_the_wheel_is_kept() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let far = TICKS_MAX * 2 + 5;
        wheel.start(start + ms(far), far);
        assert_eq!(run(&mut wheel, start, u64::MAX), vec![(far, far)]);
    }

    #[test]
    fn a_timer_in_the_past_fires_at_the_next_tick() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let mut due = Vec::new();
        wheel.expire(start + ms(100), &mut due);
        wheel.start(start, 9);
        wheel.expire(start + ms(101), &mut due);
        assert_eq!(due, vec![9]);
    }
}
