//! The memory that sessions of one worker share while bytes are in motion: the chunk that plaintext is opened
//! into, and send buffers. An idle session owns neither.

use std::collections::VecDeque;

use crate::limits;
use crate::sys::buffer::{Chunk, Slice};
use crate::tls::output::Output;

pub struct Buffers {
    /// Being filled. Everything of a worker is opened into it one after the other, so small messages of many
    /// sessions share one hot piece of memory.
    chunk: Chunk,
    /// Full, waiting for the last slice to go.
    retired: VecDeque<Chunk>,
    /// Chunks that nobody refers to.
    spare: Vec<Chunk>,
    outputs: Vec<Output>,
    /// Empty, for sends and backlogs.
    lists: Vec<Vec<Slice>>,
    /// Empty, for parts of records.
    partials: Vec<Vec<u8>>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            chunk: Chunk::new(limits::CHUNK_BYTES),
            retired: VecDeque::with_capacity(limits::CHUNKS_PINNED_SOFT),
            spare: Vec::with_capacity(limits::CHUNKS_SPARE_MAX),
            outputs: Vec::new(),
            lists: Vec::with_capacity(limits::LISTS_SPARE_MAX),
            partials: Vec::new(),
        }
    }
}

impl Buffers {
    /// The current chunk, with at least `room` bytes to open into.
    pub fn chunk(&mut self, room: usize) -> &mut Chunk {
        debug_assert!(room <= limits::CHUNK_BYTES);
        if self.chunk.capacity() - self.chunk.filled() < room && !self.chunk.reset() {
            self.reclaim();
            let next = self
                .spare
                .pop()
                .unwrap_or_else(|| Chunk::new(limits::CHUNK_BYTES));
            let full = std::mem::replace(&mut self.chunk, next);
            self.retired.push_back(full);
        }
        &mut self.chunk
    }

    /// Whether so many chunks are pinned by slow applications that small slices should be copied out.
    pub fn is_short(&self) -> bool {
        self.retired.len() >= limits::CHUNKS_PINNED_SOFT
    }

    /// Chunks that slices still refer to, the current one included.
    pub fn chunks_pinned(&self) -> usize {
        self.retired.iter().filter(|chunk| chunk.is_shared()).count() + usize::from(self.chunk.is_shared())
    }

    /// An empty send buffer; a small one where memory is short.
    pub fn output(&mut self, is_short: bool) -> Output {
        if is_short {
            return Output::with_capacity(limits::OUTPUT_SMALL_BYTES);
        }
        self.outputs
            .pop()
            .unwrap_or_else(|| Output::with_capacity(limits::OUTPUT_BYTES))
    }

    pub fn recycle_output(&mut self, mut output: Output) {
        let keep = limits::OUTPUT_BYTES..=limits::OUTPUT_BYTES_KEPT_MAX;
        if self.outputs.len() < limits::OUTPUTS_SPARE_MAX && keep.contains(&output.capacity()) {
            output.clear();
            self.outputs.push(output);
        }
    }

    /// Makes ready what so many sessions and tunnels need when all of them are busy in one turn, as far as it may be
    /// kept: memory is allocated when a connection is set up, not by the first busy turn afterwards.
    pub fn prepare(&mut self, sessions: usize, tunnels: usize) {
        // One is being sent while the next fills up.
        let outputs = (2 * sessions).min(limits::OUTPUTS_SPARE_MAX);
        while self.outputs.len() < outputs {
            self.outputs.push(Output::with_capacity(limits::OUTPUT_BYTES));
        }
        // What one reader can make wait. Memory that was never used is not committed.
        while self.spare.len() + self.retired.len() < limits::CHUNKS_SPARE_MAX {
            self.spare.push(Chunk::new(limits::CHUNK_BYTES));
        }
        let lists = (2 * tunnels).min(limits::LISTS_SPARE_MAX);
        while self.lists.len() < lists {
            self.lists.push(Vec::with_capacity(limits::SEND_PIECES_MAX));
        }
    }

    /// An empty list of slices.
    pub fn list(&mut self) -> Vec<Slice> {
        self.lists
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(limits::SEND_PIECES_MAX))
    }

    pub fn recycle_list(&mut self, mut list: Vec<Slice>) {
        let keep = 1..=limits::LIST_SLICES_KEPT_MAX;
        if self.lists.len() < limits::LISTS_SPARE_MAX && keep.contains(&list.capacity()) {
            list.clear();
            self.lists.push(list);
        }
    }

    /// Empty memory with room for `capacity` bytes.
    pub fn partial(&mut self, capacity: usize) -> Vec<u8> {
        let mut partial = self.partials.pop().unwrap_or_default();
        partial.reserve(capacity);
        partial
    }

    pub fn recycle_partial(&mut self, mut partial: Vec<u8>) {
        if self.partials.len() < limits::PARTIALS_SPARE_MAX && partial.capacity() > 0 {
            partial.clear();
            self.partials.push(partial);
        }
    }

    /// Called when every event of a turn was handled.
    pub fn end_turn(&mut self) {
        self.chunk.reset();
        if !self.retired.is_empty() {
            self.reclaim();
        }
    }

    /// Takes back retired chunks, oldest first; sends complete roughly in order, so few are looked at in vain.
    fn reclaim(&mut self) {
        for _ in 0..self.retired.len().min(limits::CHUNKS_RECLAIM_SCAN_MAX) {
            let Some(mut chunk) = self.retired.pop_front() else {
                return;
            };
            if !chunk.reset() {
                self.retired.push_back(chunk);
            } else if self.spare.len() < limits::CHUNKS_SPARE_MAX {
                self.spare.push(chunk);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(buffers: &mut Buffers, bytes: usize) -> crate::sys::buffer::Slice {
        let chunk = buffers.chunk(bytes);
        let from = chunk.filled();
        chunk.fill(bytes);
        chunk.slice(from..from + bytes)
    }

    #[test]
    fn a_chunk_is_used_again_only_when_its_last_slice_is_gone() {
        let mut buffers = Buffers::default();
        let first = fill(&mut buffers, limits::CHUNK_BYTES);
        let second = fill(&mut buffers, limits::CHUNK_BYTES);
        assert_eq!(buffers.chunks_pinned(), 2);
        drop(first);
        buffers.end_turn();
        assert_eq!(buffers.spare.len(), 1);
        assert_eq!(buffers.chunks_pinned(), 1);
        drop(second);
        buffers.end_turn();
        assert_eq!(buffers.chunks_pinned(), 0);
    }

    #[test]
    fn small_messages_of_a_turn_share_the_chunk_and_leave_nothing_behind() {
        let mut buffers = Buffers::default();
        for _ in 0..1_000 {
            drop(fill(&mut buffers, 1_024));
            buffers.end_turn();
        }
        assert!(buffers.retired.is_empty() && buffers.spare.is_empty());
    }
}
