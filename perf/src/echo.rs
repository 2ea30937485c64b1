//! A clock of what others wait for: one connection, a message and its echo every millisecond.
//!
//! The messages are sent at their times whether or not the one before is back, so far as one thread can: a late echo
//! makes those after it late as well, and each is counted from the time at which it was due. Both ends run before
//! all ordinary threads of their CPU, so that only the way between them is measured.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use uztunnel_rig::lock;
use uztunnel_rig::{Pod, Result, RigError, sys};

pub const PORT: u16 = 7007;
const INTERVAL: Duration = Duration::from_millis(1);
const MESSAGE_BYTES: usize = 64;
const LATENCY_MAX_US: u64 = 60_000_000;

/// The running clock.
pub struct Echo {
    latency_us: Arc<Mutex<Histogram<u64>>>,
    stop: Arc<AtomicBool>,
    client: Option<thread::JoinHandle<io::Result<()>>>,
    server: Option<thread::JoinHandle<io::Result<()>>>,
}

impl Echo {
    /// From one pod to another.
    pub fn start(from: &Pod, to: &Pod, target: SocketAddr) -> Result<Self> {
        let failed = |error| RigError::new("starting the echo", error);
        let listener = to
            .namespace
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))
            .map_err(failed)?;
        let server = to.namespace.spawn("echo-server", move || serve(&listener));
        let stop = Arc::new(AtomicBool::new(false));
        let latency_us = Arc::new(Mutex::new(histogram()));
        let (stopping, recorded) = (Arc::clone(&stop), Arc::clone(&latency_us));
        let client = from
            .namespace
            .spawn("echo-client", move || ask(target, &stopping, &recorded));
        Ok(Self {
            latency_us,
            stop,
            client: Some(client),
            server: Some(server),
        })
    }

    /// What was measured since the last call, microseconds.
    pub fn take(&self) -> Histogram<u64> {
        let mut recorded = lock(&self.latency_us);
        std::mem::replace(&mut *recorded, histogram())
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

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("invariant: bounds are valid")
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

fn ask(target: SocketAddr, stop: &AtomicBool, recorded: &Mutex<Histogram<u64>>) -> io::Result<()> {
    sys::run_first()?;
    let mut stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut message = [b'e'; MESSAGE_BYTES];
    let mut due = Instant::now() + INTERVAL;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let begun = due.max(Instant::now() - MISSED_MAX);
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        let took_us = begun.elapsed().as_micros() as u64;
        let mut histogram = lock(recorded);
        histogram.saturating_record(took_us.max(1));
        due = begun + INTERVAL;
    }
    stream.shutdown(Shutdown::Both)
}

/// After a longer stop the clock starts anew, or it would never catch up.
const MISSED_MAX: Duration = Duration::from_secs(1);
