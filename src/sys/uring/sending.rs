//! A send in progress: the payload, how much of it the kernel took, and the message header and pieces that the
//! kernel reads.
//!
//! Invariant: from its submission to its completion the payload is owned here and neither read nor written by
//! anyone but the kernel; the frame is boxed, so that moving the operation does not move what the kernel reads.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::{opcode, squeue, types};

use super::super::buffer::Payload;
use crate::limits;

/// Header and pieces of one vectored send. Kept and reused: a relay in steady state allocates nothing.
pub(super) struct Frame {
    header: libc::msghdr,
    pieces: [libc::iovec; limits::SEND_PIECES_MAX],
}

impl Frame {
    pub fn new() -> Box<Self> {
        Box::new(Self {
            // SAFETY: a message header of zeroes is an empty message: null pointers with zero lengths.
            header: unsafe { std::mem::zeroed() },
            pieces: [libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }; limits::SEND_PIECES_MAX],
        })
    }

    /// Describes the first `SEND_PIECES_MAX` pieces of `payload` after `skip` bytes. Returns how many.
    fn describe(&mut self, payload: &Payload, skip: usize) -> usize {
        let mut skip = skip;
        let mut count = 0;
        let mut add = |bytes: &[u8]| {
            if skip >= bytes.len() {
                skip -= bytes.len();
                return;
            }
            if count < self.pieces.len() {
                self.pieces[count] = libc::iovec {
                    iov_base: bytes[skip..].as_ptr().cast_mut().cast(),
                    iov_len: bytes.len() - skip,
                };
                count += 1;
            }
            skip = 0;
        };
        match payload {
            Payload::Bytes { bytes, from, end } => add(&bytes[*from..*end]),
            Payload::Slices(slices) => slices.iter().for_each(|slice| add(slice.bytes())),
            Payload::Received(buffer) => add(buffer.bytes()),
        }
        self.header.msg_iov = self.pieces.as_mut_ptr();
        self.header.msg_iovlen = count;
        count
    }
}

pub(super) struct Sending {
    pub payload: Payload,
    /// Bytes that the kernel took so far.
    pub taken: usize,
    /// The ring took a part and stopped.
    short: bool,
    /// `MSG_MORE` where the end follows, else nothing.
    flags: i32,
    frame: Box<Frame>,
}

/// How far a direct send came.
pub(super) enum Direct {
    Done,
    /// The socket takes no more now.
    Partly,
    Failed(io::Error),
}

impl Sending {
    pub fn new(payload: Payload, flags: i32, frame: Box<Frame>) -> Self {
        Self {
            payload,
            taken: 0,
            short: false,
            flags,
            frame,
        }
    }

    pub fn is_done(&self) -> bool {
        self.left() == 0
    }

    /// How many bytes the kernel did not take yet.
    pub fn left(&self) -> usize {
        self.payload.len() - self.taken
    }

    pub fn into_parts(self) -> (Payload, usize, Box<Frame>) {
        (self.payload, self.taken, self.frame)
    }

    /// What a completion says: bytes were taken, or why the send cannot go on.
    pub fn note(&mut self, result: i32) -> Result<(), io::Error> {
        match result {
            1.. => {
                self.taken += result.unsigned_abs() as usize;
                self.short = !self.is_done();
                Ok(())
            }
            // A send that takes nothing would be asked for ever.
            0 => Err(io::ErrorKind::WriteZero.into()),
            _ => match -result {
                libc::EINTR | libc::EAGAIN => Ok(()),
                // A send that waits for room reports the bytes taken before an error and drops the error.
                // What is left to see is that the connection is gone; our side was not shut down, which is
                // allowed only when no send is outstanding.
                libc::EPIPE if self.short => Err(io::Error::from_raw_os_error(libc::ECONNRESET)),
                errno => Err(io::Error::from_raw_os_error(errno)),
            },
        }
    }

    /// Sends by a system call what the socket takes without waiting.
    pub fn send_direct(&mut self, fd: BorrowedFd<'_>) -> Direct {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | self.flags;
        let count = self.frame.describe(&self.payload, self.taken);
        let piece = self.frame.pieces[0];
        // SAFETY: header and pieces were just filled from the payload, which is borrowed for this call; the
        // kernel reads them during the call only.
        let sent = unsafe {
            if count == 1 {
                libc::send(fd.as_raw_fd(), piece.iov_base, piece.iov_len, flags)
            } else {
                libc::sendmsg(fd.as_raw_fd(), &raw const self.frame.header, flags)
            }
        };
        if sent < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Direct::Partly,
                _ => Direct::Failed(error),
            };
        }
        self.taken += sent.unsigned_abs();
        match self.is_done() {
            true => Direct::Done,
            false => Direct::Partly,
        }
    }

    /// The entry that sends the rest. Names memory of `self` that must not change before its completion.
    pub fn entry(&mut self, fd: RawFd) -> squeue::Entry {
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL | self.flags;
        let fd = types::Fd(fd);
        let count = self.frame.describe(&self.payload, self.taken);
        assert!(count > 0, "there is something left to send");
        let piece = self.frame.pieces[0];
        match u32::try_from(piece.iov_len) {
            Ok(len) if count == 1 => opcode::Send::new(fd, piece.iov_base.cast_const().cast(), len)
                .flags(flags)
                .build(),
            _ => opcode::SendMsg::new(fd, &raw const self.frame.header)
                .flags(flags as u32)
                .build(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::buffer::Slice;

    fn described(payload: &Payload, skip: usize) -> Vec<Vec<u8>> {
        let mut frame = Frame::new();
        let count = frame.describe(payload, skip);
        assert_eq!(frame.header.msg_iovlen, count);
        let bytes = |piece: &libc::iovec| {
            // SAFETY: described from `payload`, which is borrowed for the whole test.
            unsafe { std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len) }.to_vec()
        };
        frame.pieces[..count].iter().map(bytes).collect()
    }

    #[test]
    fn what_was_taken_is_not_described_again() {
        let payload = Payload::Slices([&b"abc"[..], b"def", b"ghi"].map(Slice::copied).to_vec());
        assert_eq!(described(&payload, 0), [b"abc", b"def", b"ghi"]);
        assert_eq!(described(&payload, 2), [&b"c"[..], b"def", b"ghi"]);
        assert_eq!(described(&payload, 3), [b"def", b"ghi"]);
        assert_eq!(described(&payload, 8), [b"i"]);
        let plain = Payload::Bytes {
            bytes: b"header payload, and more".to_vec(),
            from: 7,
            end: 14,
        };
        assert_eq!(described(&plain, 3), [b"load"]);
    }

    #[test]
    fn more_pieces_than_one_call_takes_are_sent_in_turns() {
        let slices: Vec<Slice> = (0..limits::SEND_PIECES_MAX + 5)
            .map(|_| Slice::copied(b"x"))
            .collect();
        let payload = Payload::Slices(slices);
        assert_eq!(described(&payload, 0).len(), limits::SEND_PIECES_MAX);
        assert_eq!(described(&payload, limits::SEND_PIECES_MAX).len(), 5);
    }
}
