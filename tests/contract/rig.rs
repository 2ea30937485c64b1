//! A driver under test, its events in order, and blocking peers.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use uztunnel::sys::buffer::Payload;
use uztunnel::sys::driver::{
    Close, Driver, Event, InUse, Owner, ReceiveMode, Received, SendStatus, SocketId,
};

/// Longer than anything here takes on a busy machine; a scenario that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long "no event" is observed.
pub const SILENCE: Duration = Duration::from_millis(60);

pub const OWNER: Owner = Owner(7);

pub struct Rig<D> {
    pub driver: D,
    events: VecDeque<Event>,
}

impl<D: Driver> Rig<D> {
    pub fn new(make: &mut dyn FnMut() -> D) -> Self {
        Self {
            driver: make(),
            events: VecDeque::new(),
        }
    }

    /// One turn of at most `timeout`.
    pub fn turn(&mut self, timeout: Duration) {
        let mut events = Vec::new();
        self.driver
            .poll(Some(timeout), &mut events)
            .expect("polling works");
        self.events.extend(events);
    }

    /// The first event that `take` wants; the others stay in order.
    pub fn next<T>(&mut self, what: &str, take: impl Fn(Event) -> Result<T, Event>) -> T {
        let start = Instant::now();
        loop {
            for at in 0..self.events.len() {
                let event = self.events.remove(at).expect("counted");
                match take(event) {
                    Ok(wanted) => return wanted,
                    Err(other) => self.events.insert(at, other),
                }
            }
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
        let payload = Payload::whole(bytes.to_vec());
        match self.driver.send(socket, payload) {
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
        let start = Instant::now();
        while start.elapsed() < SILENCE {
            self.turn(SILENCE);
            assert!(self.events.is_empty(), "unexpected events: {:?}", self.events);
        }
    }

    /// Takes away the events that are there already and returns them.
    pub fn drain(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    pub fn wait_for(&mut self, what: &str, mut done: impl FnMut(&mut D) -> bool) {
        let start = Instant::now();
        while !done(&mut self.driver) {
            assert!(start.elapsed() < PATIENCE, "{what} did not happen");
            self.turn(Duration::from_millis(10));
        }
    }

    /// A socket of the driver, connected to a blocking one.
    pub fn pair(&mut self) -> (SocketId, TcpStream) {
        let (ours, theirs) = stream_pair();
        (self.adopt(ours, OWNER), theirs)
    }

    pub fn adopt(&mut self, stream: TcpStream, owner: Owner) -> SocketId {
        self.driver.adopt(stream.into(), owner).expect("adopted")
    }

    pub fn listener(&mut self, owner: Owner) -> (SocketId, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
        let address = listener.local_addr().expect("address");
        let id = self.driver.adopt(listener.into(), owner).expect("adopted");
        self.driver.listen(id);
        (id, address)
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

/// Two connected ends over loopback, both blocking, without Nagle's delay.
pub fn stream_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    stream_pair_of(&listener)
}

pub fn stream_pair_of(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let ours = TcpStream::connect(listener.local_addr().expect("address")).expect("connected");
    let (theirs, _) = listener.accept().expect("accepted");
    for end in [&ours, &theirs] {
        end.set_nodelay(true).expect("nodelay");
    }
    theirs.set_read_timeout(Some(PATIENCE)).expect("timeout");
    (ours, theirs)
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
