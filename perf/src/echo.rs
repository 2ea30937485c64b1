//! A clock of what others wait for: one connection, a message and its echo every millisecond.
//!
//! The messages are sent at their times whether or not the one before is back, so far as one thread can: a late echo
//! makes those after it late as well, and each is counted from the time at which it was due. Both ends run before
//! all ordinary threads of their CPU, so that only the way between them is measured. Where the client itself is woken
//! late although nothing was on its way, by a host that stops its CPU, the time is counted from then on. Of a message that
//! takes long it is found out whether others than the proxies had their CPU (`holdups`).

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use uztunnel_rig::lock;
use uztunnel_rig::{Pod, Result, RigError, sys};

use crate::holdups::Holdups;

pub const PORT: u16 = 7007;
const INTERVAL: Duration = Duration::from_millis(1);
const MESSAGE_BYTES: usize = 64;
const LATENCY_MAX_US: u64 = 60_000_000;

/// Messages of a window: about as many as there are while 100,000 workloads are loaded.
pub const WINDOW: u64 = 700;

/// A message that takes as long is looked into.
const SLOW: Duration = Duration::from_micros(300);

/// How long messages took, microseconds.
#[derive(Debug, Clone)]
pub struct Latencies {
    pub all: Histogram<u64>,
    /// Each less the time for which others than the proxies held it up.
    pub own: Histogram<u64>,
    /// How many others held up for half of their time or more.
    pub held_up: u64,
    /// The longest of each `WINDOW` messages. What stops the machine for ten milliseconds makes ten late messages in one
    /// window, so that the median of windows tells what a phase is like by itself, also if it is a short one.
    pub longest: Vec<f64>,
    /// Of the window that is not over.
    longest_yet: f64,
}

impl Latencies {
    fn new() -> Self {
        let none = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("invariant: bounds are valid");
        Self {
            all: none.clone(),
            own: none,
            held_up: 0,
            longest: Vec::new(),
            longest_yet: 0.0,
        }
    }

    fn record(&mut self, took: Duration, held_up: Duration) {
        let us = |duration: Duration| (duration.as_micros() as u64).max(1);
        let took_us = us(took);
        self.all.saturating_record(took_us);
        self.own.saturating_record(us(took.saturating_sub(held_up)));
        self.held_up += u64::from(held_up >= took / 2);
        self.longest_yet = self.longest_yet.max(took_us as f64);
        if self.all.len().is_multiple_of(WINDOW) {
            self.longest.push(std::mem::take(&mut self.longest_yet));
        }
    }

    /// Those of another while of the same kind.
    pub fn add(&mut self, other: &Self) {
        self.all += &other.all;
        self.own += &other.own;
        self.held_up += other.held_up;
        self.longest.extend(&other.longest);
    }
}

/// The running clock.
pub struct Echo {
    latency_us: Arc<Mutex<Latencies>>,
    stop: Arc<AtomicBool>,
    client: Option<thread::JoinHandle<io::Result<()>>>,
    server: Option<thread::JoinHandle<io::Result<()>>>,
}

impl Echo {
    /// From one pod to another, by these processes, if they have a CPU to themselves.
    pub fn start(from: &Pod, to: &Pod, target: SocketAddr, proxies: Vec<u32>) -> Result<Self> {
        let failed = |error| RigError::new("starting the echo", error);
        let listener = to
            .namespace
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))
            .map_err(failed)?;
        let server = to.namespace.spawn("echo-server", move || serve(&listener));
        let stop = Arc::new(AtomicBool::new(false));
        let latency_us = Arc::new(Mutex::new(Latencies::new()));
        let holdups = Holdups::of(proxies).map_err(failed)?;
        let (stopping, recorded) = (Arc::clone(&stop), Arc::clone(&latency_us));
        let client = from
            .namespace
            .spawn("echo-client", move || ask(target, &stopping, &recorded, holdups));
        Ok(Self {
            latency_us,
            stop,
            client: Some(client),
            server: Some(server),
        })
    }

    /// What was measured since the last call.
    pub fn take(&self) -> Latencies {
        let mut recorded = lock(&self.latency_us);
        std::mem::replace(&mut *recorded, Latencies::new())
    }

    /// Ends it; an error of either end is one of the measurement.
    pub fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in [self.client.take(), self.server.take()].into_iter().flatten() {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map_err(|error| RigError::new("running the echo", error))?;
        }
        Ok(())
    }
}

fn serve(listener: &TcpListener) -> io::Result<()> {
    sys::run_first()?;
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE_BYTES];
    loop {
        match stream.read(&mut message)? {
            0 => return Ok(()),
            got => stream.write_all(&message[..got])?,
        }
    }
}

fn ask(
    target: SocketAddr,
    stop: &AtomicBool,
    recorded: &Mutex<Latencies>,
    mut holdups: Holdups,
) -> io::Result<()> {
    sys::run_first()?;
    let mut stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut message = [b'e'; MESSAGE_BYTES];
    let mut due = Instant::now() + INTERVAL;
    let mut held_up = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let early = due.saturating_duration_since(Instant::now());
        thread::sleep(early);
        let before = holdups.times();
        let now = Instant::now();
        let begun = counted_from(due, early, now);
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        let took = begun.elapsed();
        // One that waited for the one before waited for what that one waited for.
        held_up = held_up.min(now - begun);
        if took >= SLOW {
            held_up += holdups.since(&before)?;
        }
        lock(recorded).record(took, held_up);
        due = begun + INTERVAL;
    }
    stream.shutdown(Shutdown::Both)
}

/// After a longer stop the clock starts anew, or it would never catch up.
const MISSED_MAX: Duration = Duration::from_secs(1);

/// Since when a message that was due at `due` and goes out `now` is on its way. Its client was ready for it `early`
/// before it was due, or only afterwards.
fn counted_from(due: Instant, early: Duration, now: Instant) -> Instant {
    match early.is_zero() {
        true => due.max(now - MISSED_MAX),
        false => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_tells_its_longest_message_and_one_that_is_not_over_tells_nothing() {
        let us = Duration::from_micros;
        let mut first = Latencies::new();
        for message in 1..=2 * WINDOW + 1 {
            first.record(
                us(match message {
                    5 => 900,
                    message if message > WINDOW => 50,
                    _ => 80,
                }),
                us(if message == 5 { 850 } else { 0 }),
            );
        }
        assert_eq!(first.longest, [900.0, 50.0]);
        let mut second = Latencies::new();
        (0..WINDOW).for_each(|_| second.record(us(70), Duration::ZERO));
        second.add(&first);
        assert_eq!((second.all.len(), second.all.max()), (3 * WINDOW + 1, 900));
        assert_eq!((second.own.len(), second.own.max()), (3 * WINDOW + 1, 80));
        assert_eq!(second.held_up, 1);
        assert_eq!(second.longest, [70.0, 900.0, 50.0]);
    }

    #[test]
    fn an_echo_that_is_late_makes_the_next_message_late_and_a_client_that_is_woken_late_does_not() {
        let due = Instant::now() + MISSED_MAX;
        let late = due + Duration::from_millis(7);
        assert_eq!(counted_from(due, Duration::ZERO, late), due);
        assert_eq!(counted_from(due, INTERVAL, late), late);
        let much_later = due + MISSED_MAX * 3;
        assert_eq!(
            counted_from(due, Duration::ZERO, much_later),
            due + MISSED_MAX * 2
        );
    }
}
