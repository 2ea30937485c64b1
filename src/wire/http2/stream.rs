//! The streams of one connection and the states that they go through.
//!
//! Owned by the connection. Invariant: a stream is in the table as long as one of its directions is open or
//! bytes of it wait for a reader; whatever is not in the table and not above the highest number seen is closed.
//! Specification: RFC 9113 section 5.1.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::flow::{ReceiveWindow, SendWindow};

/// RFC 9113 section 5.1, without idle, reserved and closed: those streams are not in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// We sent END_STREAM.
    LocalEnded,
    /// The peer sent END_STREAM.
    RemoteEnded,
    /// Closed for the protocol; bytes of the peer still wait for their reader.
    Draining,
}

impl Phase {
    pub fn may_send(self) -> bool {
        match self {
            Self::Open | Self::RemoteEnded => true,
            Self::LocalEnded | Self::Draining => false,
        }
    }

    pub fn may_receive(self) -> bool {
        match self {
            Self::Open | Self::LocalEnded => true,
            Self::RemoteEnded | Self::Draining => false,
        }
    }

    fn end_local(self) -> Self {
        match self {
            Self::Open => Self::LocalEnded,
            Self::RemoteEnded => Self::Draining,
            Self::LocalEnded | Self::Draining => self,
        }
    }

    fn end_remote(self) -> Self {
        match self {
            Self::Open => Self::RemoteEnded,
            Self::LocalEnded => Self::Draining,
            Self::RemoteEnded | Self::Draining => self,
        }
    }
}

/// Whether the request has its final response: ours to give as a server, the peer's as a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Awaited,
    Given,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub key: u32,
    pub phase: Phase,
    pub answer: Answer,
    pub send: SendWindow,
    pub receive: ReceiveWindow,
    /// Tiny DATA frames among the unread bytes, estimated (see `guard.rs`).
    pub tiny_held: u32,
}

/// Streams by number. A map with a multiplicative hash: numbers are sparse when tunnels live long, and at most
/// a few hundred are in the table, so that chosen numbers cannot make it slow.
#[derive(Debug, Default)]
pub(super) struct Streams {
    table: HashMap<u32, Stream, BuildHasherDefault<NumberHasher>>,
    /// Streams that are not `Draining`.
    open: usize,
}

impl Streams {
    pub fn insert(&mut self, number: u32, stream: Stream) {
        debug_assert!(stream.phase != Phase::Draining);
        self.open += 1;
        let previous = self.table.insert(number, stream);
        debug_assert!(previous.is_none(), "invariant: stream numbers are never reused");
    }

    pub fn get(&self, number: u32) -> Option<&Stream> {
        self.table.get(&number)
    }

    pub fn get_mut(&mut self, number: u32) -> Option<&mut Stream> {
        self.table.get_mut(&number)
    }

    pub fn remove(&mut self, number: u32) -> Option<Stream> {
        let stream = self.table.remove(&number)?;
        if stream.phase != Phase::Draining {
            self.open -= 1;
        }
        Some(stream)
    }

    /// We sent END_STREAM.
    pub fn end_local(&mut self, number: u32) {
        self.end(number, Phase::end_local);
    }

    /// The peer sent END_STREAM.
    pub fn end_remote(&mut self, number: u32) {
        self.end(number, Phase::end_remote);
    }

    fn end(&mut self, number: u32, transition: fn(Phase) -> Phase) {
        let Some(stream) = self.table.get_mut(&number) else {
            return;
        };
        let before = stream.phase;
        stream.phase = transition(before);
        if stream.phase == Phase::Draining && before != Phase::Draining {
            self.open -= 1;
            self.forget_if_drained(number);
        }
    }

    /// To be called after bytes of a stream were consumed.
    pub fn forget_if_drained(&mut self, number: u32) {
        let drained = |stream: &Stream| stream.phase == Phase::Draining && stream.receive.unread() == 0;
        if self.table.get(&number).is_some_and(drained) {
            self.table.remove(&number);
        }
    }

    /// Streams with an open direction.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Streams in the table, the draining ones included.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// In no particular order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Stream)> {
        self.table.iter_mut().map(|(number, stream)| (*number, stream))
    }

    pub fn numbers_above(&self, last: u32) -> Vec<u32> {
        let mut numbers: Vec<u32> = self
            .table
            .keys()
            .copied()
            .filter(|number| *number > last)
            .collect();
        numbers.sort_unstable();
        numbers
    }

    pub fn memory_bytes(&self) -> usize {
        self.table.capacity() * (size_of::<(u32, Stream)>() + 1)
    }
}

/// Fibonacci hashing: the table takes its buckets from the low bits and its tags from the high ones.
#[derive(Debug, Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        let mixed = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Stream {
        Stream {
            key: 0,
            phase: Phase::Open,
            answer: Answer::Given,
            send: SendWindow::new(10),
            receive: ReceiveWindow::stream(10, 10),
            tiny_held: 0,
        }
    }

    #[test]
    fn a_stream_is_forgotten_when_both_directions_ended() {
        let mut streams = Streams::default();
        streams.insert(1, stream());
        streams.insert(3, stream());
        streams.end_local(1);
        streams.end_local(1);
        assert_eq!(streams.open(), 2);
        streams.end_remote(1);
        streams.end_remote(3);
        assert_eq!((streams.open(), streams.len()), (1, 1));
        streams.end_local(3);
        assert_eq!((streams.open(), streams.len()), (0, 0));
    }

    #[test]
    fn a_stream_with_unread_bytes_stays_until_they_are_read_but_is_not_open() {
        let mut streams = Streams::default();
        streams.insert(1, stream());
        streams.get_mut(1).expect("inserted").receive.arrive(5, 5);
        streams.end_local(1);
        streams.end_remote(1);
        assert_eq!((streams.open(), streams.len()), (0, 1));
        streams.get_mut(1).expect("draining").receive.consume(5);
        streams.forget_if_drained(1);
        assert_eq!((streams.open(), streams.len()), (0, 0));
    }

    #[test]
    fn a_table_under_churn_does_not_grow() {
        let mut streams = Streams::default();
        for number in (1..2_000_001u32).step_by(2) {
            streams.insert(number, stream());
            if number > 400 {
                streams.remove(number - 400);
            }
        }
        assert_eq!(streams.len(), 200);
        assert!(streams.memory_bytes() < 200 * 4 * size_of::<(u32, Stream)>());
    }
}
