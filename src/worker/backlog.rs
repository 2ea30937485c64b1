//! Opened plaintext that waits for its reader: slices of the worker's chunks, or copies where a few bytes would
//! keep a whole chunk from others.
//!
//! Invariant: an empty backlog owns no memory, and a backlog of `bytes` pins little more than twice as many
//! besides the chunks that it holds at least an eighth of.

use super::buffers::Buffers;
use crate::limits;
use crate::sys::buffer::{Chunk, Slice};

#[derive(Default)]
pub struct Backlog {
    slices: Vec<Slice>,
    bytes: usize,
    /// Bytes that were not copied, and pieces of memory that they are in.
    uncopied: usize,
    pieces: usize,
    /// Where small slices are copied together.
    copies: Option<Chunk>,
}

/// Whether the reader of a backlog is expected to take it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    Ready,
    /// Not there yet, or busy with `sending` bytes that it was given before.
    Blocked {
        sending: usize,
    },
}

impl Backlog {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    pub fn push(&mut self, slice: Slice, reader: Reader, buffers: &mut Buffers) {
        if slice.is_empty() {
            return;
        }
        self.bytes += slice.len();
        // Behind as much as one send takes it waits, however ready the reader is.
        let reader = match reader {
            Reader::Ready if self.slices.len() >= limits::SEND_PIECES_MAX => Reader::Blocked { sending: 0 },
            Reader::Ready | Reader::Blocked { .. } => reader,
        };
        let slice = if self.is_wasteful(&slice, reader, buffers) {
            self.copied(&slice)
        } else {
            self.uncopied += slice.len();
            self.pieces += usize::from(self.is_new_memory(&slice));
            slice
        };
        if let Some(last) = self.slices.last_mut()
            && last.try_extend(&slice)
        {
            return;
        }
        if self.slices.capacity() == 0 {
            self.slices = buffers.list();
        }
        self.slices.push(slice);
    }

    /// The front, as many pieces as one send takes.
    pub fn take(&mut self, buffers: &mut Buffers) -> Vec<Slice> {
        self.take_within(usize::MAX, buffers)
    }

    /// The same of at most so many bytes.
    pub fn take_within(&mut self, bytes_max: usize, buffers: &mut Buffers) -> Vec<Slice> {
        let front = if self.slices.len() <= limits::SEND_PIECES_MAX && self.bytes <= bytes_max {
            self.copies = None;
            std::mem::take(&mut self.slices)
        } else {
            let mut left = bytes_max;
            let whole = self
                .slices
                .iter()
                .take(limits::SEND_PIECES_MAX)
                .take_while(|slice| {
                    let fits = slice.len() <= left;
                    left -= if fits { slice.len() } else { 0 };
                    fits
                });
            let whole = whole.count();
            let mut front = buffers.list();
            front.extend(self.slices.drain(..whole));
            if whole < limits::SEND_PIECES_MAX && left > 0 {
                front.extend(self.slices.first_mut().map(|slice| slice.split_to(left)));
            }
            front
        };
        self.bytes -= front.iter().map(Slice::len).sum::<usize>();
        self.uncopied = self.uncopied.min(self.bytes);
        self.pieces = self.pieces.min(self.slices.len());
        front
    }

    /// Nobody reads it.
    pub fn discard(&mut self, buffers: &mut Buffers) {
        while !self.is_empty() {
            let slices = self.take(buffers);
            buffers.recycle_list(slices);
        }
    }

    /// Whether the slice keeps much more memory from others than it is worth. The few bytes at the edge of a bulk
    /// transfer do not: what surrounds them waits as well.
    fn is_wasteful(&self, slice: &Slice, reader: Reader, buffers: &Buffers) -> bool {
        // However much is being sent, a list of a window's single bytes would take a hundred megabytes.
        if slice.len() < limits::SLICE_TINY_BYTES && self.slices.len() >= limits::SEND_PIECES_MAX {
            return true;
        }
        let (worth_bytes, sending) = match reader {
            Reader::Blocked { sending } if !buffers.is_short() => (limits::SLICE_COPY_BYTES, sending),
            Reader::Blocked { sending } => (slice.pinned_bytes() / 8, sending),
            Reader::Ready if buffers.is_short() => (slice.pinned_bytes() / 8, 0),
            Reader::Ready => return false,
        };
        let pieces = self.pieces + usize::from(self.is_new_memory(slice));
        let waiting = self.uncopied + sending + slice.len();
        slice.len() < worth_bytes && waiting < pieces * (slice.pinned_bytes() / 8)
    }

    fn is_new_memory(&self, slice: &Slice) -> bool {
        self.slices.last().is_none_or(|last| !last.shares_memory(slice))
    }

    /// Appends to the copies made before, so that thousands of tiny messages take one piece of memory.
    fn copied(&mut self, slice: &Slice) -> Slice {
        let bytes = slice.bytes();
        let fits = |chunk: &Chunk| chunk.capacity() - chunk.filled() >= bytes.len();
        if !self.copies.as_ref().is_some_and(fits) {
            let wanted = self
                .bytes
                .clamp(limits::SLICE_COPY_BYTES, limits::COPIES_BYTES_MAX);
            self.copies = Some(Chunk::new(wanted.max(bytes.len())));
        }
        let chunk = self.copies.as_mut().expect("invariant: made above");
        let from = chunk.filled();
        chunk.spare()[..bytes.len()].copy_from_slice(bytes);
        chunk.fill(bytes.len());
        chunk.slice(from..from + bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(buffers: &mut Buffers, byte: u8, bytes: usize) -> Slice {
        let chunk = buffers.chunk(bytes);
        let from = chunk.filled();
        chunk.spare()[..bytes].fill(byte);
        chunk.fill(bytes);
        chunk.slice(from..from + bytes)
    }

    #[test]
    fn a_bounded_front_ends_within_a_piece_and_the_rest_stays_in_order() {
        let mut buffers = Buffers::default();
        let mut backlog = Backlog::default();
        for byte in 0..3u8 {
            backlog.push(Slice::copied(&[byte; 1000]), Reader::Ready, &mut buffers);
        }
        let mut all = Vec::new();
        for (bytes_max, taken, left) in [
            (1500, 1500, 1500),
            (500, 500, 1000),
            (10, 10, 990),
            (2000, 990, 0),
        ] {
            let front = backlog.take_within(bytes_max, &mut buffers);
            assert_eq!(front.iter().map(Slice::len).sum::<usize>(), taken);
            assert!(front.iter().all(|slice| !slice.is_empty()));
            assert_eq!(backlog.bytes(), left);
            front
                .iter()
                .for_each(|slice| all.extend_from_slice(slice.bytes()));
        }
        assert_eq!(all, [[0; 1000], [1; 1000], [2; 1000]].concat());
        assert!(backlog.is_empty());
    }

    #[test]
    fn tiny_messages_for_a_blocked_reader_are_copied_together_and_pin_no_chunk() {
        let mut buffers = Buffers::default();
        let mut backlog = Backlog::default();
        for byte in 0..100u8 {
            for _ in 0..100 {
                let slice = message(&mut buffers, byte, 1);
                backlog.push(slice, Reader::Blocked { sending: 0 }, &mut buffers);
            }
        }
        assert_eq!(buffers.chunks_pinned(), 0);
        assert_eq!(backlog.bytes(), 10_000);
        let slices = backlog.take(&mut buffers);
        assert!(slices.len() <= 6, "{} pieces of memory", slices.len());
        let bytes: Vec<u8> = slices
            .iter()
            .flat_map(|slice| slice.bytes().iter().copied())
            .collect();
        let expected: Vec<u8> = (0..100u8)
            .flat_map(|byte| std::iter::repeat_n(byte, 100))
            .collect();
        assert_eq!(bytes, expected);
        assert!(backlog.is_empty() && backlog.copies.is_none());
    }

    /// A backlog of many messages of a byte each, which has to be of few pieces.
    fn flooded(reader: Reader) -> (Buffers, Backlog) {
        const MESSAGES: usize = 200_000;
        let mut buffers = Buffers::default();
        let mut backlog = Backlog::default();
        for _ in 0..MESSAGES {
            // Frame headers lie between them.
            drop(message(&mut buffers, 0, 9));
            let slice = message(&mut buffers, 7, 1);
            backlog.push(slice, reader, &mut buffers);
        }
        assert_eq!(backlog.bytes(), MESSAGES);
        let copies = MESSAGES / limits::SLICE_COPY_BYTES + 1;
        let pieces = backlog.slices.len();
        assert!(pieces <= limits::SEND_PIECES_MAX + copies, "{pieces} pieces");
        (buffers, backlog)
    }

    /// A flood of frames with a byte each, taken in by one receive, is more than the sends of its turn take.
    #[test]
    fn tiny_messages_that_one_send_does_not_take_are_copied_together_although_the_reader_is_ready() {
        let (mut buffers, mut backlog) = flooded(Reader::Ready);
        assert_eq!(buffers.chunks_pinned(), 1);
        while !backlog.is_empty() {
            assert!(
                backlog
                    .take(&mut buffers)
                    .iter()
                    .all(|slice| slice.bytes().iter().all(|byte| *byte == 7))
            );
        }
        assert_eq!(backlog.bytes(), 0);
    }

    /// What is sent keeps chunks from others anyway; the list of what waits behind it must not outgrow them.
    #[test]
    fn tiny_messages_behind_a_large_send_do_not_make_a_long_list() {
        flooded(Reader::Blocked { sending: 1 << 20 });
    }

    #[test]
    fn a_long_backlog_is_taken_in_pieces_that_one_send_takes() {
        let mut buffers = Buffers::default();
        let mut backlog = Backlog::default();
        for _ in 0..limits::SEND_PIECES_MAX + 10 {
            let slice = Slice::copied(&[7; 5_000]);
            backlog.push(slice, Reader::Blocked { sending: 0 }, &mut buffers);
        }
        assert_eq!(backlog.take(&mut buffers).len(), limits::SEND_PIECES_MAX);
        assert_eq!(backlog.bytes(), 50_000);
        assert_eq!(backlog.take(&mut buffers).len(), 10);
        assert_eq!(backlog.bytes(), 0);
    }
}
