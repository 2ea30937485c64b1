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

// TLS (tls::handshake, tls::channel).

/// Bytes of ciphertext that a whole handshake may take from the peer. A mesh chain is 1-3 KiB; one handshake
/// message of the library ends at 64 KiB.
pub const HANDSHAKE_BYTES_MAX: usize = 128 * 1024;

/// Records sealed under one key, the KeyUpdate that ends its life included: 2^24, the bound for AES-GCM with
/// full records and an advantage of 2^-60 (draft-irtf-cfrg-aead-limits), less a margin. At 10 Gbit/s it is
/// reached in 220 s.
pub const RECORDS_PER_KEY_MAX: u64 = (1 << 24) - 64;
/// What `UZTUNNEL_TLS_RECORDS_MAX` may ask for at least.
pub const RECORDS_PER_KEY_MIN: u64 = 16;

/// KeyUpdate messages, tickets and warnings that a peer may send ahead of data. Each costs us a key
/// derivation, but the peer 27 bytes; a record of data earns `1 / CONTROL_EARN_RECORDS` of one back.
pub const CONTROL_BURST_MAX: u32 = 32;
pub const CONTROL_EARN_RECORDS: u32 = 8;

/// Records without content in a row; openssl's bound is the same.
pub const EMPTY_RECORDS_MAX: u32 = 32;

const _: () = assert!(RECORDS_PER_KEY_MAX <= 1 << 24);
// A peer that updates its key as often as our own smallest limit does earns more than it spends.
const _: () = assert!((CONTROL_EARN_RECORDS as u64) < RECORDS_PER_KEY_MIN - 1);

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
