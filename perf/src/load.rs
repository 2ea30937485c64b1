//! Load clients: one thread, one epoll loop, as many connections as the scenario asks for.
//!
//! A client runs until it is stopped. Its counters can be read at any time, so the runner decides which part of
//! the run counts. Anything unexpected (a short response, a reset) counts as an error, never as a unit.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use uztunnel_rig::Namespace;
use uztunnel_rig::lock;

use crate::seats::Seat;

const REQUEST_KEPT: &[u8] = b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n";
const REQUEST_CLOSED: &[u8] = b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n";

/// What iperf3 uses, too.
const BULK_WRITE_BYTES: usize = 128 * 1024;

/// Latencies above this are recorded as this.
const LATENCY_MAX_US: u64 = 60_000_000;

/// How long the loop sleeps at most before it looks whether it shall stop.
const POLL_LIMIT: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Each connection sends its next request that long after the response is complete.
    Requests { connections: usize, pause: Duration },
    /// As many clients, each opening a new connection for every request.
    ConnectionPerRequest { clients: usize, pause: Duration },
    /// Bytes as fast as they are taken, towards the server.
    Bulk { streams: usize },
}

/// What a running client has done so far.
struct Counters {
    units: AtomicU64,
    errors: AtomicU64,
    recording: AtomicBool,
    stop: AtomicBool,
    latency_us: Mutex<Histogram<u64>>,
}

/// A running client.
pub struct Client {
    counters: Arc<Counters>,
    thread: Option<thread::JoinHandle<io::Result<()>>>,
}

impl Client {
    pub fn start(pod: &Namespace, target: SocketAddr, load: Load) -> Self {
        Self::start_on(pod, target, load, None)
    }

    /// On a seat of its own.
    pub fn start_on(pod: &Namespace, target: SocketAddr, load: Load, seat: Option<Seat>) -> Self {
        let histogram =
            Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("invariant: bounds are valid");
        let counters = Arc::new(Counters {
            units: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            recording: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            latency_us: Mutex::new(histogram),
        });
        let shared = Arc::clone(&counters);
        let thread = pod.spawn("load", move || {
            seat.map_or(Ok(()), Seat::take)?;
            match load {
                Load::Requests { connections, pause } => {
                    Requests::new(target, connections, true, pause)?.run(&shared)
                }
                Load::ConnectionPerRequest { clients, pause } => {
                    Requests::new(target, clients, false, pause)?.run(&shared)
                }
                Load::Bulk { streams } => Bulk::new(target, streams)?.run(&shared),
            }
        });
        Self {
            counters,
            thread: Some(thread),
        }
    }

    /// Requests, or bytes handed to the kernel.
    pub fn units(&self) -> u64 {
        self.counters.units.load(Ordering::Relaxed)
    }

    pub fn errors(&self) -> u64 {
        self.counters.errors.load(Ordering::Relaxed)
    }

    /// From now on latencies are recorded.
    pub fn record(&self) {
        self.counters.recording.store(true, Ordering::Relaxed);
    }

    /// Ends the client and returns the latencies in microseconds.
    pub fn stop(mut self) -> io::Result<Histogram<u64>> {
        self.counters.recording.store(false, Ordering::Relaxed);
        self.counters.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("invariant: joined only here");
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(self
            .counters
            .latency_us
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.counters.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Slot {
    stream: TcpStream,
    /// False until the connection stands and the request is out.
    sent: bool,
    received: usize,
    started: Instant,
}

struct Requests {
    poll: Poll,
    target: SocketAddr,
    /// `None`: it pauses, and will open a connection.
    slots: Vec<Option<Slot>>,
    kept: bool,
    pause: Duration,
    /// Those that pause, and until when: in that order.
    pausing: VecDeque<(Instant, usize)>,
    /// Bytes of one response, learnt from the first.
    response_bytes: Option<usize>,
    buffer: Vec<u8>,
}

enum Step {
    Waiting,
    Complete,
}

impl Requests {
    fn new(target: SocketAddr, connections: usize, kept: bool, pause: Duration) -> io::Result<Self> {
        let mut client = Self {
            poll: Poll::new()?,
            target,
            slots: Vec::with_capacity(connections),
            kept,
            pause,
            pausing: VecDeque::with_capacity(connections),
            response_bytes: None,
            buffer: vec![0; 16 * 1024],
        };
        for index in 0..connections {
            let slot = client.open(index)?;
            client.slots.push(Some(slot));
        }
        Ok(client)
    }

    fn open(&self, index: usize) -> io::Result<Slot> {
        let started = Instant::now();
        let mut stream = TcpStream::connect(self.target)?;
        self.poll
            .registry()
            .register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Slot {
            stream,
            sent: false,
            received: 0,
            started,
        })
    }

    fn run(mut self, counters: &Counters) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        while !counters.stop.load(Ordering::Relaxed) {
            match self.poll.poll(&mut events, Some(self.poll_limit())) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            while let Some(&(until, index)) = self.pausing.front()
                && until <= Instant::now()
            {
                self.pausing.pop_front();
                self.begin(index)?;
            }
            for event in &events {
                let index = event.token().0;
                match self.advance(index) {
                    Ok(Step::Waiting) => {}
                    Ok(Step::Complete) => self.completed(index, counters)?,
                    Err(error) => {
                        if counters.errors.fetch_add(1, Ordering::Relaxed) == 0 {
                            eprintln!("load: the first error: {error}");
                        }
                        self.slots[index] = Some(self.open(index)?);
                    }
                }
            }
        }
        Ok(())
    }

    fn poll_limit(&self) -> Duration {
        let pausing = self.pausing.front();
        pausing.map_or(POLL_LIMIT, |(until, _)| {
            let left = until.saturating_duration_since(Instant::now());
            left.min(POLL_LIMIT)
        })
    }

    fn completed(&mut self, index: usize, counters: &Counters) -> io::Result<()> {
        counters.units.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        if counters.recording.load(Ordering::Relaxed)
            && let Some(slot) = &self.slots[index]
        {
            let elapsed_us = now.duration_since(slot.started).as_micros() as u64;
            let mut histogram = lock(&counters.latency_us);
            histogram.saturating_record(elapsed_us.max(1));
        }
        if self.pause.is_zero() {
            return self.begin(index);
        }
        if !self.kept {
            self.slots[index] = None;
        }
        self.pausing.push_back((now + self.pause, index));
        Ok(())
    }

    /// The next request.
    fn begin(&mut self, index: usize) -> io::Result<()> {
        match &mut self.slots[index] {
            Some(slot) if self.kept => {
                slot.received = 0;
                slot.started = Instant::now();
                // 30 bytes always fit into the empty send buffer of an idle connection.
                slot.stream.write_all(REQUEST_KEPT)
            }
            _ => {
                self.slots[index] = Some(self.open(index)?);
                Ok(())
            }
        }
    }

    fn advance(&mut self, index: usize) -> io::Result<Step> {
        let Some(slot) = &mut self.slots[index] else {
            return Ok(Step::Waiting);
        };
        if !slot.sent {
            if let Some(error) = slot.stream.take_error()? {
                return Err(error);
            }
            match slot.stream.peer_addr() {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(Step::Waiting),
                Err(error) => return Err(error),
            }
            slot.stream.set_nodelay(true)?;
            slot.stream
                .write_all(if self.kept { REQUEST_KEPT } else { REQUEST_CLOSED })?;
            slot.sent = true;
        }
        loop {
            let got = match slot.stream.read(&mut self.buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Step::Waiting),
                Err(error) => return Err(error),
            };
            if got == 0 {
                let complete = !self.kept && self.response_bytes == Some(slot.received);
                return if complete {
                    Ok(Step::Complete)
                } else {
                    Err(ErrorKind::UnexpectedEof.into())
                };
            }
            if slot.received == 0 && self.response_bytes.is_none() {
                self.response_bytes = Some(response_bytes(&self.buffer[..got])?);
            }
            slot.received += got;
            match self.response_bytes {
                Some(expected) if slot.received > expected => {
                    return Err(io::Error::other("more bytes than one response has"));
                }
                Some(expected) if slot.received == expected && self.kept => return Ok(Step::Complete),
                Some(_) | None => {}
            }
        }
    }
}

/// Length of head and body, from the head, which the servers here send in one piece.
fn response_bytes(start: &[u8]) -> io::Result<usize> {
    let malformed = || io::Error::other("the response has no complete head with a content-length");
    let end = start
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(malformed)?
        + 4;
    let head = std::str::from_utf8(&start[..end]).map_err(|_| malformed())?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(io::Error::other(format!(
            "the response is {:?}",
            head.lines().next()
        )));
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length = length
        .and_then(|length| length.parse::<usize>().ok())
        .ok_or_else(malformed)?;
    Ok(end + length)
}

struct Bulk {
    poll: Poll,
    streams: Vec<TcpStream>,
}

impl Bulk {
    fn new(target: SocketAddr, count: usize) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut streams = Vec::with_capacity(count);
        for index in 0..count {
            let mut stream = TcpStream::connect(target)?;
            poll.registry()
                .register(&mut stream, Token(index), Interest::WRITABLE)?;
            streams.push(stream);
        }
        Ok(Self { poll, streams })
    }

    fn run(mut self, counters: &Counters) -> io::Result<()> {
        let mut events = Events::with_capacity(64);
        let piece = vec![b'b'; BULK_WRITE_BYTES];
        while !counters.stop.load(Ordering::Relaxed) {
            match self.poll.poll(&mut events, Some(POLL_LIMIT)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            for event in &events {
                let stream = &mut self.streams[event.token().0];
                while !counters.stop.load(Ordering::Relaxed) {
                    match stream.write(&piece) {
                        Ok(written) => {
                            counters.units.fetch_add(written as u64, Ordering::Relaxed);
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) if error.kind() == ErrorKind::NotConnected => break,
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_response_comes_from_its_head() {
        let response = b"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\nuuu";
        assert_eq!(response_bytes(response).expect("a length"), 41 + 1024);
        assert!(response_bytes(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").is_err());
        assert!(response_bytes(b"HTTP/1.1 200 OK\r\ncontent-len").is_err());
    }
}
