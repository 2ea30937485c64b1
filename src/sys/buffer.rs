//! Byte buffers that cross the driver interface.
//!
//! * `RecvBuffer`: what a receive delivered, lent from the driver's ring or pool; dropping it gives it back.
//!   It has `HEADROOM` writable bytes in front and one behind, so that a frame header and a TLS content type
//!   can be put around the payload without a copy.
//! * `Chunk` and `Slice`: plaintext opened from HBONE records. A chunk is filled from the front; slices are
//!   counted references into its filled part and may be held by a send until the kernel has taken them.
//! * `Payload`: what a send owns.
//!
//! Invariant (the chief risk of the design, see docs/ARCHITECTURE.md): memory is reused only when nothing
//! refers to it any more. Chunks enforce it by reference count, receive buffers by ownership. With debug
//! assertions on, memory is poisoned when it comes back, so that a violation shows as 0xDB bytes.
//!
//! Thread: all of these belong to one worker.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::fmt;
use std::io::IoSlice;
use std::ptr::NonNull;
use std::rc::Rc;

use crate::planted::{Bug, is_planted};

/// Writable bytes kept free in front of every received byte: room for an HTTP/2 frame header (9). A whole cache
/// line, so that the kernel copies to aligned memory.
pub const HEADROOM: usize = 64;
/// Writable bytes behind.
pub const TAILROOM: usize = 16;

/// What freed memory looks like when debug assertions are on.
pub const POISON: u8 = 0xDB;

fn poison(memory: &mut [u8]) {
    if cfg!(debug_assertions) {
        memory.fill(POISON);
    }
}

/// A fixed number of receive blocks of one size, lent one by one. The memory is mapped, so a block that was
/// never used costs address space only.
pub struct RecvPool {
    shared: Rc<PoolShared>,
}

struct PoolShared {
    memory: memory::Mapping,
    block_bytes: usize,
    stride: usize,
    /// Blocks that came back and were not taken since.
    free: RefCell<Vec<u16>>,
    /// Blocks that are out as a `RecvBuffer`.
    lent: Cell<usize>,
}

impl RecvPool {
    /// `blocks` blocks that each receive up to `block_bytes`.
    pub fn new(blocks: u16, block_bytes: usize) -> std::io::Result<Self> {
        assert!(blocks > 0 && block_bytes > 0);
        let stride = (HEADROOM + block_bytes + TAILROOM).next_multiple_of(64);
        let memory = memory::Mapping::new(stride * usize::from(blocks))?;
        Ok(Self {
            shared: Rc::new(PoolShared {
                memory,
                block_bytes,
                stride,
                free: RefCell::new((0..blocks).rev().collect()),
                lent: Cell::new(0),
            }),
        })
    }

    pub fn block_bytes(&self) -> usize {
        self.shared.block_bytes
    }

    /// Takes a free block to receive into. The caller either `lend`s it filled or `put`s it back.
    pub(super) fn take(&self) -> Option<u16> {
        self.shared.free.borrow_mut().pop()
    }

    pub(super) fn put(&self, block: u16) {
        self.shared.free.borrow_mut().push(block);
    }

    /// Where the kernel may write `block_bytes` bytes of a block that was taken.
    pub(super) fn address(&self, block: u16) -> NonNull<u8> {
        self.shared.address(block, HEADROOM)
    }

    /// A block that was taken and now holds `len` received bytes becomes a buffer.
    pub(super) fn lend(&self, block: u16, len: usize) -> RecvBuffer {
        assert!(
            len <= self.shared.block_bytes,
            "a receive is never longer than its block"
        );
        self.shared.lent.set(self.shared.lent.get() + 1);
        RecvBuffer {
            memory: RecvMemory::Pooled {
                pool: self.shared.clone(),
                block,
            },
            start: HEADROOM,
            len,
        }
    }

    pub fn lent(&self) -> usize {
        self.shared.lent.get()
    }
}

impl PoolShared {
    fn address(&self, block: u16, offset: usize) -> NonNull<u8> {
        let at = self.stride * usize::from(block) + offset;
        assert!(at < self.memory.len());
        // SAFETY: `at` is inside the mapping, as just asserted.
        unsafe { self.memory.address().add(at) }
    }
}

/// Received bytes. Dropping it gives the memory back.
pub struct RecvBuffer {
    memory: RecvMemory,
    start: usize,
    len: usize,
}

enum RecvMemory {
    Pooled {
        pool: Rc<PoolShared>,
        block: u16,
    },
    /// When the pool is empty: memory of its own, freed on drop. `HEADROOM + capacity + TAILROOM` bytes.
    Own(Box<[u8]>),
}

impl RecvBuffer {
    /// A buffer of its own memory holding a copy of `bytes`.
    pub fn copied(bytes: &[u8]) -> Self {
        let mut memory = vec![0; HEADROOM + bytes.len() + TAILROOM];
        memory[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes);
        Self {
            memory: RecvMemory::Own(memory.into_boxed_slice()),
            start: HEADROOM,
            len: bytes.len(),
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn is_pooled(&self) -> bool {
        matches!(self.memory, RecvMemory::Pooled { .. })
    }

    /// Bytes of memory that this buffer keeps from being used otherwise.
    pub fn pinned_bytes(&self) -> usize {
        match &self.memory {
            RecvMemory::Pooled { pool, .. } => pool.block_bytes,
            RecvMemory::Own(memory) => memory.len(),
        }
    }

    fn whole(&self) -> &[u8] {
        match &self.memory {
            RecvMemory::Pooled { pool, block } => {
                // SAFETY: the block was taken from the pool and is owned by this buffer until its drop, the
                // mapping lives as long as `pool`, and `stride` bytes from offset 0 are inside it.
                unsafe { std::slice::from_raw_parts(pool.address(*block, 0).as_ptr(), pool.stride) }
            }
            RecvMemory::Own(memory) => memory,
        }
    }

    fn whole_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            RecvMemory::Pooled { pool, block } => {
                // SAFETY: as in `whole`; exclusive, since this buffer is the block's only owner and `self` is
                // borrowed mutably.
                unsafe { std::slice::from_raw_parts_mut(pool.address(*block, 0).as_ptr(), pool.stride) }
            }
            RecvMemory::Own(memory) => memory,
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.whole()[self.start..self.start + self.len]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let range = self.start..self.start + self.len;
        &mut self.whole_mut()[range]
    }

    /// Drops `n` bytes from the front; their memory becomes headroom.
    pub fn consume(&mut self, n: usize) {
        assert!(n <= self.len, "cannot consume more than was received");
        self.start += n;
        self.len -= n;
    }

    /// The first `payload_len` bytes with `header` right in front of them, as one contiguous piece. Overwrites
    /// headroom or bytes already consumed.
    pub fn framed(&mut self, header: &[u8], payload_len: usize) -> &[u8] {
        assert!(header.len() <= HEADROOM && payload_len <= self.len);
        let from = self.start - header.len();
        let start = self.start;
        let whole = self.whole_mut();
        whole[from..start].copy_from_slice(header);
        &whole[from..start + payload_len]
    }
}

impl Drop for RecvBuffer {
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            let range = HEADROOM..(self.start + self.len).max(HEADROOM);
            poison(&mut self.whole_mut()[range]);
        }
        if let RecvMemory::Pooled { pool, block } = &self.memory {
            pool.free.borrow_mut().push(*block);
            pool.lent.set(pool.lent.get() - 1);
        }
    }
}

impl fmt::Debug for RecvBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecvBuffer({} bytes)", self.len)
    }
}

/// Memory that is filled from the front while slices refer to the part filled already.
pub struct Chunk {
    shared: Rc<ChunkMemory>,
    filled: usize,
}

struct ChunkMemory {
    bytes: Box<[UnsafeCell<u8>]>,
}

impl Chunk {
    pub fn new(capacity: usize) -> Self {
        // Zeroed by the allocator, so that large chunks cost memory only where they were used.
        let zeroed = Box::into_raw(vec![0u8; capacity].into_boxed_slice());
        // SAFETY: the pointer owns the box, and `UnsafeCell<u8>` has the layout of `u8`.
        let bytes = unsafe { Box::from_raw(zeroed as *mut [UnsafeCell<u8>]) };
        Self {
            shared: Rc::new(ChunkMemory { bytes }),
            filled: 0,
        }
    }

    pub fn capacity(&self) -> usize {
        self.shared.bytes.len()
    }

    pub fn filled(&self) -> usize {
        self.filled
    }

    /// The part that no slice refers to.
    pub fn spare(&mut self) -> &mut [u8] {
        let spare = &self.shared.bytes[self.filled..];
        // SAFETY: slices only ever cover bytes below `filled` (asserted in `slice`), and `self`, the only
        // chunk with this memory, is borrowed mutably, so nothing else refers to these cells.
        unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(spare.as_ptr()), spare.len()) }
    }

    /// The filled part.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: bytes below `filled` are never written while `self` or a slice is borrowed: `spare` starts
        // at `filled`, and `reset` needs `&mut self` and that no slice exists.
        unsafe { std::slice::from_raw_parts(self.shared.bytes.as_ptr().cast(), self.filled) }
    }

    /// `n` more bytes of `spare` are filled.
    pub fn fill(&mut self, n: usize) {
        assert!(n <= self.capacity() - self.filled);
        self.filled += n;
    }

    /// A counted reference to filled bytes.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Slice {
        assert!(
            range.start <= range.end && range.end <= self.filled,
            "a slice covers filled bytes only"
        );
        Slice {
            shared: self.shared.clone(),
            start: range.start,
            len: range.end - range.start,
        }
    }

    /// Whether any slice still refers to this memory.
    pub fn is_shared(&self) -> bool {
        Rc::strong_count(&self.shared) > 1
    }

    /// Starts from the front again. `false`, and nothing happens, while slices exist.
    pub fn reset(&mut self) -> bool {
        if self.is_shared() && !is_planted(Bug::ChunkReusedTooEarly) {
            return false;
        }
        let filled = std::mem::take(&mut self.filled);
        if cfg!(debug_assertions) {
            poison(&mut self.spare()[..filled]);
        }
        true
    }
}

/// A counted reference to bytes of a chunk, or to a copy of them.
#[derive(Clone)]
pub struct Slice {
    shared: Rc<ChunkMemory>,
    start: usize,
    len: usize,
}

impl Slice {
    pub fn copied(bytes: &[u8]) -> Self {
        let mut chunk = Chunk::new(bytes.len());
        chunk.spare().copy_from_slice(bytes);
        chunk.fill(bytes.len());
        chunk.slice(0..bytes.len())
    }

    pub fn bytes(&self) -> &[u8] {
        let cells = &self.shared.bytes[self.start..self.start + self.len];
        // SAFETY: the range was filled when the slice was made, and filled bytes are not written as long as
        // any slice exists (`Chunk::reset` refuses).
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that this slice keeps from being used otherwise.
    pub fn pinned_bytes(&self) -> usize {
        self.shared.bytes.len()
    }

    /// Whether both keep the same memory from being used otherwise.
    pub fn shares_memory(&self, other: &Slice) -> bool {
        Rc::ptr_eq(&self.shared, &other.shared)
    }

    /// Joins `next` to the end when it follows directly in the same memory.
    pub fn try_extend(&mut self, next: &Slice) -> bool {
        let follows = Rc::ptr_eq(&self.shared, &next.shared) && self.start + self.len == next.start;
        if follows {
            self.len += next.len;
        }
        follows
    }

    /// Splits off and returns the first `n` bytes.
    pub fn split_to(&mut self, n: usize) -> Slice {
        assert!(n <= self.len);
        let front = Slice {
            shared: self.shared.clone(),
            start: self.start,
            len: n,
        };
        self.start += n;
        self.len -= n;
        front
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.len)
    }
}

/// What a send owns until the kernel has taken it.
#[derive(Debug)]
pub enum Payload {
    /// `bytes[from..end]`.
    Bytes { bytes: Vec<u8>, from: usize, end: usize },
    /// Pieces of opened plaintext, sent in order by one vectored send.
    Slices(Vec<Slice>),
    /// A receive passed on as it is.
    Received(RecvBuffer),
}

impl Payload {
    /// All of `bytes`.
    pub fn whole(bytes: Vec<u8>) -> Self {
        let end = bytes.len();
        Self::Bytes { bytes, from: 0, end }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Bytes { from, end, .. } => end - from,
            Self::Slices(slices) => slices.iter().map(Slice::len).sum(),
            Self::Received(buffer) => buffer.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `out.len()` pieces after the first `skip` bytes: for a send that keeps them on the stack.
    pub(super) fn first_pieces<'a, 'b>(
        &'a self,
        mut skip: usize,
        out: &'b mut [IoSlice<'a>],
    ) -> &'b [IoSlice<'a>] {
        let mut filled = 0;
        let mut push = |piece: &'a [u8]| {
            let rest = &piece[skip.min(piece.len())..];
            skip -= piece.len() - rest.len();
            if !rest.is_empty() {
                out[filled] = IoSlice::new(rest);
                filled += 1;
            }
            filled < out.len()
        };
        match self {
            Self::Bytes { bytes, from, end } => push(&bytes[*from..*end]),
            Self::Slices(slices) => slices.iter().all(|slice| push(slice.bytes())),
            Self::Received(buffer) => push(buffer.bytes()),
        };
        &out[..filled]
    }
}

mod memory {
    //! An anonymous private mapping.

    use std::io;
    use std::ptr::NonNull;

    pub struct Mapping {
        address: NonNull<u8>,
        len: usize,
    }

    impl Mapping {
        pub fn new(len: usize) -> io::Result<Self> {
            // SAFETY: a fresh anonymous mapping; no existing memory is touched.
            let address = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            if address == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let address = NonNull::new(address.cast()).expect("invariant: mmap never returns null");
            Ok(Self { address, len })
        }

        pub fn address(&self) -> NonNull<u8> {
            self.address
        }

        pub fn len(&self) -> usize {
            self.len
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: mapped in `new` with this length; the drivers drain every operation before they drop
            // the pool, so the kernel does not write here any more.
            unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_stands_in_front_of_the_payload_without_a_copy() {
        let pool = RecvPool::new(2, 100).expect("mapping");
        let block = pool.take().expect("free");
        let mut buffer = pool.lend(block, 10);
        buffer.bytes_mut().copy_from_slice(b"0123456789");
        assert_eq!(buffer.framed(b"<h>", 4), b"<h>0123");
        buffer.consume(4);
        assert_eq!(buffer.framed(b"<i>", 6), b"<i>456789");
        assert_eq!(pool.lent(), 1);
        drop(buffer);
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn a_chunk_is_not_reused_while_a_slice_exists() {
        let mut chunk = Chunk::new(8);
        chunk.spare()[..4].copy_from_slice(b"abcd");
        chunk.fill(4);
        let slice = chunk.slice(1..3);
        assert!(!chunk.reset());
        chunk.spare()[..4].copy_from_slice(b"efgh");
        assert_eq!(slice.bytes(), b"bc");
        drop(slice);
        assert!(chunk.reset());
        assert_eq!(chunk.filled(), 0);
        assert_eq!(chunk.spare().len(), 8);
    }

    #[test]
    fn slices_that_touch_become_one() {
        let mut chunk = Chunk::new(8);
        chunk.spare().copy_from_slice(b"abcdefgh");
        chunk.fill(8);
        let mut first = chunk.slice(0..3);
        assert!(first.try_extend(&chunk.slice(3..5)));
        assert!(!first.try_extend(&chunk.slice(6..8)));
        assert_eq!(first.bytes(), b"abcde");
        assert_eq!(first.split_to(2).bytes(), b"ab");
        assert_eq!(first.bytes(), b"cde");
    }

    #[test]
    fn pieces_skip_what_was_sent() {
        let payload = Payload::Slices(vec![Slice::copied(b"abc"), Slice::copied(b"def")]);
        let mut pieces = [IoSlice::new(&[]); 2];
        let first = payload.first_pieces(1, &mut pieces);
        assert_eq!((&*first[0], &*first[1]), (&b"bc"[..], &b"def"[..]));
        let mut pieces = [IoSlice::new(&[]); 1];
        assert_eq!(&*payload.first_pieces(4, &mut pieces)[0], b"ef");
        assert_eq!(&*payload.first_pieces(0, &mut pieces)[0], b"abc");
    }
}
