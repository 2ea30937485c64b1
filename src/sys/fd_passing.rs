//! Datagrams that carry at most one descriptor, over a `SOCK_SEQPACKET` Unix socket: how the CNI agent hands
//! network namespaces over.
//!
//! Control thread. Nothing here waits: the socket is non-blocking and `WouldBlock` is passed on. Invariant: every
//! descriptor that arrives is either returned or closed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

/// A connected socket. One message is one datagram.
#[derive(Debug)]
pub struct SeqPacket {
    socket: Socket,
}

/// What one receive gave.
#[derive(Debug)]
pub struct Datagram {
    /// Bytes in the caller's buffer. Zero: the peer closed.
    pub len: usize,
    pub descriptor: Option<OwnedFd>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// `WouldBlock` included.
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("received truncated message")]
    Truncated,
    #[error("received {count} descriptors in one message instead of at most one")]
    TooManyDescriptors { count: usize },
}

impl SeqPacket {
    /// Connects to the socket at `path`. Unix sockets connect at once or not at all.
    ///
    /// # Errors
    /// As `connect(2)`. `WouldBlock` when the listener's queue is full: nothing is under way, try again later.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let kind = Type::SEQPACKET.nonblocking().cloexec();
        let socket = Socket::new_raw(Domain::UNIX, kind, None)?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(Self { socket })
    }

    /// Receives one message into `buffer`, with room for one descriptor, which is close-on-exec.
    ///
    /// # Errors
    /// `Truncated` when the message or its descriptors do not fit; the message is lost and every descriptor of
    /// it closed, as with `TooManyDescriptors`.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Datagram, ReceiveError> {
        let mut control = Control::default();
        let mut piece = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: zero is a valid value for every field of this C struct.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.bytes.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_BYTES as _;
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        let n = retried(|| {
            // SAFETY: `message` refers to `buffer` and `control`, both borrowed or owned here during the call.
            unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, flags) }
        })?;
        // Taken out before anything else, so that they are closed on every way out.
        let mut descriptors = descriptors(&message);
        if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
            return Err(ReceiveError::Truncated);
        }
        match descriptors.len() {
            0 | 1 => Ok(Datagram {
                len: n,
                descriptor: descriptors.pop(),
            }),
            count => Err(ReceiveError::TooManyDescriptors { count }),
        }
    }

    /// Sends `bytes` as one message, whole or not at all.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        retried(|| {
            // SAFETY: the kernel reads `bytes` during the call.
            unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) }
        })?;
        Ok(())
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for SeqPacket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// What `CMSG_SPACE` gives for one descriptor. Its alignment leaves room for a second one, so that two are told
/// from one by count and more by the kernel's truncation.
// SAFETY: pure arithmetic.
const CONTROL_BYTES: usize = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as usize;

#[repr(C, align(8))]
#[derive(Default)]
struct Control {
    bytes: [u8; CONTROL_BYTES],
}

const _: () = assert!(align_of::<libc::cmsghdr>() <= 8);

fn descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: `message` was filled in by `recvmsg`, its control memory is alive and aligned.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: a header that the kernel wrote, inside the control memory.
        let (level, kind, len) = unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) };
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: pure arithmetic.
            #[allow(clippy::unnecessary_cast, reason = "the length is narrower with musl")]
            let bytes = len as usize - unsafe { libc::CMSG_LEN(0) } as usize;
            // SAFETY: the data follows its header.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            for at in 0..bytes / size_of::<RawFd>() {
                // SAFETY: inside the data; each is a fresh descriptor that nothing else owns.
                found.push(unsafe { OwnedFd::from_raw_fd(data.add(at).read_unaligned()) });
            }
        }
        // SAFETY: as above; gives null behind the last one.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    found
}

fn retried(mut call: impl FnMut() -> isize) -> io::Result<usize> {
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

#[cfg(test)]
mod tests;
