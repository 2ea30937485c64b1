//! Two tenants on one node: what the storm of one costs the other.
//!
//! Pods `storm` and `calm` share node 0 and its workers, their servers share node 1. `calm` sends requests of 1 KiB, on
//! connections that it keeps or on a new one each, and pauses for 1 ms after each: without that it would fill the CPU of
//! the tools, and leave next to none for the storm. `storm` opens connections as fast as it can and runs bulk streams
//! beside them.
//!
//! What is to be seen is how the proxies share out a worker, not who gets a CPU of a machine that has only two. So each
//! proxy has one worker, and a CPU that no other proxy uses: node 0's the second, node 1's the first. All tools are on
//! the first CPU: those of `calm`, which have next to nothing to do, before everybody else, those of `storm` after
//! everybody else, with the time that the worker of node 1 leaves. That one, too, has a class in which it does not wait
//! until the scheduler finds that a thread of the storm had its part. The worker of node 0 has its CPU for itself, and
//! the storm is as large as the rest of the machine can make it: how busy both workers are, how many connections it
//! opens and how many bytes it moves stands beside what `calm` sees. Part of what `calm` sees is still the machine's
//! own: a kernel that does not interrupt a system call lets everybody wait for the end of the storm's. How much that is
//! shows the same storm between pods outside of the mesh, which does not come near a proxy: `past the proxies`. Other
//! threads of the proxies (log, control) run where there is room, after the workers.

use std::fmt::Write;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use uztunnel_rig::proxy::Output;
use uztunnel_rig::{
    Blueprint, Family, Membership, Namespace, PodSpec, ProxyOptions, Result, RigError, World,
};

use crate::load::{Client, Load};
use crate::report::median;
use crate::seats::{self, Class, Seat};
use crate::server::{HTTP_PORT, SINK_PORT, Server};

const WARM_UP: Duration = Duration::from_millis(500);
const CALM_PAUSE: Duration = Duration::from_millis(1);
const CALM: [(&str, Load); 2] = [
    (
        "kept connections",
        Load::Requests {
            connections: 4,
            pause: CALM_PAUSE,
        },
    ),
    (
        "new connections",
        Load::ConnectionPerRequest {
            clients: 2,
            pause: CALM_PAUSE,
        },
    ),
];
const STORM: Load = Load::ConnectionPerRequest {
    clients: 64,
    pause: Duration::ZERO,
};
const BULK: Load = Load::Bulk { streams: 4 };

/// Of the workers of node 0 and node 1.
const WORKERS: [Seat; 2] = [Seat::new(1, Class::Second), Seat::new(0, Class::Second)];
const CALM_SEAT: Seat = Seat::new(0, Class::First);
const STORM_SEAT: Seat = Seat::new(0, Class::Last);
/// Threads whose names begin so are workers; other proxies call theirs otherwise and have no seats.
const WORKER_NAME: &str = "uztunnel-";

struct Pair {
    name: String,
    world: World,
    storms: Server,
    _others: [Server; 2],
    /// Of node 0 and node 1: the proxy's process and its worker's thread.
    workers: Vec<(u32, u32)>,
}

/// 99th percentiles of one kind of `calm`, and what `storm` did meanwhile.
struct Round {
    alone_us: f64,
    past_us: f64,
    beside_us: f64,
    /// Per second.
    connections: f64,
    /// Per second.
    bulk_bytes: f64,
    /// Parts of the time, of node 0 and node 1.
    busy: [f64; 2],
}

/// One round, for each kind of `calm`.
type Rounds = Vec<Round>;

/// What counts the work of the storm.
struct Reading {
    at: Instant,
    connections: u64,
    bulk_bytes: u64,
    worker_ns: Vec<u64>,
}

impl Pair {
    fn start(name: &str, options: &ProxyOptions) -> Result<Self> {
        let options = ProxyOptions {
            output: Output::Discarded,
            workers: 1,
            ..options.clone()
        };
        let blueprint = Blueprint {
            nodes: 2,
            label: "tenants".to_owned(),
            ..Blueprint::default()
        }
        .pod(PodSpec::new("calm", 0))
        .pod(PodSpec::new("storm", 0))
        .pod(PodSpec::new("calms", 1))
        .pod(PodSpec::new("storms", 1))
        .pod(PodSpec::new("past", 0).membership(Membership::Outside))
        .pod(PodSpec::new("pasts", 1).membership(Membership::Outside));
        let mut world = World::build(blueprint)?;
        world.start_proxies(&[options.clone(), options])?;
        let serve = |pod, seat| {
            let failed = |error| RigError::new("starting the load servers", error);
            Server::start_on(&world.pod(pod).namespace, Some(seat)).map_err(failed)
        };
        let storms = serve("storms", STORM_SEAT)?;
        let others = [serve("calms", CALM_SEAT)?, serve("pasts", STORM_SEAT)?];
        let seated = |error| RigError::new("giving the proxies' threads their seats", error);
        let mut workers = Vec::new();
        for (node, seat) in world.nodes.iter().zip(WORKERS) {
            let Some(proxy) = &node.proxy else { continue };
            for (thread, name) in seats::threads(proxy.pid()).map_err(seated)? {
                if name.starts_with(WORKER_NAME) {
                    seat.give(thread).map_err(seated)?;
                    workers.push((proxy.pid(), thread));
                } else {
                    Class::Last.give(thread).map_err(seated)?;
                }
            }
        }
        Ok(Self {
            name: name.to_owned(),
            world,
            storms,
            _others: others,
            workers,
        })
    }

    fn load(&self, pods: [&str; 2], port: u16, load: Load, seat: Seat) -> Client {
        let namespace: &Namespace = &self.world.pod(pods[0]).namespace;
        let target = self.world.pod(pods[1]).address(Family::V4, port);
        Client::start_on(namespace, target, load, Some(seat))
    }

    /// Looks at the storm when the calm one is recorded, and when that ends.
    fn p99_us<R>(&self, calm: Load, slice: Duration, look: impl Fn() -> Result<R>) -> Result<(f64, [R; 2])> {
        let calm = self.load(["calm", "calms"], HTTP_PORT, calm, CALM_SEAT);
        std::thread::sleep(WARM_UP);
        calm.record();
        let before = look()?;
        std::thread::sleep(slice);
        let after = look()?;
        let failed = calm.errors();
        let latency = ended(calm)?;
        if failed > 0 || latency.is_empty() {
            return Err(RigError::new(
                "measuring the calm tenant",
                format!("{failed} requests failed, {} were answered", latency.len()),
            ));
        }
        Ok((latency.value_at_quantile(0.99) as f64, [before, after]))
    }

    fn read(&self, storm: &Client) -> Result<Reading> {
        let time = |(process, thread): &(u32, u32)| {
            let failed = |error| RigError::new("reading the time of a worker", error);
            seats::times(*process, *thread)
                .map(|times| times.ran_ns)
                .map_err(failed)
        };
        Ok(Reading {
            at: Instant::now(),
            connections: storm.units(),
            bulk_bytes: self.storms.sunk_bytes(),
            worker_ns: self.workers.iter().map(time).collect::<Result<_>>()?,
        })
    }

    fn round(&self, slice: Duration) -> Result<Rounds> {
        let alone = CALM.map(|(_, calm)| self.p99_us(calm, slice, || Ok(())));
        let bulk = self.load(["past", "pasts"], SINK_PORT, BULK, STORM_SEAT);
        let storm = self.load(["past", "pasts"], HTTP_PORT, STORM, STORM_SEAT);
        let past = CALM.map(|(_, calm)| self.p99_us(calm, slice, || Ok(())));
        ended(bulk)?;
        ended(storm)?;
        let bulk = self.load(["storm", "storms"], SINK_PORT, BULK, STORM_SEAT);
        let storm = self.load(["storm", "storms"], HTTP_PORT, STORM, STORM_SEAT);
        let beside = CALM.map(|(_, calm)| self.p99_us(calm, slice, || self.read(&storm)));
        ended(bulk)?;
        ended(storm)?;
        let rounds = alone
            .into_iter()
            .zip(past)
            .zip(beside)
            .map(|((alone, past), beside)| {
                let ((alone_us, _), (past_us, _), (beside_us, [before, after])) = (alone?, past?, beside?);
                let seconds = (after.at - before.at).as_secs_f64();
                let busy = |node: usize| match (before.worker_ns.get(node), after.worker_ns.get(node)) {
                    (Some(before), Some(after)) => (after - before) as f64 / 1e9 / seconds,
                    _ => f64::NAN,
                };
                Ok(Round {
                    alone_us,
                    past_us,
                    beside_us,
                    connections: (after.connections - before.connections) as f64 / seconds,
                    bulk_bytes: (after.bulk_bytes - before.bulk_bytes) as f64 / seconds,
                    busy: [busy(0), busy(1)],
                })
            });
        rounds.collect()
    }
}

/// The latencies of a client that has run up to now: one that gave up on its way would make a storm that is none.
fn ended(client: Client) -> Result<Histogram<u64>> {
    client
        .stop()
        .map_err(|error| RigError::new("running the load client", error))
}

/// Measures all variants in turn, round by round, each time in the other order; gives a table.
pub fn run(variants: &[(String, ProxyOptions)], rounds: usize, slice: Duration) -> Result<String> {
    let pairs = variants.iter().map(|(name, options)| Pair::start(name, options));
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    let mut measured: Vec<Vec<Rounds>> = pairs.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        let mut order: Vec<_> = pairs.iter().zip(&mut measured).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for (pair, rounds) in order {
            rounds.push(pair.round(slice)?);
        }
    }
    let mut table = String::from(
        "| calm | variant | p99 alone ms | storm past the proxies ms | storm through them ms | times alone (spread) | storm connections/s | storm MB/s | workers busy |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (kind, (calm, _)) in CALM.iter().enumerate() {
        for (pair, rounds) in pairs.iter().zip(&measured) {
            let of =
                |value: fn(&Round) -> f64| rounds.iter().map(|all| value(&all[kind])).collect::<Vec<_>>();
            let mut times = of(|round| round.beside_us / round.alone_us);
            times.sort_by(f64::total_cmp);
            let (least, most) = (times[0], times[times.len() - 1]);
            writeln!(
                table,
                "| {calm} | {} | {:.3} | {:.3} | {:.3} | {:.1} ({least:.1}..{most:.1}) | {:.0} | {:.0} | {:.0} %, {:.0} % |",
                pair.name,
                median(&of(|round| round.alone_us)) / 1000.0,
                median(&of(|round| round.past_us)) / 1000.0,
                median(&of(|round| round.beside_us)) / 1000.0,
                median(&times),
                median(&of(|round| round.connections)),
                median(&of(|round| round.bulk_bytes)) / 1e6,
                median(&of(|round| round.busy[0])) * 100.0,
                median(&of(|round| round.busy[1])) * 100.0,
            )
            .expect("invariant: writing to a string cannot fail");
        }
    }
    Ok(table)
}
