//! How a plan is drawn from its seed. Every change of the order of drawing gives the seeds of `seeds.txt` other plans.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use uztunnel::limits;
use uztunnel::sys::sim::faults::{Fault, PerFault};
use uztunnel::sys::sim::{Habits, Shape};

use super::{
    ConnectionPlan, Disturb, Disturbance, Ends, NodePlan, Plan, PodPlan, Script, ServicePlan, Starts, Target,
};

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

/// Makes the draw of `deny_what_lasts` another one than the plan's; with this number the seeds of `seeds.txt` keep their
/// plans.
const LASTING: u64 = 95;

/// How often a fault strikes in words, where it is switched on.
pub fn rate(fault: Fault) -> String {
    match RATES.iter().find(|(of, _)| *of == fault) {
        Some((Fault::CancelRace, _)) => "80 % in most worlds".to_owned(),
        Some((_, rate)) => format!("{} %", rate * 100.0),
        None => format!("1 to {} a world", times_max(fault)),
    }
}

/// How often a disturbance is planned in one world at most.
fn times_max(fault: Fault) -> usize {
    match fault {
        Fault::KeyUpdate => 16,
        Fault::StreamReset | Fault::PolicyChange => 6,
        _ => 2,
    }
}

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
        let mut nodes: Vec<NodePlan> = (0..drawing.random.usize(1..=3)).map(|_| drawing.node()).collect();
        let pods: Vec<PodPlan> = (0..drawing.random.usize(2..=6))
            .map(|number| drawing.pod(number, nodes.len()))
            .collect();
        let services = drawing.services(&pods);
        let connections = match drawing.random.u8(..100) {
            0..2 => drawing.burst(&mut nodes[pods[0].node]),
            2..4 => drawing.standstill(&mut nodes),
            _ => drawing.connections(&pods, &services),
        };
        let disturbances = drawing.disturbances(&nodes, &pods);
        let mut plan = Self {
            seed,
            age: drawing.age(),
            nodes,
            pods,
            services,
            connections,
            disturbances,
            shape: drawing.shape(),
            habits: drawing.habits(),
        };
        // No fault of anybody's, and occasions are rare.
        if drawing.percent(80) {
            plan.shape.rates.set(Fault::CancelRace, 0.8);
        }
        if drawing.enabled.get(Fault::PolicyChange) {
            plan.deny_what_lasts(fastrand::Rng::with_seed(seed ^ LASTING));
        }
        plan
    }

    /// In every second world, one connection lives for seconds and a policy forbids it meanwhile: few others would
    /// still be there. Drawn apart, so that the other worlds stay as they are.
    fn deny_what_lasts(&mut self, mut random: fastrand::Rng) {
        if random.bool() {
            return;
        }
        let places: Vec<(usize, usize, usize)> = (self.connections.iter().enumerate())
            .filter_map(|(place, connection)| match connection.target {
                Target::Pod(server) if server != connection.client => {
                    Some((place, connection.client, server))
                }
                Target::Pod(_) | Target::Service(_) | Target::Nowhere => None,
            })
            .collect();
        let Some((place, client, server)) = random.choice(places) else {
            return;
        };
        let connection = &mut self.connections[place];
        let pieces = random.usize(30..80);
        connection.client_script = Script {
            bytes: 4_000,
            starts: Starts::AtOnce,
            ends: Ends::HalfClose,
            piece_max: 4_000 / pieces,
            think_us_max: 300_000,
            stall: None,
        };
        let server_script = &mut connection.server_script;
        // Who thinks so long reads slowly.
        server_script.bytes = server_script.bytes.min(1_000);
        server_script.starts = Starts::AtOnce;
        server_script.ends = Ends::HalfClose;
        let at = connection.start + Duration::from_millis(random.u64(100..2_000));
        let what = Disturb::Policy {
            client,
            server,
            denied: true,
        };
        self.disturbances.retain(|disturbance| {
            !matches!(disturbance.what, Disturb::Policy { client: of, server: to, .. } if (of, to) == (client, server))
        });
        let index = self
            .disturbances
            .partition_point(|disturbance| disturbance.at <= at);
        self.disturbances.insert(index, Disturbance { at, what });
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
        let mut node = NodePlan {
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
        };
        // Each of its KeyUpdates asks for one, and it takes 32 at most in a row without data: a long transfer one way
        // would have more of them, which takes 2^29 records otherwise.
        if node.buffered {
            node.records_max = limits::RECORDS_PER_KEY_MAX;
        }
        node
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

    /// Many at once from one pod to another, each in a session of its own: more than a connection may be told of
    /// sessions. They take long enough for none to be passed on meanwhile.
    fn burst(&mut self, node: &mut NodePlan) -> Vec<ConnectionPlan> {
        node.workers = 1;
        node.session_streams_max = 1;
        let count = limits::POOL_ROUNDS_MAX + self.random.usize(1..60);
        (0..count)
            .map(|number| {
                let (mut client_script, mut server_script) = self.scripts();
                for script in [&mut client_script, &mut server_script] {
                    script.bytes = script.bytes.clamp(100, 2_000);
                    script.piece_max = script.bytes as usize / 200 + 1;
                    script.think_us_max = self.random.u64(20_000..50_000);
                    script.starts = Starts::AtOnce;
                    script.ends = Ends::HalfClose;
                }
                ConnectionPlan::between_the_first(number, Duration::ZERO, client_script, server_script)
            })
            .collect()
    }

    /// A few readers of one session stop for long, with more on its way to them than all windows together let
    /// through; others go on.
    fn standstill(&mut self, nodes: &mut [NodePlan]) -> Vec<ConnectionPlan> {
        for node in nodes {
            node.workers = 1;
            node.session_streams_max = 100;
            node.stream_window_bytes = self.random.u32(20_000..70_000);
            node.connection_window_bytes = self.random.u32(65_535..100_000);
        }
        let stopped = self.random.usize(3..8);
        (0..stopped + self.random.usize(5..30))
            .map(|number| {
                let (mut client_script, mut server_script) = self.scripts();
                let mut start = self.within_span();
                if number < stopped {
                    start = Duration::ZERO;
                    let (writer, reader) = match self.random.bool() {
                        true => (&mut client_script, &mut server_script),
                        false => (&mut server_script, &mut client_script),
                    };
                    writer.bytes = self.random.u64(400_000..700_000);
                    writer.starts = Starts::AtOnce;
                    writer.ends = Ends::HalfClose;
                    writer.think_us_max = 0;
                    reader.ends = Ends::HalfClose;
                    let pause = Duration::from_secs(self.random.u64(30..90));
                    reader.stall = Some((self.random.u64(..1_000), pause));
                    for script in [&mut client_script, &mut server_script] {
                        script.piece_max = script.piece_max.max(4_000);
                    }
                }
                ConnectionPlan::between_the_first(number, start, client_script, server_script)
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
                // Some stop for longer than everything else in their world takes.
                let pause_ms = match self.percent(30) {
                    true => self.random.u64(30_000..90_000),
                    false => self.random.u64(100..8_000),
                };
                (after, Duration::from_millis(pause_ms))
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
            for _ in 0..self.random.usize(1..=times_max(fault)) {
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
        let is_small = self.percent(40);
        let buffer_bytes = match is_small {
            true => (500, 8_000),
            false => (16_000, 300_000),
        };
        Shape {
            buffer_bytes,
            window_percent: self.percent(60).then_some((20, 100)),
            latency_us: match self.percent(50) {
                true => (10, 200),
                // A session of hundreds would be so slow that its answers come too late.
                false if is_small => (10, 3_000),
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
