//! Every bound of the program in one place, with the relations between them asserted at compile time.

mod control;
mod parts;

use std::time::Duration;

pub use control::*;
pub use parts::Parts;

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

/// What a receive gets before its socket has shown that more comes at once: a whole TLS record.
pub const RECEIVE_SMALL_BYTES: usize = 17 * 1024;

/// Small receive blocks of one worker.
pub const RECEIVE_SMALL_BLOCKS: u16 = 256;

/// A receive that found no block free reads at most this, into memory of its own.
pub const RECEIVE_FALLBACK_BYTES: usize = 16 * 1024;

/// Receives without a block that one turn serves at most.
pub const RECEIVE_FALLBACKS_TURN_MAX: usize = 64;

/// How long one turn judges live connections again after policies have changed, give or take one connection, and how
/// many slots it looks at.
pub const RECHECK_TURN_TIME: Duration = Duration::from_micros(500);
pub const RECHECK_SLOTS_TURN_MAX: usize = 4096;

/// Sessions of one source with one pod on one worker that are offered whole windows. Each further one is offered what
/// divides them by its number: a gateway with a session for each of its threads feels nothing, a flood is bounded.
pub const SESSIONS_SOURCE_WHOLE: usize = 8;

/// What the session with this number of its source is offered of `whole`. An HTTP/2 window has a least size (RFC 9113
/// section 6.9.2).
pub const fn session_window_bytes(whole: u32, number: usize) -> u32 {
    match session_unread_bytes(whole, number) {
        part if part < SESSION_WINDOW_BYTES_MIN => SESSION_WINDOW_BYTES_MIN,
        part => part,
    }
}

/// The same of the bytes that its applications may leave unread beside its window.
pub const fn session_unread_bytes(whole: u32, number: usize) -> u32 {
    if number <= SESSIONS_SOURCE_WHOLE {
        whole
    } else {
        whole / number as u32
    }
}

const SESSION_WINDOW_BYTES_MIN: u32 = 65_535;

/// What all sessions of one source with one pod on one worker may leave unread together: a session's number is that of
/// those that were there when it came, itself included, so that of any that live together the n-th has at least n.
pub const SESSIONS_SOURCE_UNREAD_BYTES: u64 = {
    let (mut bytes, mut number) = (0, 1);
    while number <= SESSIONS_POD_MAX {
        bytes += session_window_bytes(HTTP2_CONNECTION_WINDOW_BYTES, number) as u64;
        bytes += session_unread_bytes(HTTP2_UNREAD_BYTES, number) as u64;
        number += 1;
    }
    bytes
};
// 256 GiB otherwise.
const _: () = assert!(SESSIONS_SOURCE_UNREAD_BYTES < 1200 << 20);

/// Slots of sessions that one turn looks at after addresses have changed hands: two look-ups each.
pub const FENCE_SLOTS_TURN_MAX: usize = 1024;

/// Kinds of connections (source, destination, service, identities) that one worker counts apart: each has some 600 bytes
/// for as long as the process lives, since counters must not go back. Further kinds are counted together, in series
/// whose labels are unknown.
pub const SERIES_WORKER_MAX: usize = 8192;
/// The part of them for sources that only their peers tell of: those may call themselves anything.
pub const SERIES_TOLD_MAX: usize = 1024;
/// Host names that one worker counts look-ups of apart, for each workload that asks.
pub const SERIES_NAMES_MAX: usize = 1024;
/// Kinds that a worker finds by what they are made of, without comparing labels. When it is full all are forgotten.
pub const SERIES_FOUND_MAX: usize = 4096;
/// Slots of its tables that a worker looks at for one page of live connections: well below a millisecond.
pub const LIVE_SLOTS_PAGE_MAX: usize = 1024;
/// A dump waits so long for one page; a worker that does not answer is left out.
pub const LIVE_PAGE_WAIT: Duration = Duration::from_secs(2);

const _: () = assert!(SERIES_TOLD_MAX < SERIES_WORKER_MAX);

/// Connections that one turn accepts from one listener at most.
pub const ACCEPTS_TURN_MAX: usize = 64;

const _: () = assert!(RECEIVE_SMALL_BYTES < RECEIVE_BYTES_MAX);
const _: () = assert!(ACCEPTS_TURN_MAX < EVENTS_TURN_MAX);

// Section `tls`.
// TLS (tls::handshake, tls::channel).

/// Bytes of ciphertext that a whole handshake may take from the peer. A mesh chain is 1-3 KiB; one handshake
/// message of the library ends at 64 KiB.
pub const HANDSHAKE_BYTES_MAX: usize = 128 * 1024;

/// Certificates beside its leaf that a peer may present without being asked which of them it needs: that takes as long as
/// verifying them.
pub const INTERMEDIATES_PLAIN: usize = 3;

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

// --- HTTP/2 engine (wire::http2) ---

/// A rate with a burst: `burst` units at once, `per_second` sustained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u32,
    pub burst: u32,
}

/// Window of one stream: what an application may leave unread before its own stream stops. Fits a bandwidth-delay
/// product of 10 Gbit/s at 3 ms.
pub const HTTP2_STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// What a peer may have in flight on one session.
pub const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Unread bytes of one session that do not take from its connection window: twelve readers may stop entirely before
/// the others feel it, and one session holds 64 MiB at most.
pub const HTTP2_UNREAD_BYTES: u32 = 48 << 20;

/// Largest frame that we take. DATA is never collected, so that a large frame costs nothing.
pub const HTTP2_FRAME_BYTES: u32 = 1 << 20;

/// Streams that a client may have open on one session.
pub const HTTP2_STREAMS: u32 = 200;

/// Streams in the table per stream that may be open: ended ones with unread bytes are kept until those are read. At
/// this factor further streams are refused.
pub const HTTP2_STREAMS_KEPT_FACTOR: usize = 2;

/// Streams that we open on one session before the peer's SETTINGS say how many it takes.
pub const HTTP2_STREAMS_ASSUMED: u32 = 100;

/// Largest header list that we take.
pub const HTTP2_HEADER_LIST_SERVER_BYTES: u32 = 64 << 10;
pub const HTTP2_HEADER_LIST_CLIENT_BYTES: u32 = 16 << 10;

/// Dynamic table that we grant the peer's encoder: the default of SETTINGS_HEADER_TABLE_SIZE.
pub const HTTP2_HEADER_TABLE_BYTES: usize = 4096;

/// CONTINUATION frames of one header block. A list of 64 KiB in pieces of 1 KiB needs 64.
pub const HTTP2_CONTINUATIONS: u32 = 128;

/// Capacity that the buffer of split header blocks keeps between blocks.
pub const HTTP2_BLOCK_BYTES_KEPT: usize = 4096;

/// Control frames that wait to be sent. A peer that makes us answer and does not read reaches it; our own requests
/// do not: `HTTP2_STREAMS` of them with 4 KiB each stay below.
pub const HTTP2_OUTPUT_BYTES: usize = 1 << 20;

/// Capacity that the queue of control frames keeps when it was emptied.
pub const HTTP2_OUTPUT_BYTES_KEPT: usize = 4096;

/// Smallest connection WINDOW_UPDATE, so that a session full of unread bytes is not credited in crumbs.
pub const HTTP2_WINDOW_UPDATE_BYTES_MIN: u32 = 16 << 10;

/// Text in a GOAWAY that we send.
pub const HTTP2_GOAWAY_TEXT_BYTES: usize = 128;

/// Our own PINGs without an answer.
pub const HTTP2_PINGS_UNANSWERED: u32 = 64;

/// Streams that the peer opened and gave up before we answered, and streams that we had to refuse (rapid reset,
/// CVE-2023-44487). Streams that were answered never count: a mesh node resets as many as its applications reset
/// connections. An honest node whose destinations hang can give up a few hundred per second; an attacker reaches
/// 10,000 with ease and is cut off after a third of a second and about 3,300 streams.
pub const HTTP2_RESETS_UNSERVED: Rate = Rate {
    per_second: 2500,
    burst: 2500,
};

/// A stream that the peer makes us reset by breaking a rule (CVE-2025-8671) counts this many times: honest peers do
/// it by a bug, never 250 times per second.
pub const HTTP2_RESET_PROVOKED_WEIGHT: u32 = 10;

/// Requests refused for the size of their header list. One with too much baggage costs only itself.
pub const HTTP2_HEADER_LISTS_TOO_LARGE: Rate = Rate {
    per_second: 10,
    burst: 100,
};

/// SETTINGS frames. Peers send one, some a few more; each may move the windows of all streams.
pub const HTTP2_SETTINGS: Rate = Rate {
    per_second: 10,
    burst: 100,
};

/// PINGs. Keepalive needs one in seconds, estimators of the bandwidth-delay product one per round trip.
pub const HTTP2_PINGS: Rate = Rate {
    per_second: 1000,
    burst: 2000,
};

/// DATA frames without payload that do not end a stream. The h2 crate and gRPC send some, never in bulk.
pub const HTTP2_DATA_EMPTY: Rate = Rate {
    per_second: 100,
    burst: 1000,
};

/// DATA frames with less payload than this are tiny: bookkeeping of the session outweighs the bytes.
pub const HTTP2_DATA_TINY_BYTES: u32 = 64;

/// Tiny frames of one session that wait for readers. They cost nothing when they are read at once, like any small
/// message, so only waiting ones count. Sixteen stopped readers, each with a window full of 64-byte messages, stay
/// below.
pub const HTTP2_DATA_TINY_HELD: u32 = 1 << 20;

/// WINDOW_UPDATE frames beyond those that our own DATA explains (`HTTP2_WINDOW_UPDATES_PER_DATA`, and one per
/// `HTTP2_WINDOW_UPDATE_DATA_BYTES`: Go credits every 4 KiB, twice).
pub const HTTP2_WINDOW_UPDATES: Rate = Rate {
    per_second: 20_000,
    burst: 40_000,
};
pub const HTTP2_WINDOW_UPDATES_PER_DATA: u32 = 2;
pub const HTTP2_WINDOW_UPDATE_DATA_BYTES: u32 = 512;
/// Bound of that allowance, so that a bulk transfer does not pay for an attack.
pub const HTTP2_WINDOW_UPDATES_EXPLAINED_MAX: u32 = 100_000;

/// Frames without effect: unknown types, PRIORITY, GOAWAY again, acknowledgements of nothing, and RST_STREAM, headers
/// and small DATA on closed streams. The last three follow honest resets that cross on the wire.
pub const HTTP2_FRAMES_IDLE: Rate = Rate {
    per_second: 20_000,
    burst: 40_000,
};

const _: () = assert!(HTTP2_STREAM_WINDOW_BYTES < HTTP2_CONNECTION_WINDOW_BYTES);
const _: () = assert!(HTTP2_CONNECTION_WINDOW_BYTES < 1 << 31);
const _: () = assert!(HTTP2_FRAME_BYTES >= 1 << 14 && HTTP2_FRAME_BYTES < 1 << 24);
// A stream has to be able to take a frame of the offered size, or peers would have to split for the window.
const _: () = assert!(HTTP2_FRAME_BYTES <= HTTP2_STREAM_WINDOW_BYTES);
// One honest reader that stopped must not be felt by anybody.
const _: () = assert!(HTTP2_UNREAD_BYTES >= 4 * HTTP2_STREAM_WINDOW_BYTES);
const _: () = assert!(HTTP2_OUTPUT_BYTES >= HTTP2_STREAMS as usize * 4096);
// A block in the smallest frames that peers use must pass.
const _: () = assert!(HTTP2_CONTINUATIONS as usize * 1024 >= HTTP2_HEADER_LIST_SERVER_BYTES as usize);
const _: () = assert!(HTTP2_HEADER_LIST_CLIENT_BYTES <= HTTP2_HEADER_LIST_SERVER_BYTES);
// 2,000 resets per second are ordinary, 10,000 are an attack.
const _: () = assert!(HTTP2_RESETS_UNSERVED.per_second > 2000 && HTTP2_RESETS_UNSERVED.per_second < 10_000);
const _: () = assert!(HTTP2_RESETS_UNSERVED.burst > 2 * HTTP2_STREAMS);

/// Entries of a ring's submission queue; the completion queue has four times as many. More operations than this
/// can be started in one turn at the price of a further system call.
pub const RING_ENTRIES: u32 = 1024;

/// What a ring is made with when the kernel has no memory for `RING_ENTRIES`.
pub const RING_ENTRIES_MIN: u32 = 128;

const _: () = assert!(RING_ENTRIES_MIN < RING_ENTRIES);
const _: () = assert!(EVENTS_TURN_MAX <= 4 * RING_ENTRIES as usize);

// Section `worker`.

/// Bytes of streams that are over, which a worker keeps for applications that have not read them yet. Beyond it the
/// newest are cut off, those of whoever left the most first (`part_max`).
pub const REMAINS_BYTES_MAX: usize = 64 << 20;

/// Plaintext that is opened into one piece of memory: a whole receive and then some.
pub const CHUNK_BYTES: usize = 320 * 1024;
/// Full chunks kept for the next turn. The hot set of a bulk transfer is two or three; a reader that pauses makes it
/// a stream's window, and freeing that each time would cost page faults.
pub const CHUNKS_SPARE_MAX: usize = 16;
/// Retired chunks looked at in one turn to find free ones.
pub const CHUNKS_RECLAIM_SCAN_MAX: usize = 8;
/// From so many chunks on that slow applications pin, small slices are copied out of them.
pub const CHUNKS_PINNED_SOFT: usize = 64;
/// Slices below this are copied out of a chunk when their application is blocked.
pub const SLICE_COPY_BYTES: usize = 2048;
/// Slices below this are copied behind as many pieces as one send takes: an entry of a list takes 24 bytes.
pub const SLICE_TINY_BYTES: usize = 192;
/// The largest piece of memory in which copies for one application are collected.
pub const COPIES_BYTES_MAX: usize = 64 * 1024;
/// Lists of slices that a worker keeps for the next sends.
pub const LISTS_SPARE_MAX: usize = 1024;
/// Longer lists are freed after use. A window full of records has less slices.
pub const LIST_SLICES_KEPT_MAX: usize = 1024;
/// Memory for parts of records that a worker keeps.
pub const PARTIALS_SPARE_MAX: usize = 64;

/// A send buffer at first: one receive sealed, with headers.
pub const OUTPUT_BYTES: usize = 288 * 1024;
/// Larger ones are freed after use.
pub const OUTPUT_BYTES_KEPT_MAX: usize = 2 * 1024 * 1024;
/// Idle send buffers kept by a worker.
pub const OUTPUTS_SPARE_MAX: usize = 8;
/// Above this, applications of the session are not read until a send has completed.
pub const OUTPUT_SOFT_BYTES: usize = 512 * 1024;
/// What the sessions of one source on one worker may have unsent together before each takes from its applications only
/// when it holds nothing itself: the smallest receive of each of its streams then. An honest peer reads whatever its
/// applications do, so that what it leaves to the kernel, up to megabytes for each session, keeps it as fast as it reads.
pub const SOURCE_UNSENT_BYTES_SOFT: usize = 64 << 20;
/// Beyond it a session with more answers than `SOURCE_ANSWERS_BYTES` that its peer made us give and does not read is
/// ended (RFC 9113 section 10.5). Streams of applications alone come to it with 12,000 that all wait at once, and are
/// left alone: each holds what a plain connection would.
pub const SOURCE_UNSENT_BYTES_MAX: usize = 256 << 20;
/// Window for each of `HTTP2_STREAMS`, and answers to as many requests with ordinary baggage.
pub const SOURCE_ANSWERS_BYTES: usize = 32 * 1024;
/// How often the log says that a source holds much.
pub const SOURCE_WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// A send buffer where memory is short: what one small receive becomes.
pub const OUTPUT_SMALL_BYTES: usize = 20 * 1024;
/// Frames below this share a record with others of the turn.
pub const SMALL_FRAME_BYTES: usize = 4096;

/// What the first receive of a connection asks for; grows to `RECEIVE_BYTES_MAX` while it is filled.
pub const READ_BYTES_MIN: usize = 16 * 1024;
/// What the armed receives of one session may deliver together beyond `READ_BYTES_MIN` each.
pub const ARMED_BYTES_MAX: usize = 1024 * 1024;

/// Woken tasks run in one turn until this time has passed, looked at after each batch.
pub const TASKS_TURN_TIME: Duration = Duration::from_millis(2);
pub const TASKS_BATCH: usize = 8;
/// A turn of that cost is long: some 0.1 ms. Costs are counted in bytes relayed: some 0.4 ns each.
pub const LONG_TURN_COST: i64 = 256 << 10;
/// So long a worker may be crowded after a long turn (`worker/tenants/crowd.rs`).
pub const CROWDED_TURNS: u64 = 1024;
/// What tenants did is compared after so many turns, or after those of that cost.
pub const STRETCH_TURNS: u64 = 64;
pub const STRETCH_COST: i64 = 16 << 20;
/// Somebody has little to do who uses no more than this part of what the busiest tenant uses in a stretch, and is taken
/// for such for so many turns.
pub const MODEST_PART: i64 = 4;
pub const MODEST_TURNS: u64 = 4096;
/// What is done for a connection, or a stream, until its relay starts; and for a handshake beside that.
pub const SETUP_COST: i64 = 128 << 10;
pub const HANDSHAKE_COST: i64 = 512 << 10;
/// What one tenant may use of a crowded turn, give or take the last thing that it does: some 50 us.
pub const TENANT_TURN_COST: i64 = 128 << 10;
/// When so much was taken out of the queues of tenants, no further one has its part of the turn.
pub const TURN_COST: i64 = TENANT_TURN_COST;
/// An event with nothing to relay.
pub const EVENT_COST: i64 = 2 << 10;
/// What a crowded turn receives, or opens, at a time.
pub const CROWDED_READ_BYTES: usize = 64 * 1024;

/// What one receive of such a turn, or of another one, brings at most.
#[inline]
pub const fn receive_bytes_max(crowded: bool) -> usize {
    match crowded {
        true => CROWDED_READ_BYTES,
        false => RECEIVE_BYTES_MAX,
    }
}

/// How much bulk such a turn, or another one, has room for behind everything else.
#[inline]
pub const fn bulk_bytes_max(crowded: bool) -> usize {
    match crowded {
        true => CROWDED_READ_BYTES,
        false => usize::MAX,
    }
}

/// `OUTPUT_SOFT_BYTES` of a crowded turn, and what an application gets at a time: what one send keeps the worker busy
/// with. An application that did not read for a while would get 4 MiB, in 0.7 ms.
pub const CROWDED_OUTPUT_BYTES: usize = 128 * 1024;
/// A send to an application, beside its bytes; and the end of its connection, with what is given back then: some 20 us.
pub const SEND_COST: i64 = 4 << 10;
pub const END_COST: i64 = 40 << 10;
/// What a tenant's applications get in a crowded turn, give or take the last one.
pub const TENANT_SENDS_COST: i64 = 512 << 10;
/// So many tunnels that had to wait for another turn are looked at in a crowded one.
pub const RESUMED_TURN_MAX: usize = 64;
/// `TASKS_TURN_TIME` of a crowded turn, looked at after each task.
pub const CROWDED_TASKS_TURN_TIME: Duration = Duration::from_micros(100);
/// Connections of one tenant that were accepted and whose journeys did not begin. The newest are closed.
pub const TENANT_UNBEGUN_MAX: usize = 8192;
/// Sources that have no session any more and are still remembered, beside as many as have some.
pub const TENANTS_GONE_MAX: usize = 1024;
/// A turn that took as long is looked at: whether the worker was busy, or the scheduler ran somebody else.
pub const TURN_LONG: Duration = Duration::from_micros(250);
/// What a worker tells the scheduler that it needs at a time: the least that Linux takes. The default, 1 to 3
/// ms, is that of the control thread, so that a worker that wakes goes before it.
pub const WORKER_SLICE: Duration = Duration::from_micros(100);
/// Levels of nice by which the control thread stands back behind the workers: where they are busy all the time, it has
/// a quarter of a CPU left (335 parts to 1024, sched_prio_to_weight). With 10 it would be a tenth, and 200 pods would
/// wait 2.9 s for their certificates there instead of 0.8.
pub const CONTROL_NICE: u8 = 5;
/// HBONE sessions that the peers of one pod may have on one worker: 4,096 peers, or fewer with several each.
pub const SESSIONS_POD_MAX: usize = 4096;
/// A connection waits so long for its pod's certificate.
pub const CERTIFICATE_WAIT: Duration = Duration::from_secs(10);
/// Sessions compared with new lists of revoked certificates before other tasks get their turn. Each costs a look-up
/// for each certificate of its chain and list of its issuer.
pub const REVOCATION_SESSIONS_AT_ONCE: usize = 256;
/// Connections of one worker, those being set up included.
pub const CONNECTIONS_WORKER_MAX: usize = 500_000;

/// Of something of which there are so many for all tenants: one that has as many as this gets no further one while so
/// many are free. One that is alone leaves an eighth for others. Falls with the square of what is free: of n tenants
/// that take what they get, one after the other, all leave some n-th part of that eighth; with a bound in proportion to
/// what is free it would be 1 of 8^n, and with equal parts of the whole nothing.
pub const fn part_max(all: usize, free: usize) -> usize {
    let left = if all < 8 { 1 } else { all / 8 };
    let most = (all - left) as u128 * (free as u128 * free as u128) / (left as u128 * left as u128);
    // Who has none gets one as long as there is any.
    match most {
        0 => 1,
        most if most > all as u128 => all,
        most => most as usize,
    }
}

/// Whether one that has so much of something of which so much is taken gets more.
pub const fn has_part(all: usize, taken: usize, own: usize) -> bool {
    taken < all && own < part_max(all, all - taken)
}

/// Of the files that the process may have open, so many are not for connections: the control plane's, those of pods'
/// namespaces, of probes and scrapes, and what is accepted before workers have told each other what they have.
pub const FILES_KEPT_MAX: usize = 2048;

/// The others. Further ones than could ever be used are not counted.
pub const fn files_for_connections(allowed: u64) -> usize {
    const USED_MAX: u64 = (2 * CONNECTIONS_WORKER_MAX * WORKERS_MAX) as u64;
    let allowed = if allowed > USED_MAX { USED_MAX } else { allowed } as usize;
    let kept = allowed / 8;
    allowed
        - if kept > FILES_KEPT_MAX {
            FILES_KEPT_MAX
        } else {
            kept
        }
}

/// How often the log says that a tenant gets no further connections.
pub const ROOM_WARNING_INTERVAL: Duration = Duration::from_secs(60);

const _: () = assert!(part_max(4000, 500) == 3500 && part_max(4000, 499) < 3500);
const _: () = assert!(part_max(4000, 501) > 3500 && part_max(4000, 4000) == 4000 && part_max(1, 1) == 1);
/// TLS handshakes that the peers of one pod have under way on one worker.
pub const HANDSHAKES_POD_MAX: usize = 256;
/// The part of them that one source address may have: half-open handshakes of one peer must not keep all others
/// from the pod for `HANDSHAKE_TIMEOUT`. A gateway has one per destination and thread.
pub const HANDSHAKES_SOURCE_MAX: usize = 64;
/// Connections of one pod that are being set up on one worker.
pub const SETUPS_POD_MAX: usize = 8192;

/// Contract: data-plane.md section 3.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Upstream has no deadline here, so that a silent peer holds a connection for ever.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The peer connects to its application, which has `CONNECT_TIMEOUT`, before it answers.
pub const CONNECT_ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Contract: data-plane.md section 5.
pub const OWN_WORKLOAD_WAIT: Duration = Duration::from_secs(5);
/// Contract: configuration.md section 2.4.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A session on which its peer never opened a stream.
pub const SILENT_SESSION: Duration = Duration::from_secs(30);
/// How long a closing session may take to send its last bytes.
pub const SESSION_GOODBYE: Duration = Duration::from_secs(1);
/// How long what one side of a connection said before it broke may take to reach the other, which is reset then.
pub const LAST_WORDS_TIME: Duration = Duration::from_secs(5);
/// How long one whose streams all ended well may take, and then wait for its peer's end: as long as a peer may leave
/// a PING unanswered.
pub const SESSION_LINGER: Duration = PING_TIMEOUT;
/// A failed dial answers for others to the same destination for so long, give or take a quarter.
pub const DIAL_FAILURE_KEPT: Duration = Duration::from_millis(200);
/// How long connections that have a choice avoid an endpoint in trouble before one of them tries it again, give or take
/// a quarter: at first, and after it was found so again and again.
pub const AVOIDED_MIN: Duration = Duration::from_millis(500);
pub const AVOIDED_MAX: Duration = Duration::from_secs(5);
/// Endpoints called without a tunnel that one worker remembers as in trouble, for each pod that calls them.
pub const TROUBLES_PLAIN_MAX: usize = 4096;
/// An endpoint may take so long for connecting, handshake and CONNECT together before another one is tried, if there is
/// one: more than one lost SYN costs (RFC 6298: a second), and ordinary round trips across continents.
pub const ENDPOINT_PATIENCE: Duration = Duration::from_millis(1500);
/// How long one connection waits for a session with room for it: a dial of its own takes less.
pub const SESSION_WAIT: Duration = Duration::from_secs(30);
/// Dials that one connection is told of: each time others may have taken the room before it.
pub const POOL_ROUNDS_MAX: usize = 64;
/// How often a stream that the peer refused unprocessed is asked for again.
pub const REFUSED_RETRIES_MAX: usize = 2;
/// Endpoints of a service, or workloads that have an address one after the other, that one connection tries before it
/// fails.
pub const ENDPOINT_TRIES_MAX: usize = 3;
/// Choices that are made for an endpoint that was not tried yet: with three endpoints of which two were, one of 400,000
/// searches is in vain.
pub const ENDPOINT_DRAWS_MAX: usize = 32;

// A stranger that says nothing is ended for that, before it owes us the answer to a PING.
const _: () = assert!(SILENT_SESSION.as_secs() <= PING_INTERVAL.as_secs() + PING_TIMEOUT.as_secs());
const _: () = assert!(HANDSHAKES_SOURCE_MAX * 4 <= HANDSHAKES_POD_MAX);
const _: () = assert!(REMAINS_BYTES_MAX >= HTTP2_STREAM_WINDOW_BYTES as usize);
const _: () = assert!(CHUNK_BYTES >= RECEIVE_BYTES_MAX);
const _: () = assert!(COPIES_BYTES_MAX >= CHUNK_BYTES / 8);
const _: () = assert!(CHUNKS_SPARE_MAX * CHUNK_BYTES >= HTTP2_STREAM_WINDOW_BYTES as usize + CHUNK_BYTES);
const _: () = assert!(LIST_SLICES_KEPT_MAX * 16_375 >= HTTP2_STREAM_WINDOW_BYTES as usize);
const _: () = assert!(OUTPUT_BYTES >= RECEIVE_BYTES_MAX + RECEIVE_BYTES_MAX / 16384 * 64);
const _: () = assert!(OUTPUT_SOFT_BYTES >= RECEIVE_BYTES_MAX);
// A send buffer for each session that may be there, of the smallest kind, is far below the bound for all of them.
const _: () = assert!(SESSIONS_POD_MAX * OUTPUT_SMALL_BYTES < SOURCE_UNSENT_BYTES_MAX);
const _: () = assert!(SOURCE_UNSENT_BYTES_SOFT >= 16 * 2 * OUTPUT_SOFT_BYTES);
const _: () = assert!(
    SOURCE_ANSWERS_BYTES >= HTTP2_STREAMS as usize * (13 + 128) && SOURCE_ANSWERS_BYTES < HTTP2_OUTPUT_BYTES
);
const _: () = assert!(OUTPUT_SMALL_BYTES > READ_BYTES_MIN);
const _: () = assert!(READ_BYTES_MIN <= RECEIVE_BYTES_MAX && ARMED_BYTES_MAX >= RECEIVE_BYTES_MAX);
const _: () = assert!(CONNECT_ANSWER_TIMEOUT.as_secs() > CONNECT_TIMEOUT.as_secs());
const _: () = assert!(
    SESSION_WAIT.as_secs()
        >= CERTIFICATE_WAIT.as_secs() + CONNECT_TIMEOUT.as_secs() + HANDSHAKE_TIMEOUT.as_secs()
);
const _: () = assert!(DIAL_FAILURE_KEPT.as_millis() < AVOIDED_MIN.as_millis());

/// What one session may make a worker hold, unread bytes of its streams aside: two send buffers (one is with the kernel
/// while the other fills up) with control frames, a header block and what it says, its table, a part of a record.
pub const SESSION_BYTES_MAX: usize = 2 * (OUTPUT_SOFT_BYTES + RECEIVE_BYTES_MAX + HTTP2_OUTPUT_BYTES)
    + 2 * HTTP2_HEADER_LIST_SERVER_BYTES as usize
    + HTTP2_HEADER_TABLE_BYTES
    + RECEIVE_SMALL_BYTES;
/// What an application that stopped reading may make a worker hold: a window of bytes, in pieces that pin little more
/// than twice as much (`worker/backlog.rs`).
pub const STREAM_BYTES_MAX: usize = 2 * HTTP2_STREAM_WINDOW_BYTES as usize + COPIES_BYTES_MAX;

/// Connections that wait in the kernel to be accepted from one pod listener.
pub const LISTEN_BACKLOG: u32 = 1024;

/// Headers of vectored sends (1.1 KiB each) that a worker keeps for the next sends.
pub const SEND_FRAMES_SPARE_MAX: usize = 1024;
