//! What the layers are given: one plain struct each, with the unit in every name that has one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Where this process stands.
#[derive(Debug, Clone)]
pub struct Node {
    /// `NODE_NAME`; without it every workload counts as local.
    pub name: Option<String>,
    pub network: String,
    pub cluster_id: String,
    pub cluster_domain: String,
    /// Of this proxy's own identity only.
    pub trust_domain: String,
    pub pod_name: Option<String>,
    pub pod_namespace: Option<String>,
    pub service_account: Option<String>,
    pub instance_ip: String,
    pub istio_version: String,
    /// Announced to the control plane.
    pub metadata: BTreeMap<String, String>,
    /// The same with values in JSON, as they were given (`ISTIO_METAJSON_*`).
    pub metadata_json: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
pub struct Ports {
    /// Captured outbound connections, in the pod.
    pub outbound: u16,
    /// Captured inbound connections in plain text, in the pod.
    pub inbound_plaintext: u16,
    /// Tunnels from other proxies, in the pod.
    pub inbound_hbone: u16,
    pub dns: u16,
    pub admin: u16,
    pub stats: u16,
    pub readiness: u16,
}

impl Ports {
    /// The ports on which connections of pods are captured, to which nothing may be sent on their behalf.
    pub fn captured(&self) -> [u16; 3] {
        [self.outbound, self.inbound_plaintext, self.inbound_hbone]
    }
}

/// Options of sockets, for those who listen and those who connect.
#[derive(Debug, Clone)]
pub struct Sockets {
    /// `SO_MARK` of everything this process sends, by which the redirect rules let it through.
    pub packet_mark: Option<u32>,
    pub original_source: OriginalSource,
    /// Wildcard listeners are dual-stack, else IPv4 only.
    pub ipv6: bool,
    /// On connections to upstreams and on captured ones, not on tunnels from other proxies.
    pub keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT`.
    pub user_timeout: Option<Duration>,
    /// `SO_REUSEPORT` on listeners in pods, so that two processes can overlap during an upgrade.
    pub port_reuse: bool,
}

/// Whether applications see the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginalSource {
    /// The listener has to get `IP_TRANSPARENT`, or the start fails.
    Required,
    Never,
    /// If the listener gets `IP_TRANSPARENT`.
    BestEffort,
}

/// Within what the kernel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    pub idle: Duration,
    pub interval: Duration,
    pub retries: u32,
}

#[derive(Debug, Clone)]
pub struct Worker {
    pub threads: usize,
    pub io: IoChoice,
    pub ring_features: RingFeatures,
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
    pub frame_bytes_max: u32,
    /// Streams of one outbound session before another is opened.
    pub session_streams_max: u16,
    pub session_idle_timeout: Duration,
    /// Applications that take PROXY headers are reached on loopback.
    pub localhost_app_tunnel: bool,
    /// Read baggage of requests and answer with our own.
    pub response_baggage: bool,
    /// `XDS_ON_DEMAND`: the control plane tells only what it is asked for.
    pub on_demand: bool,
    /// Log policy decisions at INFO instead of DEBUG.
    pub policy_info_logging: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoChoice {
    Auto,
    Uring,
    Epoll,
}

/// Masks the ring's features to those of a kernel, for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingFeatures {
    Auto,
    Kernel5_15,
    Kernel5_19,
    Kernel6_0,
    Kernel6_1,
}

/// Pods, and the agent that announces them.
#[derive(Debug, Clone)]
pub struct Pods {
    pub zds_socket: PathBuf,
}

#[derive(Debug, Clone)]
pub struct Tls {
    pub records: RecordLayer,
    /// Records under one key before it is changed; `None` for the limit of the cipher.
    pub records_per_key_max: Option<u64>,
    /// What certificates are asked for.
    pub certificate_lifetime: Duration,
    pub compliance: Compliance,
    /// Lists of revoked certificates; without them no certificate counts as revoked.
    pub revocations: Option<PathBuf>,
}

/// What TLS connections are restricted to, beyond what is safe anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compliance {
    Default,
    /// Key exchange by X25519MLKEM768 and nothing else.
    PostQuantum,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordLayer {
    Own,
    Buffered,
}

/// The servers of the control plane, and what stands in for them.
#[derive(Debug, Clone)]
pub struct Control {
    pub local_state: Option<LocalSource>,
    pub ca: CertificateSource,
    pub xds: Option<Server>,
    pub auth_token: Option<AuthToken>,
}

#[derive(Debug, Clone)]
pub enum CertificateSource {
    /// A built-in authority whose key is public.
    Fake,
    Server(Server),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalSource {
    Path(PathBuf),
    Text(String),
}

#[derive(Debug, Clone)]
pub struct Server {
    pub uri: String,
    pub roots: TrustRoots,
    /// A name which the server's certificate may have instead of the host's.
    pub other_hostname: Option<String>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustRoots {
    File(PathBuf),
    System,
    Pem(String),
}

#[derive(Clone, PartialEq, Eq)]
pub enum AuthToken {
    /// Read again for every request.
    File(PathBuf),
    Literal(String),
}

impl std::fmt::Debug for AuthToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(redacted)"),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Logging {
    /// Directives of `RUST_LOG`.
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Plain,
    Json,
}

#[derive(Debug, Clone)]
pub struct Drain {
    /// How long connections may go on after the process was told to end.
    pub deadline: Duration,
}
