//! A driver under test and its events in order.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use uztunnel::limits;
use uztunnel::sys::buffer::Payload;
use uztunnel::sys::descriptor::Descriptor;
use uztunnel::sys::driver::{
    Close, Driver, Event, InUse, Owner, ReceiveMode, Received, SendStatus, SocketId,
};

use crate::bench::{Bench, PATIENCE};

/// How long "no event" is observed.
pub const SILENCE: Duration = Duration::from_millis(60);

pub const OWNER: Owner = Owner(7);

pub struct Rig<'a, B: Bench> {
    pub bench: &'a B,
    pub driver: B::Driver,
    events: VecDeque<Event>,
}

impl<'a, B: Bench> Rig<'a, B> {
    pub fn new(bench: &'a B) -> Self {
        Self {
            bench,
            driver: bench.driver(),
            events: VecDeque::new(),
        }
    }

    /// One turn of at most `timeout`.
    pub fn turn(&mut self, timeout: Duration) {
        let mut events = Vec::new();
        self.driver
            .poll(Some(timeout), &mut events)
            .expect("polling works");
        assert!(events.len() <= limits::EVENTS_TURN_MAX);
        self.events.extend(events);
    }

    /// The first event that `take` wants; the others stay in order.
    pub fn next<T>(&mut self, what: &str, take: impl Fn(Event) -> Result<T, Event>) -> T {
        let start = Instant::now();
        let mut seen = 0;
        loop {
            for at in seen..self.events.len() {
                // Something stands in its place meanwhile: thousands may wait, and none shall be moved.
                let event = std::mem::replace(&mut self.events[at], Event::Woken);
                match take(event) {
                    Ok(wanted) => {
                        self.events.remove(at);
                        return wanted;
                    }
                    Err(other) => self.events[at] = other,
                }
            }
            seen = self.events.len();
            assert!(start.elapsed() < PATIENCE, "no {what}; events: {:?}", self.events);
            self.turn(Duration::from_millis(100));
        }
    }

    pub fn next_received(&mut self, socket: SocketId) -> Received {
        self.next("receive", |event| match event {
            Event::Received { socket: of, data, .. } if of == socket => Ok(data),
            other => Err(other),
        })
    }

    pub fn next_sent(&mut self, socket: SocketId) -> (usize, Option<io::Error>, Payload) {
        self.next("end of the send", |event| match event {
            Event::Sent {
                socket: of,
                taken,
                error,
                payload,
                ..
            } if of == socket => Ok((taken, error, payload)),
            other => Err(other),
        })
    }

    pub fn next_connected(&mut self, socket: SocketId) -> io::Result<()> {
        self.next("outcome of the connect", |event| match event {
            Event::Connected {
                socket: of, result, ..
            } if of == socket => Ok(result),
            other => Err(other),
        })
    }

    /// Bytes of `socket`, of which a stream receive is outstanding, until there are `len`.
    pub fn read(&mut self, socket: SocketId, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            match self.next_received(socket) {
                Received::Data(buffer) => bytes.extend_from_slice(buffer.bytes()),
                Received::End => panic!("the stream ended after {} of {len} bytes", bytes.len()),
                Received::Failed(error) => panic!("{error} after {} of {len} bytes", bytes.len()),
            }
        }
        assert_eq!(bytes.len(), len, "more bytes than were sent");
        bytes
    }

    /// Everything until the end of the stream.
    pub fn read_to_end(&mut self, socket: SocketId) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            match self.next_received(socket) {
                Received::Data(buffer) => bytes.extend_from_slice(buffer.bytes()),
                Received::End => return bytes,
                Received::Failed(error) => panic!("{error} after {} bytes", bytes.len()),
            }
        }
    }

    /// Sends all of it, whether at once or not.
    pub fn write(&mut self, socket: SocketId, bytes: &[u8]) {
        let status = self.driver.send(socket, Payload::whole(bytes.to_vec()));
        self.await_sent(socket, status, bytes);
    }

    /// As `write`, for what the end follows.
    pub fn write_last(&mut self, socket: SocketId, bytes: &[u8]) {
        let status = self.driver.send_last(socket, Payload::whole(bytes.to_vec()));
        self.await_sent(socket, status, bytes);
    }

    fn await_sent(&mut self, socket: SocketId, status: SendStatus, bytes: &[u8]) {
        match status {
            SendStatus::Done(payload) => assert_eq!(payload.len(), bytes.len()),
            SendStatus::Queued => {
                let (taken, error, _) = self.next_sent(socket);
                assert!(error.is_none(), "{error:?}");
                assert_eq!(taken, bytes.len());
            }
            SendStatus::Failed { error, .. } => panic!("{error}"),
        }
    }

    /// No event comes for a while.
    pub fn assert_silent(&mut self) {
        let start = self.bench.now();
        while self.bench.now() - start < SILENCE {
            self.turn(SILENCE);
            assert!(self.events.is_empty(), "unexpected events: {:?}", self.events);
        }
    }

    /// Takes away the events that are there already and returns them.
    pub fn drain(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    pub fn wait_for(&mut self, what: &str, mut done: impl FnMut(&mut B::Driver) -> bool) {
        // Patience is of real time everywhere: it is other threads that may need it.
        let start = Instant::now();
        while !done(&mut self.driver) {
            assert!(start.elapsed() < PATIENCE, "{what} did not happen");
            self.turn(Duration::from_millis(10));
        }
    }

    /// A socket of the driver, connected to a blocking one.
    pub fn pair(&mut self) -> (SocketId, B::Peer) {
        let (ours, theirs) = self.bench.pair();
        (self.adopt(ours, OWNER), theirs)
    }

    pub fn adopt(&mut self, fd: Descriptor, owner: Owner) -> SocketId {
        self.driver.adopt(fd, owner).expect("adopted")
    }

    pub fn listener(&mut self, owner: Owner) -> (SocketId, SocketAddr) {
        let (listener, address) = self.bench.listener();
        let id = self.adopt(listener, owner);
        self.driver.listen(id);
        (id, address)
    }

    /// One receive of at most `bytes_max` bytes, and what it brought.
    pub fn receive_once(&mut self, socket: SocketId, bytes_max: usize) -> Received {
        self.driver.receive(socket, ReceiveMode::Once { bytes_max });
        self.next_received(socket)
    }

    pub fn stream(&mut self, socket: SocketId) {
        self.driver.receive(socket, ReceiveMode::Stream);
    }

    /// Closes `sockets`, expects no event of any kind, and that the driver is as empty as when it was made.
    pub fn finish(mut self, sockets: &[SocketId]) {
        for socket in sockets {
            self.driver.close(*socket, Close::Orderly);
        }
        self.events.clear();
        self.wait_for("giving everything back", |driver| {
            driver.in_use() == InUse::default()
        });
        assert!(
            self.events.is_empty(),
            "events of closed sockets: {:?}",
            self.events
        );
    }
}

/// `len` bytes of which every stretch tells where in the stream it belongs.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// As `assert_eq`, without printing megabytes.
pub fn assert_same(got: &[u8], expected: &[u8]) {
    if let Some(at) = got.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("byte {at} of {} differs", expected.len());
    }
    assert_eq!(got.len(), expected.len(), "lengths differ");
}
