//! The system calls of the epoll driver as safe functions.
//!
//! Worker thread. Nothing here waits except `Epoll::wait`. `EINTR` is repeated here and never seen outside.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;

use socket2::SockAddr;

use crate::limits;
use crate::sys::buffer::{Payload, RecvBuffer, RecvPool};
use crate::sys::driver::SocketId;
use crate::sys::socket;

/// An epoll instance. Registrations are edge-triggered and carry the socket's id.
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

/// Edges of one socket.
#[derive(Clone, Copy)]
pub struct Edges(u32);

impl Edges {
    pub fn read(self) -> bool {
        self.any(libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLPRI)
    }

    pub fn write(self) -> bool {
        self.any(libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR)
    }

    /// Something that ends a receive early: FIN, error, urgent data.
    pub fn cuts_receives(self) -> bool {
        self.any(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLPRI)
    }

    fn any(self, mask: i32) -> bool {
        self.0 & mask as u32 != 0
    }
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = checked(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self {
            // SAFETY: a fresh descriptor that nothing else owns.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            events: Vec::with_capacity(limits::EVENTS_TURN_MAX),
        })
    }

    pub fn add(&self, fd: BorrowedFd<'_>, id: SocketId, write: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, id, write)
    }

    /// Changes what is watched; what is ready already counts as an edge.
    pub fn modify(&self, fd: BorrowedFd<'_>, id: SocketId, write: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, id, write)
    }

    /// Closing does this too, unless another descriptor refers to the same socket.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        // SAFETY: both descriptors are open; no event is needed for this operation.
        unsafe {
            libc::epoll_ctl(
                self.fd.as_raw_fd(),
                libc::EPOLL_CTL_DEL,
                fd.as_raw_fd(),
                std::ptr::null_mut(),
            )
        };
    }

    fn control(&self, operation: i32, fd: BorrowedFd<'_>, id: SocketId, write: bool) -> io::Result<()> {
        let mut mask = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLPRI | libc::EPOLLET;
        if write {
            mask |= libc::EPOLLOUT;
        }
        let mut event = libc::epoll_event {
            events: mask as u32,
            u64: u64::from(id.generation) << 32 | u64::from(id.index),
        };
        // SAFETY: the kernel reads `event` during the call; both descriptors are open.
        checked(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event) })?;
        Ok(())
    }

    /// Waits and returns how many edges there are, to be read with `edge`. `None` waits for ever; other times
    /// are rounded up to milliseconds, so that a timer that is waited for has passed.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout_ms = match timeout {
            None => -1,
            Some(timeout) => i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX),
        };
        self.events.clear();
        // SAFETY: the kernel writes at most `capacity` events into the vector's spare memory.
        let n = unsafe {
            libc::epoll_wait(
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.capacity() as i32,
                timeout_ms,
            )
        };
        let n = match checked(n) {
            Ok(n) => n as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        // SAFETY: the kernel filled in `n` events, not more than the capacity.
        unsafe { self.events.set_len(n) };
        Ok(n)
    }

    pub fn edge(&self, at: usize) -> (SocketId, Edges) {
        let event = self.events[at];
        let id = SocketId {
            index: event.u64 as u32,
            generation: (event.u64 >> 32) as u32,
        };
        (id, Edges(event.events))
    }
}

/// Receives up to `len` bytes into a block that was taken from `pool`, which becomes a buffer or goes back.
/// `Ok(None)`: end of stream.
pub fn receive_pooled(
    fd: BorrowedFd<'_>,
    pool: &RecvPool,
    block: u16,
    len: usize,
) -> io::Result<Option<RecvBuffer>> {
    let len = len.min(pool.block_bytes());
    // SAFETY: a block that was taken belongs to its taker, has `block_bytes` bytes at its address and stays
    // mapped as long as the pool.
    let outcome = unsafe { receive(fd, pool.address(block), len) };
    if !matches!(outcome, Ok(1..)) {
        pool.put(block);
    }
    Ok(match outcome? {
        0 => None,
        n => Some(pool.lend(block, n)),
    })
}

/// Receives into `scratch` and copies. `Ok(None)`: end of stream.
pub fn receive_copied(fd: BorrowedFd<'_>, scratch: &mut [u8]) -> io::Result<Option<RecvBuffer>> {
    let address = NonNull::new(scratch.as_mut_ptr()).expect("invariant: a slice is never null");
    // SAFETY: `scratch` is borrowed exclusively during the call.
    Ok(match unsafe { receive(fd, address, scratch.len()) }? {
        0 => None,
        n => Some(RecvBuffer::copied(&scratch[..n])),
    })
}

/// # Safety
/// `len` bytes at `address` are writable and nobody else's.
unsafe fn receive(fd: BorrowedFd<'_>, address: NonNull<u8>, len: usize) -> io::Result<usize> {
    repeated(|| {
        // SAFETY: promised by the caller.
        unsafe { libc::recv(fd.as_raw_fd(), address.as_ptr().cast(), len, libc::MSG_DONTWAIT) }
    })
}

/// How far a send came.
pub struct Written {
    /// Bytes of the payload that the kernel has, also those of earlier calls.
    pub taken: usize,
    pub calls: u64,
    /// `WouldBlock` is not an error here: then `taken` is just less than the payload.
    pub error: Option<io::Error>,
}

/// Sends what of `payload` is left after `taken` bytes, as far as the kernel takes it.
pub fn send(fd: BorrowedFd<'_>, payload: &Payload, taken: usize, flags: i32) -> Written {
    let len = payload.len();
    let mut written = Written {
        taken,
        calls: 0,
        error: None,
    };
    while written.taken < len {
        written.calls += 1;
        let (outcome, offered) = send_once(fd, payload, written.taken, flags);
        match outcome {
            Ok(n) => {
                written.taken += n;
                // A short send means that the socket's buffer is full: asking again would only say so.
                if n < offered {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => {
                written.error = Some(error);
                break;
            }
        }
    }
    written
}

/// One system call, and how many bytes it was given.
fn send_once(fd: BorrowedFd<'_>, payload: &Payload, skip: usize, flags: i32) -> (io::Result<usize>, usize) {
    let (mut one, mut many);
    let pieces = match payload {
        Payload::Bytes { .. } | Payload::Received(_) => {
            one = [IoSlice::new(&[]); 1];
            payload.first_pieces(skip, &mut one)
        }
        Payload::Slices(_) => {
            many = [IoSlice::new(&[]); limits::SEND_PIECES_MAX];
            payload.first_pieces(skip, &mut many)
        }
    };
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | flags;
    if let [piece] = pieces {
        let outcome = repeated(|| {
            // SAFETY: the kernel reads the bytes of `piece` during the call.
            unsafe { libc::send(fd.as_raw_fd(), piece.as_ptr().cast(), piece.len(), flags) }
        });
        return (outcome, piece.len());
    }
    // SAFETY: zero is a valid value for every field of this C struct.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // `IoSlice` has the layout of `iovec` (guaranteed by std); the kernel only reads it.
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len() as _;
    let outcome = repeated(|| {
        // SAFETY: `message` refers to `pieces`, and they to bytes of `payload`, all borrowed during the call.
        unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) }
    });
    (outcome, pieces.iter().map(|piece| piece.len()).sum())
}

/// A non-blocking, close-on-exec connection from the listener's queue and its peer's canonical address.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, SocketAddr)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let accept = |storage: *mut socket2::SockAddrStorage, len: *mut libc::socklen_t| {
        // SAFETY: the storage is as long as `len` says; the kernel writes both during the call.
        checked(unsafe { libc::accept4(listener.as_raw_fd(), storage.cast(), len, flags) })
    };
    // SAFETY: `accept4` fills in a valid address and its length when it succeeds.
    let (fd, address) = unsafe { SockAddr::try_init(accept) }?;
    // SAFETY: a fresh descriptor that nothing else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let peer = address.as_socket().ok_or(io::ErrorKind::ConnectionAborted)?;
    Ok((fd, socket::canonical(peer)))
}

fn checked(outcome: i32) -> io::Result<i32> {
    if outcome == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(outcome)
}

fn repeated(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(n) => return Ok(n),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
