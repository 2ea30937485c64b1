//! Every bound of the program in one place, with the relations between them asserted at compile time.

use std::time::Duration;
/// Worker threads. More than the CPUs of any machine we know of.
pub const WORKERS_MAX: usize = 1024;

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

/// A ZDS packet: the node agent's receive buffer, and ours. A longer one is refused as truncated.
pub const ZDS_PACKET_BYTES_MAX: usize = 1024;

/// Text of a refusal inside a ZDS packet.
pub const ZDS_NACK_TEXT_BYTES_MAX: usize = 960;

// Two nested messages: a tag and a length of two bytes each.
const _: () = assert!(ZDS_NACK_TEXT_BYTES_MAX + 6 <= ZDS_PACKET_BYTES_MAX);

/// Lines that wait for the log thread; more are dropped and counted. Upstream's buffer has as many.
pub const LOG_LINES_QUEUED_MAX: usize = 10_000;

/// Bytes of formatted log text that go out by one write at most, give or take one line.
pub const LOG_WRITE_BYTES_MAX: usize = 256 * 1024;

/// Connections that the readiness server serves at a time.
pub const READINESS_CONNECTIONS_MAX: usize = 64;

/// How long and how large the head of a request to one of our own HTTP servers may be.
pub const HTTP_HEADER_TIMEOUT: Duration = Duration::from_secs(2);
pub const HTTP_HEADER_BYTES_MAX: usize = 8192;

/// Pause of an accept loop of the control thread after an error of `accept`.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// Certificate requests under way at a time.
pub const CERTIFICATE_REQUESTS_MAX: usize = 8;

/// A wait for a point of wall-clock time is cut into pieces of this length, so that a set clock is noticed.
pub const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Connections that wait in the kernel to be accepted from one pod listener.
pub const LISTEN_BACKLOG: u32 = 1024;

/// Pods whose listeners could not be made are tried again after this time.
pub const ZDS_RETRY_DELAY: Duration = Duration::from_secs(5);
// Section `tls`.

/// Bytes of ciphertext that a whole handshake may take from the peer. A mesh chain is 1-3 KiB; one handshake
/// message of the library ends at 64 KiB.
pub const HANDSHAKE_BYTES_MAX: usize = 128 * 1024;

/// Records sealed under one key, the closing KeyUpdate included: 2^24 (the AES-GCM bound of draft-irtf-cfrg-aead-limits
/// for an advantage of 2^-60 with full records), less a margin. At 10 Gbit/s this is 220 s.
pub const RECORDS_PER_KEY_MAX: u64 = (1 << 24) - 64;
/// What `UZTUNNEL_TLS_RECORDS_MAX` may ask for at least.
pub const RECORDS_PER_KEY_MIN: u64 = 16;

/// KeyUpdate messages, tickets and warning alerts that a peer may send ahead of data. Each costs us key
/// derivation but the peer 22 bytes; a record of data earns `1 / CONTROL_EARN_RECORDS` of one back.
pub const CONTROL_BURST_MAX: u32 = 32;
pub const CONTROL_EARN_RECORDS: u32 = 8;

/// Records without content in a row (openssl's bound is the same).
pub const EMPTY_RECORDS_MAX: u32 = 32;

const _: () = assert!(RECORDS_PER_KEY_MAX <= 1 << 24);
// A peer that updates its key as often as our own smallest limit does earns more than it spends.
const _: () = assert!((CONTROL_EARN_RECORDS as u64) < RECORDS_PER_KEY_MIN - 1);
/// Entries of a ring's submission queue; the completion queue has four times as many. More operations than this
/// can be started in one turn at the price of a further system call.
pub const RING_ENTRIES: u32 = 1024;

/// What a ring is made with when the kernel has no memory for `RING_ENTRIES`.
pub const RING_ENTRIES_MIN: u32 = 128;

const _: () = assert!(RING_ENTRIES_MIN < RING_ENTRIES);
const _: () = assert!(EVENTS_TURN_MAX <= 4 * RING_ENTRIES as usize);
