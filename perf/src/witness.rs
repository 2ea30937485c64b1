//! What the machine alone makes of a turn: threads that compute for a few microseconds, sleep, and compute again, beside
//! the proxies and told of by the rule of a worker's turns (`uztunnel::worker::turn_time`).
//!
//! The scheduler charges a thread with what interrupted it, and with the time in which a host kept its CPU. So a worker
//! may be told to have been busy for longer than it was; and so may a witness, of which it is known for how long it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use uztunnel::bridge::TurnHistogram;
use uztunnel::bridge::turns::TurnCounters;
use uztunnel::limits;
use uztunnel::sys::cpu;
use uztunnel::worker::turn_time::TurnTime;
use uztunnel_rig::{Result, RigError};

use crate::seats::{Class, Seat};

/// What a turn of a witness computes, by the clock: more than half of a worker's take less under an echo.
const COMPUTES: Duration = Duration::from_micros(20);
/// With what a sleep takes longer than asked for, some 4,000 turns a second.
const SLEEPS: Duration = Duration::from_micros(200);

/// Threads that run until they are stopped.
pub struct Witnesses {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<TurnHistogram>>>,
}

impl Witnesses {
    /// On the CPU, or on whichever the scheduler chooses.
    pub fn start(count: usize, cpu: Option<usize>) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let threads = (0..count).map(|_| {
            let over = over.clone();
            let thread = std::thread::Builder::new().name("witness".to_owned());
            thread.spawn(move || testify(cpu, &over)).map_err(failed)
        });
        let threads = threads.collect::<Result<_>>()?;
        Ok(Self { over, threads })
    }

    /// The turns of all of them together.
    pub fn stop(self) -> Result<TurnHistogram> {
        self.over.store(true, Ordering::Relaxed);
        let mut turns = TurnHistogram::default();
        for thread in self.threads {
            turns.add(&thread.join().expect("invariant: a witness does not panic")?);
        }
        Ok(turns)
    }
}

fn failed(error: std::io::Error) -> RigError {
    RigError::new("a witness of turns", error)
}

fn testify(cpu: Option<usize>, over: &AtomicBool) -> Result<TurnHistogram> {
    if let Some(cpu) = cpu {
        Seat::new(cpu, Class::Ordinary).take().map_err(failed)?;
    }
    cpu::run_in_slices(limits::WORKER_SLICE).map_err(failed)?;
    let (turns, mut turn_time) = (TurnCounters::default(), TurnTime::default());
    // A long one reads the thread's time: what it used until now is of no turn.
    turn_time.of(limits::TURN_LONG);
    loop {
        let begun = Instant::now();
        while begun.elapsed() < COMPUTES {}
        turns.record(turn_time.of(begun.elapsed()));
        if over.load(Ordering::Relaxed) {
            return Ok(turns.read());
        }
        std::thread::sleep(SLEEPS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_witness_tells_of_its_turns() {
        let witnesses = Witnesses::start(2, Some(0)).expect("threads");
        let turns = witnesses.stop().expect("two witnesses");
        assert!(turns.count() >= 2, "{turns}");
        assert!(turns.longest >= COMPUTES, "{turns}");
    }
}
