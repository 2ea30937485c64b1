//! The interface between the proxy and the kernel: sockets by handle, operations that own their buffers, and
//! events. Implemented by `sys::uring`, `sys::epoll` and, for tests, `sys::sim`; one contract test list
//! (tests/contract) runs on all.
//!
//! Runs on a worker thread; a driver and everything it hands out belongs to one thread.
//!
//! Rules that every driver keeps:
//! 1. A buffer that the kernel may still read or write is owned by the operation until its completion, also
//!    when the socket is closed meanwhile.
//! 2. A handle carries a generation. Events for a closed socket are never delivered; a stale handle makes the
//!    call a no-op that reports `SendStatus::Failed`/`ErrorKind::NotConnected`, never an operation on another
//!    socket.
//! 3. At most one receive (single or stream) and one send are outstanding per socket. Asking for a second one
//!    is a bug of the caller and panics: mixing two owners' bytes is worse than stopping.
//! 4. Nothing is submitted on a socket after `close`; the file descriptor is closed once every operation on
//!    it has completed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::buffer::{Payload, RecvBuffer};
use super::descriptor::Descriptor;

/// A socket registered with a driver. Stale handles are detected by generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// A word that the owner of a socket attaches to it and gets back with every event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(pub u64);

/// What happened. Every event carries the `Owner` that the socket had when the event was delivered.
#[derive(Debug)]
pub enum Event {
    /// A listener accepted a connection. The descriptor is not registered yet, so that it can be handed to
    /// another worker instead. Non-blocking, close-on-exec.
    Accepted {
        owner: Owner,
        listener: SocketId,
        fd: Descriptor,
        peer: SocketAddr,
    },
    /// Accepting failed in a way that needs a pause (no descriptors, no memory). The driver stopped accepting
    /// on this listener; call `listen` again.
    AcceptFailed {
        owner: Owner,
        listener: SocketId,
        error: io::Error,
    },
    /// The outcome of `connect`.
    Connected {
        owner: Owner,
        socket: SocketId,
        result: io::Result<()>,
    },
    /// Bytes, the end of the stream, or an error. After `End` and `Failed` nothing more is received.
    Received {
        owner: Owner,
        socket: SocketId,
        data: Received,
    },
    /// A send that returned `SendStatus::Queued` is over: every byte of the payload was taken, or `error` says
    /// why not and `taken` how many were. The payload comes back for reuse.
    Sent {
        owner: Owner,
        socket: SocketId,
        taken: usize,
        error: Option<io::Error>,
        payload: Payload,
    },
    /// Another thread called `Waker::wake`. Coalesced: one event for any number of wakes.
    Woken,
}

impl Event {
    pub fn received_bytes(&self) -> usize {
        match self {
            Self::Received {
                data: Received::Data(buffer),
                ..
            } => buffer.len(),
            Self::Received { .. }
            | Self::Accepted { .. }
            | Self::AcceptFailed { .. }
            | Self::Connected { .. }
            | Self::Sent { .. }
            | Self::Woken => 0,
        }
    }
}

#[derive(Debug)]
pub enum Received {
    Data(RecvBuffer),
    /// Orderly end: the peer shut down its sending side.
    End,
    Failed(io::Error),
}

/// What `send` could do at once.
#[derive(Debug)]
pub enum SendStatus {
    /// Every byte was taken by the kernel; no event follows.
    Done(Payload),
    /// The driver owns the payload; `Event::Sent` follows.
    Queued,
    /// The socket failed; no event follows.
    Failed {
        taken: usize,
        error: io::Error,
        payload: Payload,
    },
}

/// How a socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// As `close(2)` does: queued bytes are still sent, then FIN (RST when received bytes were never read).
    Orderly,
    /// RST at once (`SO_LINGER` 0): the peer must see a reset.
    Reset,
}

/// How a receive goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveMode {
    /// One `Received` event of at most this many bytes, then nothing until asked again.
    Once { bytes_max: usize },
    /// `Received` events until `End`, `Failed` or `stop_receive`.
    Stream,
}

/// An outgoing or listening TCP socket to be created, in the namespace given or in the process's own.
#[derive(Debug, Clone, Default)]
pub struct SocketSpec {
    /// Network namespace in which the socket is created (its life-long namespace). `None`: the process's.
    pub namespace: Option<Arc<super::netns::Namespace>>,
    pub options: super::socket::Options,
    /// Local address to bind, with `IP_TRANSPARENT`/`IPV6_TRANSPARENT`, so that it may be another host's (source
    /// address preservation). Port 0 is usual.
    pub bind_transparent: Option<IpAddr>,
}

/// Lets any thread end a driver's wait.
pub trait Wake: Send + Sync {
    fn wake(&self);
}

pub trait Driver: Sized {
    /// `"uring"`, `"epoll"`, `"sim"`.
    fn name(&self) -> &'static str;

    fn waker(&self) -> Arc<dyn Wake>;

    /// Registers an existing socket (accepted, or passed by another thread). Makes it non-blocking.
    fn adopt(&mut self, fd: Descriptor, owner: Owner) -> io::Result<SocketId>;

    /// Creates a TCP socket of `family_of`'s family and registers it.
    fn open(&mut self, spec: &SocketSpec, family_of: IpAddr, owner: Owner) -> io::Result<SocketId>;

    fn set_owner(&mut self, socket: SocketId, owner: Owner);

    /// Starts (or resumes) accepting on an adopted listening socket.
    fn listen(&mut self, listener: SocketId);

    /// Starts connecting; `Event::Connected` follows, unless the socket is closed before.
    fn connect(&mut self, socket: SocketId, peer: SocketAddr);

    fn receive(&mut self, socket: SocketId, mode: ReceiveMode);

    /// Takes back a `receive`. Bytes that arrived already may still be delivered, once, after this call.
    fn stop_receive(&mut self, socket: SocketId);

    /// Whether the stream ended right behind the bytes that were received last. Then this is its `End`: nothing more
    /// is received. To be asked between receives, after one that got less than it asked for; false when the end
    /// cannot be told yet, or not for less than a receive costs.
    fn take_end(&mut self, socket: SocketId) -> bool;

    /// Sends the whole payload. Empty payloads are not allowed.
    fn send(&mut self, socket: SocketId, payload: Payload) -> SendStatus;

    /// As `send`, for what `shutdown_send` or an orderly close follows at once: the kernel may keep the last bytes
    /// for the segment that carries the FIN.
    fn send_last(&mut self, socket: SocketId, payload: Payload) -> SendStatus;

    /// Shuts down the sending side. Only when no send is outstanding.
    fn shutdown_send(&mut self, socket: SocketId) -> io::Result<()>;

    /// Takes back every operation and closes. No event of this socket follows.
    fn close(&mut self, socket: SocketId, how: Close);

    fn local_address(&self, socket: SocketId) -> io::Result<SocketAddr>;

    /// As `socket::original_destination`.
    fn original_destination(&self, socket: SocketId) -> io::Result<SocketAddr>;

    /// Whether somebody with little to do waits behind somebody with much. While that is so, a turn has little room for
    /// bulk: `limits::CROWDED_READ_BYTES`, behind everything else.
    fn set_crowded(&mut self, crowded: bool);

    /// Submits what is queued, then waits for events up to `timeout` (`None`: for ever; zero: does not wait)
    /// and appends them. Returns early when anything is ready. Bounded work: at most `limits::EVENTS_TURN_MAX`
    /// events a call.
    fn poll(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()>;

    fn counters(&self) -> Counters;

    /// Sockets, operations and lent receive buffers that exist now. All zero after everything was closed and
    /// polled, and every `RecvBuffer` dropped: the contract tests assert it.
    fn in_use(&self) -> InUse;
}

/// Since the driver was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// `io_uring_enter` or `epoll_wait` calls.
    pub waits: u64,
    /// Other system calls made by the driver on behalf of sockets.
    pub calls: u64,
    pub events: u64,
    /// Receives that found the buffer ring empty and fell back to a buffer of their own.
    pub buffer_fallbacks: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct InUse {
    pub sockets: usize,
    pub operations: usize,
    pub buffers: usize,
}
