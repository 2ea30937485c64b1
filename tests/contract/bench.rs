//! What a scenario needs around a driver: sockets for it, blocking peers, and a clock. The scenarios know nothing
//! else, so that the same list runs on the kernel's sockets (`kernel`) and on simulated ones (`simulated`).
//!
//! A peer, a port and a caller are the other side's: they block, with `PATIENCE`, and may live on other threads.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use uztunnel::sys::descriptor::Descriptor;
use uztunnel::sys::driver::Driver;

/// Longer than anything here takes on a busy machine; a scenario that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub trait Bench {
    type Driver: Driver;
    type Peer: Peer;
    type Port: Port<Peer = Self::Peer>;
    type Caller: Caller<Peer = Self::Peer>;
    /// Keeps a port full as long as it lives.
    type Crowd;
    /// Keeps descriptors from everybody else as long as it lives.
    type Hoard;

    fn driver(&self) -> Self::Driver;

    /// The time in which drivers wait.
    fn now(&self) -> Duration;

    /// A connected socket for a driver, and its peer.
    fn pair(&self) -> (Descriptor, Self::Peer);

    /// As `pair`, with buffers of a few KiB in the direction of the peer.
    fn narrow_pair(&self) -> (Descriptor, Self::Peer);

    /// Connected sockets that are a driver's at both ends.
    fn inner_pairs(&self, count: usize) -> Vec<(Descriptor, Descriptor)>;

    /// A listening socket for a driver, and its address.
    fn listener(&self) -> (Descriptor, SocketAddr);

    /// Where a driver can connect to.
    fn port(&self) -> Self::Port;

    /// As `port`, with a queue so full that a connect is neither answered nor refused.
    fn full_port(&self) -> (Self::Crowd, SocketAddr);

    /// A socket of the peer's side that is not connected yet.
    fn caller(&self) -> Self::Caller;

    /// Takes every descriptor that is left.
    fn hoard_descriptors(&self) -> Self::Hoard;

    /// Runs a part of `scenario` in which nobody else can do anything.
    fn alone(&self, scenario: &str, part: impl FnOnce());

    /// What only the driver's own system can tell of an accepted socket: it is as `Event::Accepted` promises.
    fn assert_is_as_accepted(&self, fd: &Descriptor);

    /// Nothing that should never be was noticed.
    fn assert_sound(&self);

    /// Bytes that a side may write while the other does not read, without being stopped.
    fn unread_max(&self) -> usize;

    /// How much of this amount is enough, where it is only meant to be much.
    fn bulk(&self, bytes: usize) -> usize;

    /// Whether messages may come in more parts than they were written in.
    fn cuts_messages(&self) -> bool;

    /// Whether bytes do come, once, after a receive was taken back; no driver of the kernel's sockets needs this
    /// leave of `Driver::stop_receive`.
    fn delivers_after_stop(&self) -> bool;

    /// Whether blocks suffice, so that a driver never has to allocate.
    fn is_roomy(&self) -> bool;
}

pub trait Peer: Read + Write + Send + Sized + 'static {
    fn local_address(&self) -> SocketAddr;

    fn shutdown_send(&mut self);

    /// Closes with a reset.
    fn reset(self);

    /// Sends a byte out of band.
    fn send_urgent(&mut self);

    /// From now on calls report `WouldBlock`.
    fn never_wait(&mut self);
}

pub trait Port {
    type Peer;

    fn address(&self) -> SocketAddr;

    /// The next connection, and from where it came.
    fn accept(&self) -> (Self::Peer, SocketAddr);
}

pub trait Caller {
    type Peer;

    fn connect(self, to: SocketAddr) -> io::Result<Self::Peer>;
}
