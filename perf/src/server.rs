//! What the load clients talk to: one thread, one epoll loop, HTTP responses of 1 KiB or a sink.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};
use uztunnel_rig::Namespace;

use crate::seats::Seat;

pub const HTTP_PORT: u16 = 8080;
pub const SINK_PORT: u16 = 5201;

pub const BODY_BYTES: usize = 1024;
const READ_BYTES: usize = 128 * 1024;
/// Reads of one connection before others have their turn: a stream that fills each of them would have all of them.
const READS_TURN: usize = 8;
const BACKLOG: i32 = 4096;
const POLL_LIMIT: Duration = Duration::from_millis(50);

const HTTP_LISTENER: Token = Token(usize::MAX - 1);
const SINK_LISTENER: Token = Token(usize::MAX);

/// The servers of one pod; they end when this is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    sunk_bytes: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<io::Result<()>>>,
}

impl Server {
    pub fn start(pod: &Namespace) -> io::Result<Self> {
        Self::start_on(pod, None)
    }

    /// On a seat of its own.
    pub fn start_on(pod: &Namespace, seat: Option<Seat>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let sunk_bytes = Arc::new(AtomicU64::new(0));
        let (stopping, counting) = (Arc::clone(&stop), Arc::clone(&sunk_bytes));
        let listeners = pod.run(|| io::Result::Ok([listen(HTTP_PORT)?, listen(SINK_PORT)?]))?;
        let thread = pod.spawn("server", move || {
            seat.map_or(Ok(()), Seat::take)?;
            Loop::new(listeners)?.run(&stopping, &counting)
        });
        Ok(Self {
            stop,
            sunk_bytes,
            thread: Some(thread),
        })
    }

    /// Bytes that arrived at the sink since the start.
    pub fn sunk_bytes(&self) -> u64 {
        self.sunk_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Ok(Err(error)) = thread.join()
        {
            eprintln!("server: {error}");
        }
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Http,
    Sink,
}

struct Connection {
    stream: TcpStream,
    role: Role,
    /// Its peer sends nothing more: what is read after the rest is the end, of which no event will tell.
    closed: bool,
    /// The last bytes of an incomplete request head.
    head: Vec<u8>,
}

struct Loop {
    poll: Poll,
    listeners: [TcpListener; 2],
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Connections that may have more to read, of which no event will tell: they have had their turn.
    unread: Vec<usize>,
    response: Vec<u8>,
    buffer: Vec<u8>,
}

enum Fate {
    Kept,
    /// So far: others come first.
    Unread,
    Over,
}

impl Loop {
    fn new(mut listeners: [TcpListener; 2]) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.registry()
            .register(&mut listeners[0], HTTP_LISTENER, Interest::READABLE)?;
        poll.registry()
            .register(&mut listeners[1], SINK_LISTENER, Interest::READABLE)?;
        let mut response = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY_BYTES}\r\n\r\n").into_bytes();
        response.resize(response.len() + BODY_BYTES, b'u');
        Ok(Self {
            poll,
            listeners,
            connections: Vec::new(),
            free: Vec::new(),
            unread: Vec::new(),
            response,
            buffer: vec![0; READ_BYTES],
        })
    }

    fn run(mut self, stop: &AtomicBool, sunk_bytes: &AtomicU64) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        while !stop.load(Ordering::Relaxed) {
            let limit = if self.unread.is_empty() {
                POLL_LIMIT
            } else {
                Duration::ZERO
            };
            match self.poll.poll(&mut events, Some(limit)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            for event in &events {
                match event.token() {
                    HTTP_LISTENER => self.accept(0, Role::Http)?,
                    SINK_LISTENER => self.accept(1, Role::Sink)?,
                    Token(index) => {
                        if let Some(connection) = &mut self.connections[index] {
                            connection.closed |= event.is_read_closed();
                        }
                        self.give_turn(index, sunk_bytes);
                    }
                }
            }
            for index in std::mem::take(&mut self.unread) {
                self.give_turn(index, sunk_bytes);
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: usize, role: Role) -> io::Result<()> {
        loop {
            let mut stream = match self.listeners[listener].accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The connection was lost between its arrival and this call.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            // Fails only when the peer is gone already; the first read tells the same.
            let _ = stream.set_nodelay(true);
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.poll
                .registry()
                .register(&mut stream, Token(index), Interest::READABLE)?;
            self.connections[index] = Some(Connection {
                stream,
                role,
                closed: false,
                head: Vec::new(),
            });
        }
    }

    fn give_turn(&mut self, index: usize, sunk_bytes: &AtomicU64) {
        match self.serve(index, sunk_bytes) {
            Ok(Fate::Kept) => {}
            Ok(Fate::Unread) if self.unread.contains(&index) => {}
            Ok(Fate::Unread) => self.unread.push(index),
            // A peer that resets is gone, which is all there is to know.
            Ok(Fate::Over) | Err(_) => {
                self.connections[index] = None;
                self.free.push(index);
            }
        }
    }

    fn serve(&mut self, index: usize, sunk_bytes: &AtomicU64) -> io::Result<Fate> {
        // An event of a connection that ended earlier in the same batch.
        let Some(connection) = &mut self.connections[index] else {
            return Ok(Fate::Kept);
        };
        for _ in 0..READS_TURN {
            let got = match connection.stream.read(&mut self.buffer) {
                Ok(0) => return Ok(Fate::Over),
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Fate::Kept),
                Err(error) => return Err(error),
            };
            match connection.role {
                Role::Sink => {
                    sunk_bytes.fetch_add(got as u64, Ordering::Relaxed);
                }
                Role::Http => {
                    connection.head.extend_from_slice(&self.buffer[..got]);
                    if connection.head.ends_with(b"\r\n\r\n") {
                        let close = connection
                            .head
                            .windows(17)
                            .any(|window| window == b"connection: close");
                        connection.head.clear();
                        connection.stream.write_all(&self.response)?;
                        if close {
                            connection.stream.shutdown(Shutdown::Write)?;
                            return Ok(Fate::Over);
                        }
                    }
                }
            }
            // A short read emptied the socket, and new bytes make a new event. The end of the stream may have come
            // with these bytes, though.
            if got < self.buffer.len() && !connection.closed {
                return Ok(Fate::Kept);
            }
        }
        Ok(Fate::Unread)
    }
}
