//! Two tenants on one node: what the storm of one costs the other.
//!
//! Pods `storm` and `calm` share node 0 and its workers, their servers share node 1. `calm` sends requests of 1 KiB one
//! after the other, on connections that it keeps or on a new one each; `storm` opens connections as fast as it can and
//! runs bulk streams beside them.

use std::fmt::Write;
use std::time::{Duration, Instant};

use uztunnel_rig::proxy::Output;
use uztunnel_rig::{Blueprint, Family, Namespace, PodSpec, ProxyOptions, Result, RigError, World};

use crate::load::{Client, Load};
use crate::report::median;
use crate::server::{HTTP_PORT, SINK_PORT, Server};

const WARM_UP: Duration = Duration::from_millis(500);
const CALM: [(&str, Load); 2] = [
    ("kept connections", Load::Requests { connections: 4 }),
    ("new connections", Load::ConnectionPerRequest { clients: 2 }),
];
const STORM: Load = Load::ConnectionPerRequest { clients: 64 };
const BULK: Load = Load::Bulk { streams: 4 };

struct Pair {
    name: String,
    world: World,
    _servers: Vec<Server>,
}

/// 99th percentiles of one kind of `calm`, and what `storm` did meanwhile.
struct Round {
    alone_us: f64,
    beside_us: f64,
    connections: f64,
}

/// One round, for each kind of `calm`.
type Rounds = Vec<Round>;

impl Pair {
    fn start(name: &str, options: &ProxyOptions) -> Result<Self> {
        let options = ProxyOptions {
            output: Output::Discarded,
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
        .pod(PodSpec::new("storms", 1));
        let mut world = World::build(blueprint)?;
        world.start_proxies(&[options.clone(), options])?;
        let failed = |error| RigError::new("starting the load servers", error);
        let servers = ["calms", "storms"].map(|pod| Server::start(&world.pod(pod).namespace).map_err(failed));
        let servers = servers.into_iter().collect::<Result<_>>()?;
        Ok(Self {
            name: name.to_owned(),
            world,
            _servers: servers,
        })
    }

    fn load(&self, pods: [&str; 2], port: u16, load: Load) -> Client {
        let namespace: &Namespace = &self.world.pod(pods[0]).namespace;
        Client::start(namespace, self.world.pod(pods[1]).address(Family::V4, port), load)
    }

    fn p99_us(&self, calm: Load, slice: Duration) -> Result<f64> {
        let calm = self.load(["calm", "calms"], HTTP_PORT, calm);
        std::thread::sleep(WARM_UP);
        calm.record();
        std::thread::sleep(slice);
        let failed = calm.errors();
        let latency = calm
            .stop()
            .map_err(|error| RigError::new("running the load client", error))?;
        if failed > 0 || latency.is_empty() {
            return Err(RigError::new(
                "measuring the calm tenant",
                format!("{failed} requests failed, {} were answered", latency.len()),
            ));
        }
        Ok(latency.value_at_quantile(0.99) as f64)
    }

    fn round(&self, slice: Duration) -> Result<Rounds> {
        let alone = CALM.map(|(_, calm)| self.p99_us(calm, slice));
        let bulk = self.load(["storm", "storms"], SINK_PORT, BULK);
        let storm = self.load(["storm", "storms"], HTTP_PORT, STORM);
        let beside = CALM.map(|(_, calm)| -> Result<(f64, f64)> {
            let (before, started) = (storm.units(), Instant::now());
            let p99 = self.p99_us(calm, slice)?;
            let connections = (storm.units() - before) as f64 / started.elapsed().as_secs_f64();
            Ok((p99, connections))
        });
        drop((bulk, storm));
        let rounds = alone.into_iter().zip(beside).map(|(alone, beside)| {
            let (alone_us, (beside_us, connections)) = (alone?, beside?);
            Ok(Round {
                alone_us,
                beside_us,
                connections,
            })
        });
        rounds.collect()
    }
}

/// Measures all variants in turn, round by round; gives a table.
pub fn run(variants: &[(String, ProxyOptions)], rounds: usize, slice: Duration) -> Result<String> {
    let pairs = variants.iter().map(|(name, options)| Pair::start(name, options));
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    let mut measured: Vec<Vec<Rounds>> = pairs.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (pair, rounds) in pairs.iter().zip(&mut measured) {
            rounds.push(pair.round(slice)?);
        }
    }
    let mut table = String::from(
        "| calm | variant | p99 alone ms | beside the storm ms | times (spread) | storm connections/s |\n|---|---|---|---|---|---|\n",
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
                "| {calm} | {} | {:.3} | {:.3} | {:.1} ({least:.1}..{most:.1}) | {:.0} |",
                pair.name,
                median(&of(|round| round.alone_us)) / 1000.0,
                median(&of(|round| round.beside_us)) / 1000.0,
                median(&times),
                median(&of(|round| round.connections)),
            )
            .expect("invariant: writing to a string cannot fail");
        }
    }
    Ok(table)
}
