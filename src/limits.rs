//! Every bound of the program in one place, with the relations between them asserted at compile time.

/// Events that one `Driver::poll` returns at most.
pub const EVENTS_TURN_MAX: usize = 1024;

/// Bytes that one receive delivers at most: 256 KiB was the knee for bulk, larger bought nothing.
pub const RECEIVE_BYTES_MAX: usize = 256 * 1024;

/// Receive blocks of one worker: 16 x 256 KiB.
pub const RECEIVE_BLOCKS: u16 = 16;

/// Pieces of one vectored send (the kernel's UIO_MAXIOV is 1,024).
pub const SEND_PIECES_MAX: usize = 64;

/// Sends of at most this size may go out directly instead of through the ring, the first `SENDS_DIRECT_TURN_MAX` of a turn.
pub const SEND_DIRECT_BYTES_MAX: usize = 4096;
pub const SENDS_DIRECT_TURN_MAX: usize = 2;

const _: () = assert!(SEND_PIECES_MAX <= 1024);

/// What a receive gets before its socket has shown that more comes at once: a whole TLS record.
pub const RECEIVE_SMALL_BYTES: usize = 17 * 1024;

/// Small receive blocks of one worker.
pub const RECEIVE_SMALL_BLOCKS: u16 = 256;

/// A receive that found no block free reads at most this, into memory of its own.
pub const RECEIVE_FALLBACK_BYTES: usize = 16 * 1024;

/// Receives without a block that one turn serves at most.
pub const RECEIVE_FALLBACKS_TURN_MAX: usize = 64;

/// Connections that one turn accepts from one listener at most.
pub const ACCEPTS_TURN_MAX: usize = 64;

const _: () = assert!(RECEIVE_SMALL_BYTES < RECEIVE_BYTES_MAX);
const _: () = assert!(ACCEPTS_TURN_MAX < EVENTS_TURN_MAX);

/// Entries of a ring's submission queue; the completion queue has four times as many. More operations than this
/// can be started in one turn at the price of a further system call.
pub const RING_ENTRIES: u32 = 1024;

/// What a ring is made with when the kernel has no memory for `RING_ENTRIES`.
pub const RING_ENTRIES_MIN: u32 = 128;

const _: () = assert!(RING_ENTRIES_MIN < RING_ENTRIES);
const _: () = assert!(EVENTS_TURN_MAX <= 4 * RING_ENTRIES as usize);

/// Headers of vectored sends (1.1 KiB each) that a worker keeps for the next sends.
pub const SEND_FRAMES_SPARE_MAX: usize = 1024;
