//! What a run consists of, drawn from its seed before it starts: plain data, so that it can be made smaller.

mod drawing;

pub use self::drawing::rate;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use uztunnel::sys::sim::faults::Fault;
use uztunnel::sys::sim::{Habits, Shape};

/// The port of connection 0; every connection has a port of its own, so that a server knows whom it serves.
pub const PORT_FIRST: u16 = 20_000;

#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    /// How long the proxies have been idle when the run begins. Their timers are counted from their start.
    pub age: Duration,
    pub nodes: Vec<NodePlan>,
    pub pods: Vec<PodPlan>,
    pub services: Vec<ServicePlan>,
    pub connections: Vec<ConnectionPlan>,
    pub disturbances: Vec<Disturbance>,
    pub shape: Shape,
    pub habits: Habits,
}

#[derive(Debug, Clone)]
pub struct NodePlan {
    pub workers: usize,
    pub records_max: u64,
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
    pub frame_bytes_max: u32,
    pub session_streams_max: usize,
    pub response_baggage: bool,
    /// Stock rustls protects the records.
    pub buffered: bool,
    pub preserve_source: bool,
    pub queue_max: usize,
}

#[derive(Debug, Clone)]
pub struct PodPlan {
    pub node: usize,
    pub account: usize,
    /// Enrolled in the mesh; others are reached and come in plaintext.
    pub meshed: bool,
    pub addresses: Vec<IpAddr>,
}

#[derive(Debug, Clone)]
pub struct ServicePlan {
    pub address: IpAddr,
    pub pods: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Pod(usize),
    Service(usize),
    /// An address that nobody has.
    Nowhere,
}

#[derive(Debug, Clone)]
pub struct ConnectionPlan {
    /// Its number for ever, also when others are left out.
    pub number: usize,
    pub start: Duration,
    pub client: usize,
    pub target: Target,
    pub ipv6: bool,
    pub client_script: Script,
    pub server_script: Script,
}

#[derive(Debug, Clone)]
pub struct Script {
    pub bytes: u64,
    pub starts: Starts,
    pub ends: Ends,
    /// Largest read and write.
    pub piece_max: usize,
    /// Longest pause between two of them.
    pub think_us_max: u64,
    /// Stops reading after so many bytes, for so long.
    pub stall: Option<(u64, Duration)>,
}

/// When a side begins to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starts {
    AtOnce,
    /// When it has received so many bytes.
    After(u64),
    /// When the other side has ended.
    AfterEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Ends its direction when it has sent everything, and reads to the end.
    HalfClose,
    /// Closes when it has sent everything, whatever comes.
    Close,
    /// Resets when it has sent so many bytes.
    ResetAfterSending(u64),
    /// Resets when it has received so many bytes, or sees the end.
    ResetAfterReceiving(u64),
}

/// What happens to the proxies at some moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Disturbance {
    pub at: Duration,
    pub what: Disturb,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Disturb {
    ClockJump {
        seconds: i64,
    },
    SlowWorker {
        node: usize,
        pause: Duration,
    },
    /// The certificate of an account ends and is only replaced after a while.
    Expiry {
        account: usize,
        renewed_after: Duration,
    },
    /// A certificate is replaced in time.
    Renewal {
        account: usize,
    },
    /// From now on these two pods may not, or may again, talk.
    Policy {
        client: usize,
        server: usize,
        denied: bool,
    },
    RemovePod {
        pod: usize,
    },
    Kill {
        node: usize,
    },
    Drain {
        node: usize,
        patience: Duration,
    },
    GoAway,
    ResetStream,
    KeyUpdate,
}

impl Disturb {
    pub fn fault(self) -> Option<Fault> {
        Some(match self {
            Self::ClockJump { .. } => Fault::ClockJump,
            Self::SlowWorker { .. } => Fault::SlowWorker,
            Self::Expiry { .. } => Fault::ExpiredCertificate,
            Self::Renewal { .. } => return None,
            Self::Policy { .. } => Fault::PolicyChange,
            Self::RemovePod { .. } => Fault::PodRemoved,
            Self::Kill { .. } => Fault::ProxyKilled,
            Self::Drain { .. } => Fault::ProxyDrained,
            Self::GoAway => Fault::GoAway,
            Self::ResetStream => Fault::StreamReset,
            Self::KeyUpdate => Fault::KeyUpdate,
        })
    }
}

impl ConnectionPlan {
    /// From the first pod to the second, which are meshed in every plan.
    fn between_the_first(
        number: usize,
        start: Duration,
        client_script: Script,
        server_script: Script,
    ) -> Self {
        Self {
            number,
            start,
            client: 0,
            target: Target::Pod(1),
            ipv6: false,
            client_script,
            server_script,
        }
    }
}

impl Plan {
    pub fn address_of(&self, connection: &ConnectionPlan) -> SocketAddr {
        let family = |address: &&IpAddr| address.is_ipv6() == connection.ipv6;
        let ip = match connection.target {
            Target::Pod(pod) => self.pods[pod].addresses.iter().find(family).copied(),
            Target::Service(service) => Some(self.services[service].address),
            Target::Nowhere => None,
        };
        let nowhere = IpAddr::V4(Ipv4Addr::new(198, 19, 255, 1));
        SocketAddr::new(ip.unwrap_or(nowhere), PORT_FIRST + connection.number as u16)
    }

    /// The pods at which a connection may arrive.
    pub fn servers_of<'a>(&'a self, connection: &'a ConnectionPlan) -> &'a [usize] {
        match &connection.target {
            Target::Pod(pod) => std::slice::from_ref(pod),
            Target::Service(service) => &self.services[*service].pods,
            Target::Nowhere => &[],
        }
    }
}
