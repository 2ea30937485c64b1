//! Bounds of the control thread: what its clients, its servers and the log hold and wait for.

use super::*;

/// A ZDS packet: the node agent's receive buffer, and ours. A longer one is refused as truncated.
pub const ZDS_PACKET_BYTES_MAX: usize = 1024;

/// Text of a refusal inside a ZDS packet.
pub const ZDS_NACK_TEXT_BYTES_MAX: usize = 960;

// Two nested messages: a tag and a length of two bytes each.
const _: () = assert!(ZDS_NACK_TEXT_BYTES_MAX + 6 <= ZDS_PACKET_BYTES_MAX);

/// Lines that wait for the log thread; more are dropped and counted. Upstream's buffer has as many.
pub const LOG_LINES_QUEUED_MAX: usize = 10_000;

/// The same for lines of connections: pods make as many as they like, and what the proxy says of itself, such as why its
/// certificates are not renewed, still has room.
pub const LOG_ACCESS_LINES_QUEUED_MAX: usize = LOG_LINES_QUEUED_MAX / 10 * 9;

/// Records that a worker hands over together, and that are dropped together: a drain may end more connections in one turn
/// than the queue has room for.
pub const LOG_BATCH_LINES_MAX: usize = 256;

/// How long the log thread gathers lines after it has written some.
pub const LOG_GATHER_TIME: Duration = Duration::from_millis(5);

/// Bytes of formatted log text that go out by one write at most, give or take one line.
pub const LOG_WRITE_BYTES_MAX: usize = 256 * 1024;

/// Connections that the readiness server serves at a time.
pub const READINESS_CONNECTIONS_MAX: usize = 64;
/// A connection to the readiness or metrics server is cut after this time: the answers are small, and anybody may ask.
pub const PROBE_CONNECTION_TIME_MAX: Duration = Duration::from_secs(60);
/// One that takes nothing of its answer for so long gives its place to another.
pub const PROBE_UNREAD_TIME_MAX: Duration = Duration::from_secs(5);
/// Connections that the admin server serves at a time on one address, and how long one may take: the dump of a large
/// mesh, through a port-forward.
pub const ADMIN_CONNECTIONS_MAX: usize = 16;
pub const ADMIN_CONNECTION_TIME_MAX: Duration = Duration::from_secs(600);

/// Scrapes that are served at a time.
pub const METRICS_CONNECTIONS_MAX: usize = 64;

/// Dumps that are written at a time, each by a thread of its own; others wait for their turn.
pub const DUMPS_MAX: usize = 2;
/// A dump travels in pieces of about this size, of which so many may wait for the client.
pub const DUMP_CHUNK_BYTES: usize = 64 * 1024;
pub const DUMP_CHUNKS_QUEUED_MAX: usize = 4;
/// A client that takes nothing of its dump for so long is given up.
pub const DUMP_STALL_MAX: Duration = Duration::from_secs(30);

/// Dumps that ask for the certificates at the same time.
pub const INSPECTIONS_QUEUED_MAX: usize = 4;

/// Clauses of the log filter that may be added at run time.
pub const LOG_CLAUSES_MAX: usize = 256;

/// How long and how large the head of a request to one of our own HTTP servers may be.
pub const HTTP_HEADER_TIMEOUT: Duration = Duration::from_secs(2);
pub const HTTP_HEADER_BYTES_MAX: usize = 8192;
/// For how long a client of theirs may be silent before its place is another's: longer than a request that is there is
/// looked at.
pub const HTTP_SILENT_TIME_MAX: Duration = Duration::from_millis(100);

/// Pause of an accept loop of the control thread after an error of `accept`.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Certificate requests under way at a time.
pub const CERTIFICATE_REQUESTS_MAX: usize = 8;
/// What one of them may take, connecting included. Upstream has no deadline here.
pub const CERTIFICATE_REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Renewals because of handshakes that failed for want of trust: one in this time, whoever causes them.
pub const CERTIFICATE_DOUBT_INTERVAL: Duration = Duration::from_secs(1);
/// So many of them are planned at a time. What is doubted beyond that is renewed when it would have been anyway.
pub const CERTIFICATE_DOUBTS_MAX: usize = 1000;
/// Not before the certificate has this age, or a tenth of its life if that is less.
pub const CERTIFICATE_DOUBT_AGE: Duration = Duration::from_secs(300);
/// And up to this part of that age later, by chance.
pub const CERTIFICATE_DOUBT_SPREAD: f64 = 0.1;
/// Between the attempts of one request whose connection breaks or cannot be made, a fifth more or less by chance.
/// Upstream makes one attempt, and fails whoever waits for a first certificate.
pub const CA_PAUSES: [Duration; 2] = [Duration::ZERO, Duration::from_millis(500)];
/// Only if connecting failed sooner than this.
pub const CA_CONNECTING_SOON: Duration = Duration::from_secs(1);
/// Contract: wire.md section 6.
pub const CA_ANSWER_BYTES_MAX: usize = 4 << 20;
/// A connection to the CA serves requests for so long, if another can be made then: the time for which roots that were
/// replaced on disk are still believed.
pub const CA_CONNECTION_AGE_MAX: Duration = Duration::from_secs(60);

/// How often the file of revoked certificates is looked at. A change is read once it was the same twice: within two
/// seconds, as long as upstream waits (contract: control-plane.md section 3.4).
pub const REVOCATION_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// 100,000 certificates take 4 MiB as DER and a third more as PEM.
pub const REVOCATION_FILE_BYTES_MAX: u64 = 64 << 20;

/// A wait for a point of wall-clock time is cut into pieces of this length, so that a set clock is noticed.
pub const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Pods whose listeners could not be made are tried again after this time.
pub const ZDS_RETRY_DELAY: Duration = Duration::from_secs(5);

/// How long control waits for the workers after the drain deadline, at which they cut what is left.
pub const DRAIN_GRACE: Duration = Duration::from_secs(1);

// istiod, and whom it names.

/// Contract: control-plane.md section 1.1.
pub const CONTROL_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// TLS and the first HTTP/2 frames. Upstream has no deadline here.
pub const CONTROL_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses of one host name that one attempt tries.
pub const CONTROL_ADDRESSES_MAX: usize = 4;
/// Contract: control-plane.md section 1.1.
pub const CONTROL_PING_INTERVAL: Duration = Duration::from_secs(30);
pub const CONTROL_PING_TIMEOUT: Duration = Duration::from_secs(10);

// Where one address swallows packets, that must be known before the time of a certificate request is used up, and
// before a connection gives up waiting for the certificate.
const _: () = assert!(CERTIFICATE_REQUEST_TIMEOUT.as_secs() > CONTROL_CONNECT_TIMEOUT.as_secs());
const _: () = assert!(CERTIFICATE_WAIT.as_secs() > CONTROL_CONNECT_TIMEOUT.as_secs());
const _: () = assert!(CA_CONNECTING_SOON.as_secs() < CONTROL_CONNECT_TIMEOUT.as_secs());
const _: () = assert!(CERTIFICATE_REQUEST_TIMEOUT.as_secs() > CERTIFICATE_WAIT.as_secs());

/// What a server of the control plane may send before it is looked at: much more than a round trip's worth, little
/// enough that it is still in the cache when its turn comes.
pub const CONTROL_WINDOW_BYTES: u32 = 512 << 10;

/// What one read of a connection to the control plane takes at most: some TLS records.
pub const CONTROL_READ_BYTES: usize = 64 << 10;
/// While a connection is not read from, so much may wait in its socket before the thread wakes: no more than its window.
pub const CONTROL_MUTED_BYTES: usize = CONTROL_WINDOW_BYTES as usize / 2;

/// What a gRPC server takes in one message unless it is told otherwise.
pub const GRPC_MESSAGE_BYTES_DEFAULT: usize = 4 << 20;
/// Our first request of a stream, with the list of what is held.
pub const XDS_REQUEST_BYTES_MAX: usize = GRPC_MESSAGE_BYTES_DEFAULT - (64 << 10);
/// Lists above this are warned of.
pub const XDS_REQUEST_BYTES_WARN: usize = GRPC_MESSAGE_BYTES_DEFAULT / 4 * 3;
/// Contract: wire.md section 6.
pub const XDS_RESPONSE_BYTES_MAX: usize = 200 << 20;
/// Resources, removed names and what else a response has: forty times as many as the largest mesh that is measured.
/// An empty resource has two bytes on the wire, and some fifty here.
pub const XDS_RESPONSE_FIELDS_MAX: usize = 4 << 20;
/// With more resources and removed names than these a response is large.
pub const XDS_LARGE_RESPONSE: usize = 512;
/// From a large response until what it took is given back: workers have let go of the snapshots before it.
pub const XDS_GIVE_BACK_DELAY: Duration = Duration::from_secs(1);
/// Text of a refusal. A server logs it.
pub const XDS_NACK_TEXT_BYTES_MAX: usize = 64 << 10;
/// Requests that wait to be sent: one for each response, and those of a while are sent together.
pub const XDS_REQUESTS_QUEUED_MAX: usize = 64;
/// Contract: control-plane.md section 1.9.
pub const XDS_DELAY_MIN: Duration = Duration::from_millis(10);
pub const XDS_DELAY_MAX: Duration = Duration::from_secs(15);
/// While nobody answers and nothing is known yet: ready within a second of the server's return. The delay is up to a
/// fifth longer, and the rest is for handshakes, the state of the mesh and the node agent on a busy node.
pub const XDS_DELAY_STARTING_MAX: Duration = Duration::from_millis(500);
/// A stream that lived so long and brought something did not fail.
pub const XDS_STREAM_SETTLED: Duration = Duration::from_secs(1);
/// From the first response of a stream on, a server has so long to send what it had not been told that we hold.
pub const XDS_SWEEP_DELAY: Duration = Duration::from_secs(30);
/// The same failure is a warning once in this time.
pub const XDS_WARNING_INTERVAL: Duration = Duration::from_secs(10);
/// Long work of the control thread gives way to its other work, and to workers on its CPU, so often. A message that
/// crosses two proxies of one CPU may have to wait for as long four times. Measured beside 0.4 ms, it costs the control
/// thread 1 to 2 % more CPU, whether a large mesh is loaded or changes all the time.
pub const XDS_SLICE_TIME: Duration = Duration::from_micros(100);
/// Resources decoded, applied or written down as held before a look at the time: some 10 us each, where no cache holds
/// what they touch. What they touch is read ahead for all of a slice, side by side.
pub const XDS_SLICE: usize = 8;
/// Buffers that decoding keeps for the next resource, and how large each may be: it needs two, of some hundred bytes.
pub const XDS_SPARE_MAX: usize = 2;
pub const XDS_SPARE_BYTES_MAX: usize = 64 << 10;
/// Services of which another version is made in one go, and what that touches read ahead, with some twenty endpoints
/// each.
pub const XDS_SERVICES_SLICE: usize = 4;
/// Exchanges between two snapshots that are repeated in the table that the one before had, instead of sharing what did
/// not change. What they replaced is kept until then.
pub const EXCHANGES_REPEATED_MAX: usize = 1024;
/// Lists of services of which is remembered where those are: some 300 bytes each.
pub const MEMBERSHIPS_REMEMBERED_MAX: usize = 16_384;
/// Endpoints of a service whose tables a worker may build, the first time that somebody calls it: 9 to 18 us,
/// measured. Those of larger ones are always there.
pub const BALANCE_LAZY_ENDPOINTS_MAX: usize = 64;
/// Replaced snapshots that the control thread keeps until no worker looks at them any more.
pub const SNAPSHOTS_RETIRED_MAX: usize = 64;
/// Changes that keep coming are gathered for so long, and published at once after a pause: each snapshot costs what is
/// common to all changes in it. Istiod itself gathers for as long (`PILOT_DEBOUNCE_AFTER`), so that its pushes wait no
/// longer.
pub const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(100);
/// If somebody waits for them, or policies or workloads of this node are among them.
pub const SNAPSHOT_INTERVAL_URGENT: Duration = Duration::from_millis(10);
/// For so long, responses that came meanwhile are applied before what is due is published.
pub const XDS_GATHERING_MAX: Duration = Duration::from_millis(10);
/// Workers are woken no more often because addresses changed hands, and for nothing else.
pub const ADDRESSES_TOLD_INTERVAL: Duration = Duration::from_millis(250);
/// Warnings about the contents of one response that are logged one by one.
pub const XDS_WARNINGS_MAX: usize = 20;

/// A connection waits so long for what the control plane says about its destination (`XDS_ON_DEMAND`). Upstream waits
/// for ever.
pub const LOOKUP_WAIT: Duration = Duration::from_secs(5);
/// The control thread is told again that somebody asks after so long: those who came first give up earlier.
pub const LOOKUP_TOLD_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// What one connection asks for: its destination, and the waypoints in front of it.
pub const LOOKUPS_CONNECTION_MAX: usize = 4;
/// Connections of one pod that wait for it on one worker.
pub const LOOKUPS_POD_MAX: usize = 256;
/// Questions of one worker that are not answered.
pub const LOOKUPS_WORKER_MAX: usize = 4096;
/// Questions of all workers that are not answered.
pub const LOOKUPS_MAX: usize = 8192;
/// When a question that nobody answered is given up, and may be asked again.
pub const LOOKUP_FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// An address that is nobody's counts as that for so long, while there is a stream: the destinations outside of the
/// mesh are asked for again after it.
pub const LOOKUP_ABSENT_KEPT: Duration = Duration::from_secs(5);
/// Names remembered as nobody's. Beyond them they are asked for each time.
pub const LOOKUPS_ABSENT_MAX: usize = 16_384;
/// Names that were unsubscribed from, and whose answer may be on its way all the same.
pub const LOOKUPS_LEFT_MAX: usize = 8192;
/// Names in one request: far below what a server takes in one message.
pub const LOOKUPS_REQUEST_MAX: usize = 1024;

/// Host names looked up at a time, for all workers. No pod has more than its part of them (`has_part`).
pub const RESOLUTIONS_MAX: usize = 64;
/// One of them: its reason is told before those who wait give up.
pub const RESOLUTION_TIMEOUT: Duration = Duration::from_secs(4);
/// Of that, for one question to one name server, which is then asked again or another one.
pub const NAME_SERVER_TIMEOUT: Duration = Duration::from_millis(1500);
pub const NAME_SERVER_RETRIES: usize = 1;
/// Answers of name servers that are kept for their time to live. Contract: dns.md section 10.
pub const RESOLUTIONS_KEPT_MAX: u64 = 4096;
/// That there is none is believed for no longer: whoever creates a name must not wait for an hour.
pub const RESOLUTION_ABSENT_KEPT_MAX: Duration = Duration::from_secs(30);
/// Addresses of one name that are chosen from.
pub const RESOLVED_ADDRESSES_MAX: usize = 64;

const _: () = assert!(RESOLUTION_TIMEOUT.as_secs() < LOOKUP_WAIT.as_secs());
const _: () = assert!(
    NAME_SERVER_TIMEOUT.as_millis() * (1 + NAME_SERVER_RETRIES as u128) < RESOLUTION_TIMEOUT.as_millis()
);
const _: () = assert!(LOOKUP_FORGOTTEN_AFTER.as_secs() > LOOKUP_WAIT.as_secs());
const _: () = assert!(LOOKUP_TOLD_AGAIN_AFTER.as_secs() < LOOKUP_WAIT.as_secs());
const _: () = assert!(LOOKUPS_POD_MAX < LOOKUPS_WORKER_MAX && LOOKUPS_POD_MAX < SETUPS_POD_MAX);
// With the longest names that DNS has.
const _: () = assert!(LOOKUPS_REQUEST_MAX * 512 < XDS_REQUEST_BYTES_MAX);
const _: () = assert!(XDS_REQUEST_BYTES_WARN < XDS_REQUEST_BYTES_MAX);
const _: () = assert!(XDS_NACK_TEXT_BYTES_MAX * 2 < XDS_REQUEST_BYTES_MAX);
const _: () = assert!(SNAPSHOT_INTERVAL_URGENT.as_millis() <= SNAPSHOT_INTERVAL.as_millis());
// With a fifth of jitter.
const _: () = assert!(XDS_DELAY_STARTING_MAX.as_millis() * 6 / 5 <= 600);
const _: () = assert!(XDS_REQUESTS_QUEUED_MAX >= 2, "the two first requests of a stream");
