//! Sockets of the control thread in tokio's reactor.
//!
//! Control thread. Tokio takes any type with a descriptor only under a promise that the type cannot make itself;
//! for our own types it is made here.

use std::io;

use tokio::io::unix::AsyncFd;

use super::fd_passing::SeqPacket;

/// Registers the socket with the reactor of the running tokio runtime.
///
/// # Errors
/// No descriptor or memory is left for the registration.
pub fn register(socket: SeqPacket) -> io::Result<AsyncFd<SeqPacket>> {
    // SAFETY: `SeqPacket` owns its descriptor, gives out the same one every time, and closes it only when it is
    // dropped; inside an `AsyncFd` it is dropped after the registration.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}
