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
// Header lists (wire::http2::hpack, wire::hbone).

/// Largest integer of a header block: far above any block we accept, far below an overflow.
pub const HPACK_INTEGER_MAX: usize = 1 << 24;

/// A header block that expands to more than this many times the allowed list ends the connection; a smaller
/// excess only costs the message. Work per block is bounded by this, whatever the dynamic table holds.
pub const HPACK_EXPANSION_FACTOR: usize = 4;

/// Scratch that a decoder keeps between blocks, per string.
pub const HPACK_SCRATCH_BYTES_KEPT: usize = 512;

/// A host name (253, RFC 1035), a colon, a port; IPv6 in brackets is shorter.
pub const AUTHORITY_BYTES_MAX: usize = 253 + 1 + 5;

/// A method name in an incoming request; the longest registered one has 17.
pub const METHOD_BYTES_MAX: usize = 32;

/// All baggage of one message (W3C Baggage 3.3.2 asks for at least this much).
pub const BAGGAGE_BYTES_MAX: usize = 8192;

/// One value of a baggage member: Kubernetes names and labels are never longer.
pub const BAGGAGE_VALUE_BYTES_MAX: usize = 253;

/// A `forwarded` header: an address, a host name, and room for what others may add.
pub const FORWARDED_BYTES_MAX: usize = 1024;

/// The name of a network: a Kubernetes label value has 63, so this is room enough.
pub const NETWORK_BYTES_MAX: usize = 255;

const _: () = assert!(AUTHORITY_BYTES_MAX < FORWARDED_BYTES_MAX);
const _: () = assert!(BAGGAGE_BYTES_MAX > 7 * BAGGAGE_VALUE_BYTES_MAX);
const _: () = assert!(HPACK_INTEGER_MAX < 1 << 28);
