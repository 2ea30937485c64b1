//! Threads of the lowest class, one on each CPU, that do nothing but compute: what stops them is the machine, and not a
//! program that is measured.
//!
//! Whoever else wants a CPU takes it from them at once, and their clocks stand still meanwhile: they count their own CPU
//! time. So what they see is what is taken from a thread unseen while it runs, by the hypervisor or for the packets of
//! others. That happens to the threads that are measured as well. What the machine takes while others run is not seen.
//! And no CPU sleeps while they run: a virtual one is woken by its host, which takes as long as it likes.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use uztunnel::sys::cpu;
use uztunnel_rig::{Result, RigError, lock};

use crate::seats::{Class, Seat};

/// One look at the clock to the next is some ten microseconds of work.
const WORK: u32 = 10_000;
/// From so much more than that on, something else was done in the middle of it.
const STOP: Duration = Duration::from_millis(1);

/// The running threads.
pub struct Witnesses {
    ended: Arc<AtomicBool>,
    threads: Vec<Witness>,
}

struct Witness {
    /// By itself: none waits for another one.
    seen: Arc<Mutex<Stops>>,
    /// Until it is stopped.
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// What they saw, all of them.
#[derive(Debug, Default, Clone, Copy)]
pub struct Stops {
    /// For how long they ran.
    pub ran: Duration,
    /// How often something was taken from them for a millisecond or more.
    pub long: u32,
    pub longest: Duration,
}

impl Witnesses {
    /// On every CPU that this process may use, and these.
    pub fn start(others: &[usize]) -> Result<Self> {
        let failed = |error| RigError::new("starting threads that only compute", error);
        let allowed = cpu::allowed().map_err(failed)?;
        let mut cpus: Vec<usize> = allowed
            .iter()
            .map(|cpu| cpu.0)
            .chain(others.iter().copied())
            .collect();
        cpus.sort_unstable();
        cpus.dedup();
        let mut witnesses = Self {
            ended: Arc::default(),
            threads: Vec::new(),
        };
        for cpu in cpus {
            let seen: Arc<Mutex<Stops>> = Arc::default();
            let (sees, ended) = (seen.clone(), witnesses.ended.clone());
            let thread = std::thread::Builder::new().name("witness".to_owned());
            let thread = thread.spawn(move || {
                Seat::new(cpu, Class::Last).take()?;
                compute(&sees, &ended);
                Ok(())
            });
            let thread = Some(thread.map_err(failed)?);
            witnesses.threads.push(Witness { seen, thread });
        }
        Ok(witnesses)
    }

    /// What was seen since the last call.
    pub fn take(&self) -> Stops {
        let mut all = Stops::default();
        for Witness { seen, .. } in &self.threads {
            let Stops { ran, long, longest } = std::mem::take(&mut *lock(seen));
            all.ran += ran;
            all.long += long;
            all.longest = all.longest.max(longest);
        }
        all
    }

    /// Ends them, and gives what they saw since `take`; that one could not have its place is an error of the measurement.
    pub fn stop(mut self) -> Result<Stops> {
        self.ended.store(true, Ordering::Relaxed);
        for witness in &mut self.threads {
            let Some(thread) = witness.thread.take() else {
                continue;
            };
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map_err(|error| RigError::new("running a thread that only computes", error))?;
        }
        Ok(self.take())
    }
}

impl Drop for Witnesses {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn compute(seen: &Mutex<Stops>, ended: &AtomicBool) {
    let mut before = cpu::thread_time();
    let mut number = 1_u32;
    loop {
        for _ in 0..WORK {
            number = std::hint::black_box(number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
        }
        let now = cpu::thread_time();
        lock(seen).add(now.saturating_sub(before));
        before = now;
        if ended.load(Ordering::Relaxed) {
            return;
        }
    }
}

impl Stops {
    fn add(&mut self, took: Duration) {
        self.ran += took;
        if took >= STOP {
            self.long += 1;
            self.longest = self.longest.max(took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_pieces_of_work_are_no_stops() {
        let mut stops = Stops::default();
        for ms in [0, 1, 5, 2] {
            stops.add(Duration::from_millis(ms));
            stops.add(Duration::from_micros(999));
        }
        assert_eq!(stops.ran, Duration::from_micros(8_000 + 4 * 999));
        assert_eq!((stops.long, stops.longest), (3, Duration::from_millis(5)));
    }

    #[test]
    fn they_count_their_own_time_until_they_are_stopped() {
        let witnesses = Witnesses::start(&[]).expect("threads");
        let seen = witnesses.stop().expect("they had their places");
        assert!(seen.ran > Duration::ZERO, "{seen:?}");
    }
}
