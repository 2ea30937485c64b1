//! Accepting and connecting.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use io_uring::{opcode, types};
use socket2::SockAddr;

use super::UringDriver;
use super::operation::{Target, Work};
use super::slots::Key;
use crate::limits;
use crate::sys::driver::Event;
use crate::sys::socket;

const ACCEPT_FLAGS: i32 = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;

impl UringDriver {
    pub(super) fn start_accepting(&mut self, key: Key) {
        let Some(listener) = self.sockets.get(key) else {
            return;
        };
        if listener.setup.is_some() {
            return;
        }
        let fd = types::Fd(listener.fd.as_raw_fd());
        let (work, entry) = if self.profile.multishot_accept() {
            (
                Work::Accept,
                opcode::AcceptMulti::new(fd).flags(ACCEPT_FLAGS).build(),
            )
        } else {
            // Not a single accept: kernels before 5.19 do not wait on a listener that is non-blocking.
            (
                Work::AcceptReady,
                opcode::PollAdd::new(fd, libc::POLLIN as u32).build(),
            )
        };
        // SAFETY: names no memory.
        let operation = unsafe { self.submit(Target::Socket(key), work, entry) };
        let listener = self.sockets.get_mut(key).expect("invariant: found above");
        listener.setup = Some(operation);
    }

    /// An accept brought a descriptor or an error; `last`: it does not go on.
    pub(super) fn accepted(&mut self, target: Target, result: i32, last: bool, events: &mut Vec<Event>) {
        let outcome = if result >= 0 {
            // SAFETY: a fresh descriptor that the kernel made for this completion; nothing else owns it.
            Ok(unsafe { OwnedFd::from_raw_fd(result) })
        } else {
            Err(io::Error::from_raw_os_error(-result))
        };
        let Target::Socket(key) = target else { return };
        let listener = self.sockets.get_mut(key);
        let listener = listener.expect("invariant: operations of a closed socket are retargeted");
        if last {
            listener.setup = None;
        }
        match outcome {
            Ok(fd) => self.deliver_accepted(key, fd, events),
            Err(error) if !passes(&error) => {
                events.push(Event::AcceptFailed {
                    owner: listener.owner,
                    listener: key.socket_id(),
                    error,
                });
                return;
            }
            Err(_) => {}
        }
        if last {
            self.start_accepting(key);
        }
    }

    /// A listener has connections: takes a bounded number of them.
    pub(super) fn accept_ready(&mut self, target: Target, result: i32, from: usize, events: &mut Vec<Event>) {
        let Target::Socket(key) = target else { return };
        let listener = self.sockets.get_mut(key);
        let listener = listener.expect("invariant: operations of a closed socket are retargeted");
        listener.setup = None;
        let owner = listener.owner;
        let fd = listener.fd.as_raw_fd();
        let mut failure = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        let room = limits::EVENTS_TURN_MAX.saturating_sub(events.len() - from);
        for _ in 0..limits::ACCEPTS_TURN_MAX.min(room) {
            if failure.is_some() {
                break;
            }
            self.counters.calls += 1;
            // SAFETY: the peer's address is not asked for, so no memory is passed.
            let accepted =
                unsafe { libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), ACCEPT_FLAGS) };
            if accepted >= 0 {
                // SAFETY: a fresh descriptor; nothing else owns it.
                let fd = unsafe { OwnedFd::from_raw_fd(accepted) };
                self.deliver_accepted(key, fd, events);
                continue;
            }
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::WouldBlock {
                break;
            }
            failure = (!passes(&error)).then_some(error);
        }
        match failure {
            Some(error) if !passes(&error) => events.push(Event::AcceptFailed {
                owner,
                listener: key.socket_id(),
                error,
            }),
            Some(_) | None => self.start_accepting(key),
        }
    }

    fn deliver_accepted(&mut self, key: Key, fd: OwnedFd, events: &mut Vec<Event>) {
        let listener = self.sockets.get(key).expect("invariant: checked by the caller");
        self.counters.calls += 1;
        // A peer that was gone before it was accepted has no address: nobody is left to talk to.
        if let Ok(peer) = socket::peer_address(fd.as_fd()) {
            events.push(Event::Accepted {
                owner: listener.owner,
                listener: key.socket_id(),
                fd: fd.into(),
                peer,
            });
        }
    }

    pub(super) fn start_connecting(&mut self, key: Key, peer: SocketAddr) {
        let Some(socket) = self.sockets.get(key) else {
            return;
        };
        assert!(socket.setup.is_none(), "one connect on a socket");
        let address = Box::new(SockAddr::from(peer));
        let fd = types::Fd(socket.fd.as_raw_fd());
        let entry = opcode::Connect::new(fd, address.as_ptr().cast(), address.len()).build();
        // SAFETY: the entry names the boxed address, which the work owns.
        let operation = unsafe { self.submit(Target::Socket(key), Work::Connect(address), entry) };
        let socket = self.sockets.get_mut(key).expect("invariant: found above");
        socket.setup = Some(operation);
    }

    pub(super) fn connected(&mut self, target: Target, result: i32, events: &mut Vec<Event>) {
        let Target::Socket(key) = target else { return };
        let socket = self.sockets.get_mut(key);
        let socket = socket.expect("invariant: operations of a closed socket are retargeted");
        socket.setup = None;
        let result = match result {
            0.. => Ok(()),
            _ => Err(io::Error::from_raw_os_error(-result)),
        };
        events.push(Event::Connected {
            owner: socket.owner,
            socket: key.socket_id(),
            result,
        });
    }
}

/// Whether accepting can simply go on: what failed was one connection, or nothing. accept(2) lists the errors
/// that a connection leaves behind.
fn passes(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECANCELED
                | libc::EINTR
                | libc::EAGAIN
                | libc::ECONNABORTED
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
        )
    )
}
