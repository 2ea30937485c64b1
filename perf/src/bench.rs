//! Worlds to be compared, and one measured slice of load on one of them.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use uztunnel_rig::proxy::Output;
use uztunnel_rig::{Blueprint, Family, Membership, PodSpec, ProxyOptions, Result, RigError, World};

use crate::load::Client;
use crate::machine;
use crate::scenario::{PODS_MAX, Scenario};
use crate::server::{HTTP_PORT, SINK_PORT, Server};

/// Until connections stand, tunnels are open and windows have grown.
const WARM_UP: Duration = Duration::from_millis(500);

/// A way from a client to a server: through a pair of proxies, or direct.
pub struct Variant {
    pub name: String,
    world: World,
    /// Of each pair of pods.
    servers: [Server; PODS_MAX],
}

/// What one slice showed. Rates are per second; for bulk a unit is a byte.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub rate: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// CPU time of all proxies of the variant, per unit.
    pub proxies_ns: f64,
    /// CPU time of the whole machine, per unit.
    pub machine_ns: f64,
    pub errors: u64,
}

/// Client and server; a scenario uses the first ones.
const PAIRS: [[&str; 2]; PODS_MAX] = [["client", "server"], ["client-2", "server-2"]];

impl Variant {
    /// Two nodes, one with the client pods and one with the servers, and a proxy on either.
    pub fn proxied(name: &str, options: &ProxyOptions) -> Result<Self> {
        let options = ProxyOptions {
            output: Output::Discarded,
            ..options.clone()
        };
        let mut variant = Self::build(name, Membership::Inside)?;
        variant.world.start_proxies(&[options.clone(), options])?;
        Ok(variant)
    }

    /// The same two nodes and pods without proxies and without redirect rules.
    pub fn direct() -> Result<Self> {
        Self::build("direct", Membership::Outside)
    }

    fn build(name: &str, membership: Membership) -> Result<Self> {
        let mut blueprint = Blueprint {
            nodes: 2,
            label: "perf".to_owned(),
            ..Blueprint::default()
        };
        for [client, server] in PAIRS {
            blueprint = blueprint
                .pod(PodSpec::new(client, 0).membership(membership))
                .pod(PodSpec::new(server, 1).membership(membership));
        }
        let world = World::build(blueprint)?;
        let servers = PAIRS.map(|[_, server]| Server::start(&world.pod(server).namespace));
        let failed = |error| RigError::new("starting the load server", error);
        let [first, second] = servers;
        let servers = [first.map_err(failed)?, second.map_err(failed)?];
        Ok(Self {
            name: name.to_owned(),
            world,
            servers,
        })
    }

    /// Loads the variant for `duration` after a warm-up.
    pub fn measure(&self, scenario: &Scenario, duration: Duration) -> Result<Sample> {
        let pairs = std::array::from_fn::<_, PODS_MAX, _>(|at| (&self.servers[at], PAIRS[at]));
        measure_all(&self.world, &pairs[..scenario.pods], scenario, duration)
    }
}

/// Loads the way between two pods of any world.
pub fn measure(
    world: &World,
    server: &Server,
    pair: [&str; 2],
    scenario: &Scenario,
    duration: Duration,
) -> Result<Sample> {
    measure_all(world, &[(server, pair)], scenario, duration)
}

/// The same of several pairs of pods at once.
fn measure_all(
    world: &World,
    pairs: &[(&Server, [&str; 2])],
    scenario: &Scenario,
    duration: Duration,
) -> Result<Sample> {
    let failed = |what: &'static str| move |error: std::io::Error| RigError::new(what, error);
    let port = if scenario.is_bulk() { SINK_PORT } else { HTTP_PORT };
    let clients = pairs.iter().map(|(_, [client, server])| {
        let address = world.pod(server).address(Family::V4, port);
        Client::start(&world.pod(client).namespace, address, scenario.load)
    });
    let clients: Vec<Client> = clients.collect();
    std::thread::sleep(WARM_UP);
    clients.iter().for_each(Client::record);
    let units = || -> u64 {
        if scenario.is_bulk() {
            pairs.iter().map(|(server, _)| server.sunk_bytes()).sum()
        } else {
            clients.iter().map(Client::units).sum()
        }
    };
    let errors = || -> u64 { clients.iter().map(Client::errors).sum() };
    let read_machine = || machine::busy_ns().map_err(failed("reading the machine's CPU time"));
    let (units_before, proxies_before, machine_before) = (units(), world.proxies_cpu_ns()?, read_machine()?);
    let errors_before = errors();
    let started = Instant::now();
    std::thread::sleep(duration);
    let elapsed = started.elapsed().as_secs_f64();
    let done = units() - units_before;
    let proxies_ns = world.proxies_cpu_ns()? - proxies_before;
    let machine_ns = read_machine()? - machine_before;
    let errors = errors() - errors_before;
    let mut latency = None::<Histogram<u64>>;
    for client in clients {
        let one = client.stop().map_err(failed("running the load client"))?;
        match &mut latency {
            Some(all) => *all += one,
            None => latency = Some(one),
        }
    }
    let quantile = |quantile| {
        latency
            .as_ref()
            .map_or(f64::NAN, |all| all.value_at_quantile(quantile) as f64)
    };
    if done == 0 {
        return Err(RigError::new(
            format!("measuring {}", scenario.name),
            format!("nothing moved in {elapsed:.1} s"),
        ));
    }
    Ok(Sample {
        rate: done as f64 / elapsed,
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        proxies_ns: proxies_ns as f64 / done as f64,
        machine_ns: machine_ns as f64 / done as f64,
        errors,
    })
}

/// Measures all variants round by round, forwards and backwards in turn; gives the samples of each variant.
pub fn run_rounds(
    variants: &[Variant],
    scenario: &Scenario,
    rounds: usize,
    slice: Duration,
) -> Result<Vec<Vec<Sample>>> {
    let mut samples = vec![Vec::new(); variants.len()];
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..variants.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            samples[index].push(variants[index].measure(scenario, slice)?);
        }
    }
    Ok(samples)
}
