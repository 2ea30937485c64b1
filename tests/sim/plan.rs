//! What a run consists of, drawn from its seed before it starts: plain data, so that it can be made smaller.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use uztunnel::limits;
use uztunnel::sys::sim::faults::{Fault, PerFault};
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

/// Rates of the network's own faults where they are switched on: chances at each occasion.
const RATES: [(Fault, f64); 8] = [
    (Fault::ConnectRefused, 0.03),
    (Fault::ConnectUnanswered, 0.02),
    (Fault::QueueFull, 0.05),
    (Fault::Reset, 0.002),
    (Fault::NoBuffer, 0.1),
    (Fault::NoDescriptors, 0.02),
    (Fault::CancelRace, 0.5),
    (Fault::StalledReader, 0.1),
];

/// The faults of a run, and how the world that they meet is drawn.
struct Drawing {
    random: fastrand::Rng,
    enabled: PerFault<bool>,
    span: Duration,
}

impl Plan {
    pub fn draw(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut enabled = PerFault::default();
        match random.u8(..10) {
            // Calm: whatever goes wrong is ours.
            0..3 => {}
            3..7 => enabled.set(Fault::ALL[random.usize(..Fault::ALL.len())], true),
            _ => {
                for fault in Fault::ALL {
                    enabled.set(fault, random.bool());
                }
            }
        }
        let span = Duration::from_millis(random.u64(100..4_000));
        let mut drawing = Drawing {
            random,
            enabled,
            span,
        };
        let nodes: Vec<NodePlan> = (0..drawing.random.usize(1..=3)).map(|_| drawing.node()).collect();
        let pods: Vec<PodPlan> = (0..drawing.random.usize(2..=6))
            .map(|number| drawing.pod(number, nodes.len()))
            .collect();
        let services = drawing.services(&pods);
        let connections = drawing.connections(&pods, &services);
        let disturbances = drawing.disturbances(&nodes, &pods);
        Self {
            seed,
            age: drawing.age(),
            nodes,
            pods,
            services,
            connections,
            disturbances,
            shape: drawing.shape(),
            habits: drawing.habits(),
        }
    }

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

impl Drawing {
    fn percent(&mut self, percent: u8) -> bool {
        self.random.u8(..100) < percent
    }

    fn within_span(&mut self) -> Duration {
        Duration::from_micros(self.random.u64(..self.span.as_micros() as u64))
    }

    /// Often shortly before a level of the timer wheel is through: 64^2, 64^3 and 64^4 ms.
    fn age(&mut self) -> Duration {
        let level = match self.random.u8(..10) {
            0..5 => return Duration::ZERO,
            5..7 => 64u64.pow(2),
            7..9 => 64u64.pow(3),
            _ => 64u64.pow(4),
        };
        Duration::from_millis((level * self.random.u64(1..4)).saturating_sub(self.random.u64(..15_000)))
    }

    fn node(&mut self) -> NodePlan {
        let small = self.percent(30);
        NodePlan {
            workers: self.random.usize(1..=3),
            records_max: match self.percent(30) {
                true => self.random.u64(limits::RECORDS_PER_KEY_MIN..64),
                false => limits::RECORDS_PER_KEY_MAX,
            },
            stream_window_bytes: match small {
                true => self.random.u32(1_000..70_000),
                false => limits::HTTP2_STREAM_WINDOW_BYTES,
            },
            connection_window_bytes: match small {
                true => self.random.u32(65_535..200_000),
                false => limits::HTTP2_CONNECTION_WINDOW_BYTES,
            },
            frame_bytes_max: match small {
                true => self.random.u32(16_384..40_000),
                false => limits::HTTP2_FRAME_BYTES,
            },
            session_streams_max: match self.percent(30) {
                true => self.random.usize(1..8),
                false => 100,
            },
            response_baggage: self.random.bool(),
            buffered: self.percent(5),
            preserve_source: self.percent(70),
            queue_max: match self.percent(20) {
                true => self.random.usize(2..8),
                false => 128,
            },
        }
    }

    fn pod(&mut self, number: usize, nodes: usize) -> PodPlan {
        let node = self.random.usize(..nodes);
        let mut addresses = vec![IpAddr::V4(Ipv4Addr::new(198, 18, node as u8, number as u8 + 1))];
        if self.percent(50) {
            addresses.push(Ipv6Addr::new(0xfd00, node as u16, 0, 0, 0, 0, 0, number as u16 + 1).into());
        }
        PodPlan {
            node,
            account: self.random.usize(..4),
            // The first two always are, so that there is a tunnel to try.
            meshed: number < 2 || self.percent(80),
            addresses,
        }
    }

    fn services(&mut self, pods: &[PodPlan]) -> Vec<ServicePlan> {
        let count = self.random.usize(..3);
        (0..count)
            .map(|number| ServicePlan {
                address: Ipv4Addr::new(198, 19, 0, number as u8 + 1).into(),
                pods: {
                    let mut members: Vec<usize> = (0..pods.len()).filter(|_| self.percent(50)).collect();
                    if members.is_empty() {
                        members.push(self.random.usize(..pods.len()));
                    }
                    members
                },
            })
            .collect()
    }

    fn connections(&mut self, pods: &[PodPlan], services: &[ServicePlan]) -> Vec<ConnectionPlan> {
        let count = match self.random.u8(..10) {
            0..6 => self.random.usize(5..40),
            6..9 => self.random.usize(40..120),
            _ => self.random.usize(120..300),
        };
        // Some worlds are storms: everything starts at once.
        let at_once = self.percent(15);
        (0..count)
            .map(|number| {
                let client = self.random.usize(..pods.len());
                let target = match self.random.u8(..100) {
                    0..2 => Target::Nowhere,
                    2..30 if !services.is_empty() => Target::Service(self.random.usize(..services.len())),
                    _ => Target::Pod(self.random.usize(..pods.len())),
                };
                let ipv6 = match target {
                    Target::Pod(server) => {
                        [client, server].iter().all(|pod| pods[*pod].addresses.len() > 1)
                            && self.random.bool()
                    }
                    Target::Service(_) | Target::Nowhere => false,
                };
                let start = match at_once {
                    true => Duration::ZERO,
                    false => self.within_span(),
                };
                let (client_script, server_script) = self.scripts();
                ConnectionPlan {
                    number,
                    start,
                    client,
                    target,
                    ipv6,
                    client_script,
                    server_script,
                }
            })
            .collect()
    }

    fn size(&mut self) -> u64 {
        match self.random.u8(..100) {
            0..10 => 0,
            10..60 => self.random.u64(1..2_000),
            60..90 => self.random.u64(2_000..40_000),
            90..99 => self.random.u64(40_000..300_000),
            _ => self.random.u64(300_000..2_000_000),
        }
    }

    fn script(&mut self) -> Script {
        let bytes = self.size();
        let ends = match self.random.u8(..100) {
            0..80 => Ends::HalfClose,
            80..90 => Ends::Close,
            90..95 => Ends::ResetAfterSending(self.random.u64(..=bytes)),
            _ => Ends::ResetAfterReceiving(self.random.u64(..=bytes.max(100))),
        };
        let stalls = self.enabled.get(Fault::StalledReader) && self.percent(10);
        Script {
            bytes,
            starts: Starts::AtOnce,
            ends,
            piece_max: match self.random.u8(..4) {
                0 => self.random.usize(1..200),
                1 => self.random.usize(200..2_000),
                _ => self.random.usize(2_000..100_000),
            },
            think_us_max: match self.percent(20) {
                true => self.random.u64(1..5_000),
                false => 0,
            },
            stall: stalls.then(|| {
                let after = self.random.u64(..100_000);
                (after, Duration::from_millis(self.random.u64(100..8_000)))
            }),
        }
    }

    fn scripts(&mut self) -> (Script, Script) {
        let (mut first, mut second) = (self.script(), self.script());
        // Some hundred reads and writes are enough for anybody.
        let piece = first.bytes.max(second.bytes) as usize / 200 + 1;
        for script in [&mut first, &mut second] {
            script.piece_max = script.piece_max.max(piece);
        }
        // One side begins; the other may wait for what the first surely sends.
        second.starts = match self.random.u8(..4) {
            0 => Starts::After(self.random.u64(..=first.bytes)),
            1 => Starts::AfterEnd,
            _ => Starts::AtOnce,
        };
        if let Ends::ResetAfterReceiving(bytes) = &mut first.ends {
            *bytes = (*bytes).min(second.bytes);
            // Two that wait for each other would wait for ever.
            second.ends = Ends::HalfClose;
        }
        if let (Starts::After(_) | Starts::AfterEnd, Ends::ResetAfterReceiving(_)) =
            (second.starts, first.ends)
        {
            second.starts = Starts::AtOnce;
        }
        match self.percent(70) {
            true => (first, second),
            false => (second, first),
        }
    }

    fn disturbances(&mut self, nodes: &[NodePlan], pods: &[PodPlan]) -> Vec<Disturbance> {
        let mut disturbances = Vec::new();
        for _ in 0..self.random.usize(..3) {
            let account = self.random.usize(..4);
            disturbances.push(Disturb::Renewal { account });
        }
        for fault in Fault::ALL {
            if !self.enabled.get(fault) {
                continue;
            }
            let most = match fault {
                Fault::KeyUpdate => 16,
                Fault::StreamReset | Fault::PolicyChange => 6,
                Fault::GoAway => 2,
                _ => 2,
            };
            for _ in 0..self.random.usize(1..=most) {
                disturbances.extend(self.disturb(fault, nodes, pods));
            }
        }
        // A clock that jumps would end certificates at another moment than the plan says.
        if self.enabled.get(Fault::ExpiredCertificate) {
            disturbances.retain(|what| !matches!(what, Disturb::ClockJump { .. }));
        }
        let mut disturbances: Vec<Disturbance> = disturbances
            .into_iter()
            .map(|what| Disturbance {
                at: self.within_span(),
                what,
            })
            .collect();
        disturbances.sort_by_key(|disturbance| disturbance.at);
        disturbances
    }

    fn disturb(&mut self, fault: Fault, nodes: &[NodePlan], pods: &[PodPlan]) -> Option<Disturb> {
        Some(match fault {
            Fault::ClockJump => Disturb::ClockJump {
                seconds: self.random.i64(-20_000..20_000),
            },
            Fault::SlowWorker => Disturb::SlowWorker {
                node: self.random.usize(..nodes.len()),
                pause: Duration::from_millis(self.random.u64(1..1_500)),
            },
            Fault::ExpiredCertificate => Disturb::Expiry {
                account: self.random.usize(..4),
                renewed_after: Duration::from_millis(self.random.u64(10..2_000)),
            },
            Fault::PolicyChange => {
                let (client, server) = (self.random.usize(..pods.len()), self.random.usize(..pods.len()));
                if client == server {
                    return None;
                }
                Disturb::Policy {
                    client,
                    server,
                    denied: self.percent(70),
                }
            }
            Fault::PodRemoved => Disturb::RemovePod {
                pod: self.random.usize(..pods.len()),
            },
            Fault::ProxyKilled => Disturb::Kill {
                node: self.random.usize(..nodes.len()),
            },
            Fault::ProxyDrained => Disturb::Drain {
                node: self.random.usize(..nodes.len()),
                patience: Duration::from_millis(self.random.u64(0..3_000)),
            },
            Fault::GoAway => Disturb::GoAway,
            Fault::StreamReset => Disturb::ResetStream,
            Fault::KeyUpdate => Disturb::KeyUpdate,
            _ => return None,
        })
    }

    fn shape(&mut self) -> Shape {
        let mut rates = PerFault::default();
        for (fault, rate) in RATES {
            if self.enabled.get(fault) {
                rates.set(fault, rate);
            }
        }
        let buffer_bytes = match self.percent(40) {
            true => (500, 8_000),
            false => (16_000, 300_000),
        };
        Shape {
            buffer_bytes,
            window_percent: self.percent(60).then_some((20, 100)),
            latency_us: match self.percent(50) {
                true => (10, 200),
                false => (10, 20_000),
            },
            bandwidth: self.percent(30).then_some((2_000_000, 200_000_000)),
            short: self.percent(70),
            rates,
        }
    }

    fn habits(&mut self) -> Habits {
        let tight = self.percent(40);
        Habits {
            blocks: match tight {
                true => self.random.u16(1..6),
                false => 32,
            },
            block_bytes: self.random.usize(1_000..20_000),
            postpone: self.random.u8(..40),
            direct: [0, 50, 100][self.random.usize(..3)],
            linger: self.random.u8(..80),
            keeps_time: false,
        }
    }
}
