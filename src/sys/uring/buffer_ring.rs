//! Receive blocks lent to the kernel, which picks one when bytes arrive: one pool and, where the kernel has
//! them, one provided-buffer ring.
//!
//! Invariant: a block is in exactly one hand: free in the pool, provided to the kernel, or out as a
//! `RecvBuffer`. Which blocks are provided is recorded and asserted in release builds too: a block that the
//! kernel may still write must never be handed to anyone.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::super::buffer::{RecvBuffer, RecvPool};
use super::ring::{DisabledRing, RingError, Step};

/// Blocks of one size.
pub(super) struct Group {
    /// Dropped first: the kernel's list before the memory that it names.
    ring: Option<ProvidedRing>,
    pool: RecvPool,
    id: u16,
    /// How many blocks the kernel is given. It takes them in turn, so the fewer there are the more of them are
    /// still in the cache; too few, and receives have to wait for the next poll.
    keep: usize,
    /// The fewest that were left between two batches, and how many batches ago that count began.
    left_min: usize,
    batches: u32,
}

/// Blocks that the kernel always has.
const KEEP_MIN: usize = 4;
/// Batches after which blocks that were never needed are taken out of the turn.
const KEEP_BATCHES: u32 = 256;

impl Group {
    /// Group `id` of `blocks` blocks, given to the kernel when `provided`.
    pub fn new(
        ring: &DisabledRing,
        id: u16,
        blocks: u16,
        block_bytes: usize,
        provided: bool,
    ) -> Result<Self, RingError> {
        let pool = RecvPool::new(blocks, block_bytes).map_err(|error| Step::RegisterBuffers.failed(error))?;
        let ring = if provided {
            Some(ProvidedRing::register(ring, id, blocks)?)
        } else {
            None
        };
        let mut group = Self {
            ring,
            pool,
            id,
            keep: KEEP_MIN,
            left_min: usize::MAX,
            batches: 0,
        };
        group.top_up();
        Ok(group)
    }

    pub fn id(&self) -> u16 {
        self.id
    }

    pub fn block_bytes(&self) -> usize {
        self.pool.block_bytes()
    }

    pub fn lent(&self) -> usize {
        self.pool.lent()
    }

    /// Gives free blocks to the kernel, as many as it lately needed. Only between batches of completions: a block provided within a
    /// batch could be taken from a receive that starved earlier in it.
    pub fn provide(&mut self) {
        self.adapt();
        self.top_up();
    }

    fn adapt(&mut self) {
        let Some(ring) = &self.ring else { return };
        self.left_min = self.left_min.min(ring.provided_count);
        self.batches += 1;
        if ring.provided_count == 0 {
            self.keep = (self.keep * 2).min(usize::from(ring.count));
        } else if self.batches == KEEP_BATCHES {
            self.keep = self.keep.saturating_sub(self.left_min / 2).max(KEEP_MIN);
        } else {
            return;
        }
        (self.left_min, self.batches) = (usize::MAX, 0);
    }

    fn top_up(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        let len = self.pool.block_bytes();
        let mut any = false;
        while ring.provided_count < self.keep {
            let Some(block) = self.pool.take() else { break };
            ring.put(block, self.pool.address(block), len);
            any = true;
        }
        if any {
            ring.publish();
        }
    }

    /// Blocks that the kernel can still fill, or that a direct receive can take.
    pub fn available(&self) -> usize {
        match &self.ring {
            Some(ring) => ring.provided_count,
            None => usize::MAX,
        }
    }

    /// The kernel filled `len` bytes of `block` (0: took it and gave it back unused).
    pub fn filled(&mut self, block: u16, len: usize) -> Option<RecvBuffer> {
        let ring = self.ring.as_mut();
        ring.expect("invariant: only a provided ring names blocks")
            .taken(block);
        if len == 0 {
            self.pool.put(block);
            return None;
        }
        Some(self.pool.lend(block, len))
    }

    /// Receives into a free block by `recv(2)`. `None`: no block is free.
    pub fn receive_direct(
        &mut self,
        bytes_max: usize,
        receive: impl FnOnce(NonNull<u8>, usize) -> io::Result<usize>,
    ) -> Option<io::Result<Option<RecvBuffer>>> {
        let block = self.pool.take()?;
        let len = bytes_max.min(self.pool.block_bytes());
        Some(match receive(self.pool.address(block), len) {
            Ok(0) => {
                self.pool.put(block);
                Ok(None)
            }
            Ok(n) => Ok(Some(self.pool.lend(block, n))),
            Err(error) => {
                self.pool.put(block);
                Err(error)
            }
        })
    }

    /// Keeps the memory mapped for ever: for a ring that did not let go of it.
    pub fn leak(self) {
        std::mem::forget(self);
    }
}

/// The list that the kernel takes blocks from, in memory shared with it (`struct io_uring_buf_ring`).
struct ProvidedRing {
    entries: NonNull<BufRingEntry>,
    /// A power of two.
    count: u16,
    tail: u16,
    provided: Box<[bool]>,
    provided_count: usize,
}

impl ProvidedRing {
    fn register(ring: &DisabledRing, group: u16, blocks: u16) -> Result<Self, RingError> {
        let count = blocks.next_power_of_two();
        let bytes = usize::from(count) * size_of::<BufRingEntry>();
        let failed = |error| Step::RegisterBuffers.failed(error);
        // SAFETY: a fresh anonymous mapping, zeroed, page-aligned as the kernel wants it; no existing memory is
        // touched.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        let provided = Self {
            entries: NonNull::new(address.cast()).expect("invariant: mmap never returns null"),
            count,
            tail: 0,
            provided: vec![false; usize::from(blocks)].into_boxed_slice(),
            provided_count: 0,
        };
        // SAFETY: the mapping holds `count` entries. It is unmapped when this value drops, which `UringDriver`
        // does after the ring is gone; the kernel holds the pages themselves until then.
        unsafe { ring.register_buffers(address as u64, count, group)? };
        Ok(provided)
    }

    fn put(&mut self, block: u16, address: NonNull<u8>, len: usize) {
        let mark = &mut self.provided[usize::from(block)];
        assert!(!*mark, "a block is given to the kernel once");
        *mark = true;
        self.provided_count += 1;
        let at = usize::from(self.tail & (self.count - 1));
        // SAFETY: `at` is below `count`. The kernel does not read entries at or behind the published tail, and
        // there are never more provided blocks than entries, so this one was taken already.
        let entry = unsafe { self.entries.add(at).as_mut() };
        entry.set_addr(address.as_ptr() as u64);
        entry.set_len(u32::try_from(len).expect("invariant: blocks are below 4 GiB"));
        entry.set_bid(block);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&mut self) {
        // SAFETY: the address is that of the first entry; the tail is a naturally aligned u16 within the
        // mapping, written by us alone and read by the kernel with acquire ordering.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    fn taken(&mut self, block: u16) {
        let mark = &mut self.provided[usize::from(block)];
        assert!(*mark, "the kernel fills only blocks that it was given");
        *mark = false;
        self.provided_count -= 1;
    }
}

impl Drop for ProvidedRing {
    fn drop(&mut self) {
        let bytes = usize::from(self.count) * size_of::<BufRingEntry>();
        // SAFETY: mapped in `register` with this length; nothing refers to it but the ring, which is gone or
        // holds its pages itself.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), bytes) };
    }
}
