//! Where the receiving side of a socket is, and what is remembered of it.

use std::io;

use super::operation::Class;
use super::slots::Key;
use crate::limits;
use crate::sys::buffer::RecvBuffer;
use crate::sys::driver::ReceiveMode;

/// Receives in a row that would have fitted a small block before a socket gets small blocks again.
const SMALL_RUN: u8 = 32;

pub(super) enum Receive {
    Idle,
    /// The kernel has the operation.
    Armed {
        operation: Key,
        mode: ReceiveMode,
        /// The operation was cancelled so that it goes on with blocks of the other class.
        switching: bool,
    },
    /// No block was free; queued in `UringDriver::starved`.
    Starved {
        mode: ReceiveMode,
    },
    /// Taken back by the owner, and the operation not over yet.
    Stopping {
        operation: Key,
        held: Held,
        /// The owner asked again meanwhile.
        then: Option<ReceiveMode>,
    },
    /// Taken back, and something came before that took effect.
    Held(Held),
    /// The owner asked again; queued in `UringDriver::due`.
    Due {
        held: Held,
        mode: ReceiveMode,
    },
    /// The end or a failure was delivered.
    Over,
}

impl Receive {
    pub fn operation(&self) -> Option<Key> {
        match self {
            Self::Armed { operation, .. } | Self::Stopping { operation, .. } => Some(*operation),
            Self::Idle | Self::Starved { .. } | Self::Held(_) | Self::Due { .. } | Self::Over => None,
        }
    }
}

/// What came when nobody was asking. Given out before anything newer.
#[derive(Default)]
pub(super) struct Held {
    bytes: Option<RecvBuffer>,
    pub failure: Option<io::Error>,
}

impl Held {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_none() && self.failure.is_none()
    }

    /// More than one piece is rare, so they are copied together.
    pub fn add(&mut self, next: RecvBuffer) {
        self.bytes = Some(match self.bytes.take() {
            None => next,
            Some(before) => RecvBuffer::copied(&[before.bytes(), next.bytes()].concat()),
        });
    }

    /// Gives a block back: an owner that takes its time must not keep it from others.
    pub fn unpin(&mut self) {
        if let Some(buffer) = self.bytes.take_if(|buffer| buffer.is_pooled()) {
            self.bytes = Some(RecvBuffer::copied(buffer.bytes()));
        }
    }

    /// The first `bytes_max` bytes, or as many as there are. `None`: there are none.
    pub fn take(&mut self, bytes_max: usize) -> Option<RecvBuffer> {
        let mut buffer = self.bytes.take()?;
        if buffer.len() <= bytes_max {
            return Some(buffer);
        }
        let front = RecvBuffer::copied(&buffer.bytes()[..bytes_max]);
        buffer.consume(bytes_max);
        self.bytes = Some(buffer);
        Some(front)
    }
}

/// What the last receive left in the socket.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Left {
    #[default]
    Unknown,
    Nothing,
    /// Bytes, or the end.
    Something,
}

/// How much a socket tends to deliver at a time.
#[derive(Default)]
pub(super) struct Flow {
    bulk: bool,
    small_run: u8,
    pub left: Left,
}

impl Flow {
    pub fn class(&self, mode: ReceiveMode) -> Class {
        match mode {
            ReceiveMode::Once { bytes_max } if bytes_max <= limits::RECEIVE_SMALL_BYTES => Class::Small,
            ReceiveMode::Once { .. } | ReceiveMode::Stream if self.bulk => Class::Large,
            ReceiveMode::Once { .. } | ReceiveMode::Stream => Class::Small,
        }
    }

    pub fn note(&mut self, class: Class, bytes: usize) {
        match class {
            Class::Small => {
                self.small_run = 0;
                self.bulk |= bytes == limits::RECEIVE_SMALL_BYTES;
            }
            Class::Large if bytes <= limits::RECEIVE_SMALL_BYTES => {
                self.small_run += 1;
                if self.small_run == SMALL_RUN {
                    self.bulk = false;
                    self.small_run = 0;
                }
            }
            Class::Large => self.small_run = 0,
        }
    }
}

/// What a receive operation brought.
pub(super) enum Outcome {
    Data {
        buffer: RecvBuffer,
        left: Left,
    },
    End,
    NoBlock,
    /// Interrupted or taken back: nothing happened to the socket.
    Nothing,
    Failed(io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_is_given_in_order_and_in_the_size_asked_for() {
        let mut held = Held::default();
        assert!(held.is_empty());
        held.add(RecvBuffer::copied(b"abc"));
        held.add(RecvBuffer::copied(b"defg"));
        let mut take = |bytes_max| held.take(bytes_max).map(|buffer| buffer.bytes().to_vec());
        assert_eq!(take(2), Some(b"ab".to_vec()));
        assert_eq!(take(3), Some(b"cde".to_vec()));
        assert_eq!(take(9), Some(b"fg".to_vec()));
        assert_eq!(take(9), None);
        assert!(held.is_empty());
    }
}
