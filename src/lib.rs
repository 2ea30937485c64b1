//! uztunnel: the node proxy of an Istio ambient mesh, on io_uring and thread per core.
//!
//! One page on how it works is docs/ARCHITECTURE.md; `tests/tidy.rs` holds the table of layers. Each type has one
//! owner, everybody else an id or a borrow:
//!
//! | type | thread | made by | ends |
//! |---|---|---|---|
//! | `config::Config` | control | `Config::from_env`, at start | with the process |
//! | `mesh::Builder` | control | `process::boot`, at start | when the first snapshot is built: state from a file does not change |
//! | `mesh::Snapshot` | shared, immutable | `Builder::build` | on the control thread, which keeps a replaced one until no worker looks at it |
//! | `mesh::Interner` | control | with the builder | with it; an entry when nobody uses it any more and others come |
//! | `control::xds::response::Arriving`, `Response` | control | `control::xds`, with the first bytes of a response | complete; when its resources are applied, or its stream ends |
//! | `bridge::SnapshotCell` | shared | `process::boot` | with the process; control writes, workers read |
//! | `bridge::Revocations`, `tls::RevocationLists` | shared; lists are immutable | `process::boot`; `control::revocation` when the file changed | with the process; when the last who loaded them lets go |
//! | `bridge::LoadTable` (with the histograms of turns), `LoadShare` | shared; a share belongs to one connection | `process::boot`; `worker::listen` when it decides | the share when its connection has ended |
//! | `bridge::Traffic`, its `Shard`s | shared; a shard is one worker's | `control::metrics`, at start | with the process |
//! | `bridge::traffic::Series` | written by one worker, read by scrapes | `worker::telemetry`, for each kind of connection | never: counters must not go back |
//! | `bridge::LogSink`, `LogQueue` | every thread; the log thread | `process::logging::start` | the queue when all sinks are gone |
//! | `control::xds::on_demand::OnDemand` | control | `control::xds`, with `XDS_ON_DEMAND` | with the process; a question when it is answered or given up |
//! | `worker::lookups::Lookups` | worker | `Core::new` | with `Core`; a question with its answer |
//! | `control::resolver::NameServers` | control | `process::boot` | with the process; its cache with it |
//! | `control::zds::Client`, `Protocol` | control | `process::boot` | when the drain begins; pods go on |
//! | `control::pods::WorkerPods` | control | `process::boot` | with the ZDS client |
//! | `control::certificates::Certificates` | control | `control::demands::serve` | when all workers have ended; an entry with the last pod of its identity |
//! | `control::ca::Ca`, its connection | control | `process::boot`; a connection when one is needed | with the process; a connection when it breaks or is a minute old |
//! | `tls::csr::CertificateRequest` | control | `control::ca`, one for each request | becomes a `CertifiedIdentity`, or is dropped with its key |
//! | `control::http::Server` (readiness, admin, metrics) | control | `process::boot` | with the process |
//! | `control::admin::dump::Dump` | a thread of its own | `control::admin`, one for each request | when it is written, or its client has gone |
//! | `control::roster::Roster`, `control::metrics::Metrics` | shared; written by the loops of control | `process::boot` | with the process |
//! | `tls::CertifiedIdentity` | shared, immutable | control, by an `Authority` | when cache, sessions and handshakes have let go |
//! | `sys::netns::Namespace` | shared, immutable | the ZDS client, from a descriptor | when the pod's last holder lets go |
//! | `bridge::Pod` | shared, immutable | `WorkerPods::start` | likewise |
//! | `worker::turn::Worker` | worker | `worker::start`, on its thread | when its drain is over |
//! | `worker::core::Core` | worker | with its `Worker` | with it |
//! | `sys::uring::UringDriver`, `sys::epoll::EpollDriver` | worker | its thread | with `Core`; cancels and drains first |
//! | `sys::descriptor::Descriptor` | one owner at a time | a listener's accept; the control thread, for listeners | adopted by a driver, or dropped: closed |
//! | a descriptor, as `SocketId` | worker | `Driver::adopt` or `open` | `Driver::close`, once its last operation is over |
//! | `sys::uring::operation`, its payload | worker | the driver, at submission | at its last completion |
//! | `sys::buffer::RecvPool`, `RecvBuffer` | worker | the driver; lent with each receive | the block goes back when its buffer is dropped |
//! | `sys::buffer::Chunk`, `Slice` | worker | `worker::buffers`; a session, from what it opened | a chunk is used again when no slice is left |
//! | `worker::backlog::Backlog` | worker | with the tunnel, or the stream that has none yet | with it; owns nothing while it is empty |
//! | `tls::Output` (a send buffer) | worker | `worker::buffers` | goes into a send, comes back with its completion |
//! | `runtime::timer::Wheel`, `runtime::tasks::Executor` | worker | `Core`; `worker::start` | with the worker |
//! | `worker::pods::PodState` | worker | order `AddPod` | order `RemovePod`, when its connections have let go |
//! | `worker::tenants::Tenant` | worker | with its `PodState`; `Tenants::of_source` | when all that it caused has let go, and its source is forgotten |
//! | `worker::room::Place` | worker | `Core::take_place`, for each connection | with the connection |
//! | `worker::listen::Listener` | worker (the pod's home) | order `AddPod` | order `RemovePod`, or a drain |
//! | `worker::listen::Captured` | worker; may cross to another before | `Core::accepted` | becomes a journey |
//! | a journey (`outbound`, `inbound`, `passthrough`, `hbone::serve`) | worker, as a task | `worker::turn` | when the relay starts, or it is refused |
//! | `worker::shell::Socket` | worker, in a task | a journey | dropped: closed; released: to a slot |
//! | `worker::hbone::session::Session` | worker, in a slot | `hbone::dial::start_session` | `Core::remove_session` |
//! | `wire::http2::Connection`, `tls::Channel` | worker | with the session | with it |
//! | `worker::hbone::source::Sources`, `worker::trouble::Troubles` | worker | `Core::new` | with `Core` |
//! | `worker::hbone::carrier::Carrier` | worker, in a slot | `hbone::carrier::Line::open` | `Core::close_carrier`, which its task or its session calls |
//! | `worker::hbone::dial::OpenStream` | worker, in a task | `dial::connect`, `inbound::serve` | dropped: reset; attached: to a tunnel |
//! | `worker::tunnel::Tunnel`, `worker::pipe::Pipe` | worker, in a slot | `Core::attach_tunnel`, `attach_pipe` | both directions ended, reset, or cut |
//! | `worker::hbone::pool::Pool`, `worker::certificates::CertificateCache` | worker | `Core::new` | with `Core` |
//! | `mesh::Permit` | worker, in a task | `authorize` alone | when the delivery has connected |
//! | `worker::telemetry::Account` | worker | a journey | becomes the connection's record when it ends |
//! | `worker::live::Attempt` | worker | a journey, while it connects | with the attempt |

#![deny(unsafe_code)]

pub mod bridge;
pub mod clock;
pub mod config;
pub mod control;
pub mod identity;
pub mod limits;
pub mod mesh;
pub mod planted;
pub mod process;
pub mod runtime;
#[allow(unsafe_code)]
pub mod sys;
pub mod tls;
pub mod wire;
pub mod worker;
