//! Whether somebody else than the proxies had their CPU while a message was on its way, where they have one to themselves.
//!
//! The scheduler counts for each thread how long it ran and how long it was ready and did not (`CpuTimes`). What a
//! worker waited for beyond what all other threads of the proxies ran meanwhile, it waited for threads of the machine's
//! own, or for a host that kept the CPU. Invariant: what a thread of the proxies did is never taken for somebody else's.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use uztunnel_rig::proxy::CpuTimes;

use crate::seats;

/// The threads of the proxies.
#[derive(Debug)]
pub struct Holdups {
    processes: Vec<u32>,
    threads: Vec<Thread>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Thread {
    process: u32,
    id: u32,
    /// Messages go through it.
    is_worker: bool,
}

/// Of all threads at one time.
#[derive(Debug, Clone, Default)]
pub struct Times(BTreeMap<Thread, CpuTimes>);

impl Holdups {
    /// Of these processes; of none nothing is ever held up.
    pub fn of(processes: Vec<u32>) -> io::Result<Self> {
        let threads = threads_of(&processes)?;
        Ok(Self { processes, threads })
    }

    /// Of the threads that were there when last looked for.
    pub fn times(&self) -> Times {
        // One that has ended has no times.
        let read = |thread: &Thread| Some((*thread, seats::times(thread.process, thread.id).ok()?));
        Times(self.threads.iter().filter_map(read).collect())
    }

    /// For how long others than the proxies held a worker up since `before`.
    pub fn since(&mut self, before: &Times) -> io::Result<Duration> {
        self.threads = threads_of(&self.processes)?;
        Ok(Duration::from_nanos(self.times().held_up_ns(before)))
    }
}

impl Times {
    /// What a new thread ran, it may have run since; what one that has ended ran is not known.
    fn held_up_ns(&self, before: &Self) -> u64 {
        if before.0.keys().any(|thread| !self.0.contains_key(thread)) {
            return 0;
        }
        let since = |(thread, times): (&Thread, &CpuTimes)| {
            let then = before.0.get(thread).copied().unwrap_or_default();
            (thread.is_worker, times.since(then))
        };
        let times: Vec<(bool, CpuTimes)> = self.0.iter().map(since).collect();
        let all_ran: u64 = times.iter().map(|(_, times)| times.ran_ns).sum();
        let workers = times.iter().filter(|(is_worker, _)| *is_worker);
        let held_up = workers.map(|(_, own)| own.waited_ns.saturating_sub(all_ran - own.ran_ns));
        held_up.max().unwrap_or(0)
    }
}

fn threads_of(processes: &[u32]) -> io::Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for &process in processes {
        let found = seats::threads(process)?.into_iter().map(|(id, name)| Thread {
            process,
            id,
            is_worker: is_worker(&name),
        });
        threads.extend(found);
    }
    Ok(threads)
}

/// `uztunnel-0`, and `ztunnel-0` of the reference.
fn is_worker(name: &str) -> bool {
    name.rsplit_once("tunnel-")
        .is_some_and(|(_, number)| number.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: Thread = thread(1, true);
    const CONTROL: Thread = thread(2, false);

    const fn thread(id: u32, is_worker: bool) -> Thread {
        Thread {
            process: 7,
            id,
            is_worker,
        }
    }

    fn times(of: &[(Thread, u64, u64)]) -> Times {
        let one = |&(thread, ran_ns, waited_ns): &(Thread, u64, u64)| {
            let runs = 1;
            let times = CpuTimes {
                ran_ns,
                waited_ns,
                runs,
            };
            (thread, times)
        };
        Times(of.iter().map(one).collect())
    }

    #[test]
    fn a_worker_is_held_up_by_others_for_what_no_thread_of_the_proxies_ran() {
        let before = times(&[(WORKER, 500, 100), (CONTROL, 900, 40)]);
        let after = |ran, waited, control_ran, control_waited| {
            times(&[(WORKER, ran, waited), (CONTROL, control_ran, control_waited)]).held_up_ns(&before)
        };
        assert_eq!(after(550, 1_100, 1_900, 40), 0, "the control thread ran");
        assert_eq!(after(550, 3_100, 1_900, 40), 2_000);
        assert_eq!(
            after(550, 100, 900, 5_000),
            0,
            "nothing goes through the control thread"
        );
    }

    #[test]
    fn threads_that_began_ran_all_of_it_since_and_with_those_that_ended_nothing_is_known() {
        let before = times(&[(WORKER, 500, 0), (CONTROL, 900, 0)]);
        let begun = times(&[
            (WORKER, 500, 1_000),
            (CONTROL, 900, 0),
            (thread(3, false), 600, 0),
        ]);
        assert_eq!(begun.held_up_ns(&before), 400);
        assert_eq!(times(&[(WORKER, 500, 1_000)]).held_up_ns(&before), 0);
    }

    #[test]
    fn workers_are_known_by_their_names() {
        assert!(is_worker("uztunnel-0") && is_worker("ztunnel-12"));
        assert!(!is_worker("uztunnel") && !is_worker("zt") && !is_worker("log") && !is_worker("ztunnel-log"));
    }

    #[test]
    fn the_threads_of_a_process_are_found() {
        let mut holdups = Holdups::of(vec![std::process::id()]).expect("this process");
        let before = holdups.times();
        assert!(before.0.values().any(|times| times.ran_ns > 0), "{before:?}");
        assert_eq!(
            holdups.since(&before).expect("this process"),
            Duration::ZERO,
            "it has no workers"
        );
        let mut nobody = Holdups::of(Vec::new()).expect("nothing to read");
        assert_eq!(
            nobody.since(&Times::default()).expect("nothing to read"),
            Duration::ZERO
        );
    }
}
