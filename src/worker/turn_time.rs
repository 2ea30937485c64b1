//! How long a turn kept the worker itself busy, which is not how long it took when the scheduler gave the CPU to others
//! in the middle of it.
//!
//! A thread's CPU time costs a system call, so it is read once in a few turns and after a long one. Invariant: what is
//! told of a turn is never less than the CPU time that it used, and never more than it took.

use std::time::Duration;

use crate::clock;
use crate::limits;
use crate::sys::cpu;

/// So many turns, with what the driver did before each, may be taken for part of a long one.
const TURNS_PER_READING: u32 = 4;

/// Of one worker, kept on its thread.
#[derive(Debug, Default)]
pub struct TurnTime {
    /// CPU time of the thread when it was last read.
    read: Duration,
    turns_since: u32,
}

impl TurnTime {
    /// Of a turn that took `wall` and has just ended.
    pub fn of(&mut self, wall: Duration) -> Duration {
        self.by(wall, || (!clock::is_simulated()).then(cpu::thread_time))
    }

    fn by(&mut self, wall: Duration, thread_cpu: impl FnOnce() -> Option<Duration>) -> Duration {
        self.turns_since += 1;
        let is_long = wall >= limits::TURN_LONG;
        if !is_long && self.turns_since < TURNS_PER_READING {
            return wall;
        }
        self.turns_since = 0;
        let Some(cpu) = thread_cpu() else {
            return wall;
        };
        let used = cpu.saturating_sub(self.read);
        self.read = cpu;
        wall.min(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_millis(5);
    const SHORT: Duration = Duration::from_micros(20);

    fn cpu_us(us: u64) -> impl FnOnce() -> Option<Duration> {
        move || Some(Duration::from_micros(us))
    }

    fn never() -> Option<Duration> {
        panic!("the thread's time is not read for this turn")
    }

    #[test]
    fn an_interrupted_turn_is_as_long_as_the_thread_was_busy() {
        let mut time = TurnTime::default();
        assert_eq!(time.by(LONG, cpu_us(100)), Duration::from_micros(100));
        assert_eq!(time.by(SHORT, never), SHORT);
        // Of these 70 us some belong to the turn before; which is not known.
        assert_eq!(time.by(LONG, cpu_us(170)), Duration::from_micros(70));
    }

    #[test]
    fn a_turn_that_was_busy_all_the_time_is_as_long_as_it_took() {
        let mut time = TurnTime::default();
        assert_eq!(time.by(LONG, cpu_us(5_400)), LONG);
    }

    #[test]
    fn short_turns_read_the_threads_time_now_and_then() {
        let mut time = TurnTime::default();
        for _ in 1..TURNS_PER_READING {
            assert_eq!(time.by(SHORT, never), SHORT);
        }
        assert_eq!(time.by(SHORT, cpu_us(900)), SHORT);
        assert_eq!(time.by(SHORT, never), SHORT);
        assert_eq!(time.by(LONG, cpu_us(950)), Duration::from_micros(50));
    }

    #[test]
    fn where_time_is_simulated_all_of_a_turn_counts() {
        assert_eq!(TurnTime::default().by(LONG, || None), LONG);
    }

    #[test]
    fn a_thread_that_sleeps_was_not_busy() {
        let mut time = TurnTime::default();
        time.of(LONG);
        std::thread::sleep(LONG * 4);
        assert!(time.of(LONG * 4) < LONG * 4);
    }
}
