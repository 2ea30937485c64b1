//! The control plane at scale: a large mesh is loaded into two running proxies, and then changes all the time.
//!
//! Two nodes with a pod each, and between the pods an echo every millisecond. Phases: quiet; loading, from the push of
//! all resources until both proxies have acknowledged it; settled; changing, some resources every ten milliseconds;
//! and last a start of both proxies anew, from nothing to ready. Of each phase: the echo's quantiles, CPU time and
//! memory of the proxies; at the end what they say themselves about the turns of their workers.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use uztunnel_rig::istiod::{ADDRESS, Crowd, Istiod};
use uztunnel_rig::proxy::{CpuTimes, Output};
use uztunnel_rig::{Blueprint, Family, PodSpec, ProxyOptions, Result, RigError, World};

use crate::changes::{Change, Unrest};
use crate::echo::{self, Echo, Latencies, WINDOW};
use crate::machine;
use crate::report::median;
use crate::witness::Witnesses;

#[derive(Debug, Clone)]
pub struct Plan {
    pub crowd: Crowd,
    pub changes_per_second: u32,
    pub changing: Duration,
    pub quiet: Duration,
    /// That of the proxies and of the witnesses, and of nobody else, if they have one.
    pub cpu: Option<usize>,
    pub witnesses: usize,
}

impl Default for Plan {
    fn default() -> Self {
        let crowd = Crowd {
            workloads: 100_000,
            services: 5_000,
        };
        Self {
            crowd,
            changes_per_second: 1000,
            changing: Duration::from_secs(30),
            quiet: Duration::from_secs(10),
            cpu: None,
            witnesses: 0,
        }
    }
}

/// What one phase showed.
#[derive(Debug)]
pub struct Phase {
    pub name: &'static str,
    pub took: Duration,
    pub echo_us: Latencies,
    /// Of both proxies.
    pub cpu_s: f64,
    /// Of both proxies, by the names of their threads: what the control plane costs is that of the threads that carry
    /// nothing, since the echo costs the others as much without, and how long workers wait for it is what their
    /// waiting differs by from a quiet time.
    pub by_thread: BTreeMap<String, CpuTimes>,
    /// Of both proxies, at its end.
    pub resident_bytes: u64,
    /// What the host took from the machine's CPUs, as far as it tells.
    pub stolen: Duration,
}

/// What one run showed.
#[derive(Debug)]
pub struct Outcome {
    pub phases: Vec<Phase>,
    /// From the start of both processes until both are ready.
    pub ready_after: Duration,
    /// CPU time of both until then.
    pub ready_cpu_s: f64,
    /// The proxies' words about their workers' turns, before the restart, and those of the witnesses about their own.
    pub turns: Vec<String>,
}

const BATCH_INTERVAL: Duration = Duration::from_millis(10);
const CLIENT: &str = "client";
const SERVER: &str = "server";

/// Until freed memory is given back, and whatever else was started has ended.
const SETTLING: Duration = Duration::from_secs(3);

pub fn run(options: &ProxyOptions, plan: &Plan) -> Result<Outcome> {
    let blueprint = Blueprint {
        nodes: 2,
        label: "scale".to_owned(),
        ..Blueprint::default()
    }
    .pod(PodSpec::new(CLIENT, 0))
    .pod(PodSpec::new(SERVER, 1));
    let mut world = World::build(blueprint)?;
    let istiod = Istiod::serve(&world)?;
    istiod.run_last()?;
    let options = istiod.options(ProxyOptions {
        output: Output::Collected,
        ..options.clone()
    });
    world.start_proxies(&[options.clone(), options.clone()])?;
    let (client, server) = (world.pod(CLIENT), world.pod(SERVER));
    let proxies = world.nodes.iter().map(|node| node.proxy().pid());
    let proxies = proxies.filter(|_| plan.cpu.is_some()).collect();
    let echo = Echo::start(client, server, server.address(Family::V4, echo::PORT), proxies)?;
    let witnesses = Witnesses::start(plan.witnesses, plan.cpu)?;
    std::thread::sleep(SETTLING);
    let mut meter = Meter::new(&world, &echo)?;
    let mut phases = Vec::new();

    std::thread::sleep(plan.quiet);
    phases.push(meter.phase("quiet")?);

    let resources = plan.crowd.resources();
    meter.phase("making resources")?;
    let nonces = istiod.update(ADDRESS, resources);
    await_answers(&istiod, &nonces)?;
    phases.push(meter.phase("loading")?);

    // A stream gives the memory of a large message up when the next one comes.
    let nonces = istiod.update(ADDRESS, vec![plan.crowd.workload(0, true, 2)]);
    await_answers(&istiod, &nonces)?;
    std::thread::sleep(SETTLING);
    phases.push(meter.phase("settled")?);

    change(&istiod, plan)?;
    phases.push(meter.phase("changing")?);

    echo.stop()?;
    let witnessed = witnesses.stop()?;
    let mut turns = Vec::new();
    for node in &mut world.nodes {
        let Some(mut proxy) = node.proxy.take() else {
            continue;
        };
        proxy.terminate()?;
        proxy.wait_for_exit()?;
        let said = proxy
            .logs
            .lines()
            .into_iter()
            .rev()
            .find(|line| line.contains("turns"));
        turns.push(said.unwrap_or_else(|| "nothing said about turns".to_owned()));
    }
    if plan.witnesses > 0 {
        turns.push(format!("witnesses: {witnessed}"));
    }
    let begun = Instant::now();
    world.start_proxies(&[options.clone(), options])?;
    let ready_after = begun.elapsed();
    let ready_cpu_s = world.proxies_cpu_ns()? as f64 / 1e9;
    Ok(Outcome {
        phases,
        ready_after,
        ready_cpu_s,
        turns,
    })
}

fn change(istiod: &Istiod, plan: &Plan) -> Result<()> {
    let begun = Instant::now();
    let mut nonces = Vec::new();
    let batch = (plan.changes_per_second / 100).max(1);
    for (round, change) in (0..).zip(Unrest::new(plan.crowd, batch)) {
        let due = begun + BATCH_INTERVAL * round;
        if due >= begun + plan.changing {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        nonces = match change {
            Change::Updated(resources) => istiod.update(ADDRESS, resources),
            Change::Removed(names) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                istiod.remove(ADDRESS, &names)
            }
        };
    }
    await_answers(istiod, &nonces)
}

fn await_answers(istiod: &Istiod, nonces: &[String]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match istiod.all_answered(nonces) {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => return Err(RigError::new("sending resources to the proxies", error)),
            None if Instant::now() > deadline => {
                return Err(RigError::new(
                    "sending resources to the proxies",
                    "no answer in 120 s",
                ));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Cuts time into phases.
struct Meter<'a> {
    world: &'a World,
    echo: &'a Echo,
    begun: Instant,
    stolen: Duration,
    cpu_ns: u64,
    by_thread: BTreeMap<String, CpuTimes>,
}

impl<'a> Meter<'a> {
    fn new(world: &'a World, echo: &'a Echo) -> Result<Self> {
        echo.take();
        Ok(Self {
            world,
            echo,
            begun: Instant::now(),
            stolen: stolen()?,
            cpu_ns: world.proxies_cpu_ns()?,
            by_thread: by_thread(world)?,
        })
    }

    /// Ends a phase, and begins the next one.
    fn phase(&mut self, name: &'static str) -> Result<Phase> {
        let cpu_ns = self.world.proxies_cpu_ns()?;
        let by_thread = by_thread(self.world)?;
        let stolen = stolen()?;
        let since = |(name, times): (&String, &CpuTimes)| {
            let before = self.by_thread.get(name).copied().unwrap_or_default();
            (name.clone(), times.since(before))
        };
        let resident = self.world.nodes.iter().map(|node| node.proxy().resident_bytes());
        let phase = Phase {
            name,
            took: self.begun.elapsed(),
            echo_us: self.echo.take(),
            cpu_s: (cpu_ns - self.cpu_ns) as f64 / 1e9,
            by_thread: by_thread.iter().map(since).collect(),
            resident_bytes: resident.sum::<Result<u64>>()?,
            stolen: stolen - self.stolen,
        };
        (self.begun, self.cpu_ns) = (Instant::now(), cpu_ns);
        self.by_thread = by_thread;
        self.stolen = stolen;
        Ok(phase)
    }
}

fn stolen() -> Result<Duration> {
    machine::stolen().map_err(|error| RigError::new("reading what the host took", error))
}

/// Of both proxies.
fn by_thread(world: &World) -> Result<BTreeMap<String, CpuTimes>> {
    let mut sums: BTreeMap<String, CpuTimes> = BTreeMap::new();
    for node in &world.nodes {
        for (name, times) in node.proxy().times_by_thread()? {
            *sums.entry(name).or_default() += times;
        }
    }
    Ok(sums)
}

/// The echo over all rounds of a variant. A phase of a second has a thousand messages: its 99.9th percentile is the
/// longest but one, which the machine decides; of several rounds together it says more.
#[derive(Debug, Default)]
pub struct Together(Vec<(&'static str, Latencies)>);

impl Together {
    pub fn add(&mut self, outcome: &Outcome) {
        for phase in &outcome.phases {
            match self.0.iter_mut().find(|(name, _)| *name == phase.name) {
                Some((_, echo_us)) => echo_us.add(&phase.echo_us),
                None => self.0.push((phase.name, phase.echo_us.clone())),
            }
        }
    }

    pub fn report(&self, name: &str) -> String {
        let rows = self.0.iter().map(|(phase, echo_us)| {
            let ms = |quantile| echo_us.all.value_at_quantile(quantile) as f64 / 1e3;
            let (p50, p99, p999) = (ms(0.5), ms(0.99), ms(0.999));
            let (max, messages) = (echo_us.all.max() as f64 / 1e3, echo_us.all.len());
            let longest = median(&echo_us.longest) / 1e3;
            let held_up = echo_us.held_up;
            let own = echo_us.own.value_at_quantile(0.999) as f64 / 1e3;
            format!(
                "| {name} | {phase} | {messages} | {p50:.3} | {p99:.3} | {p999:.3} | {max:.3} | {longest:.3} | {held_up} \
                 | {own:.3} |\n"
            )
        });
        let head = format!(
            "| all rounds | phase | messages | echo p50 ms | p99 ms | p99.9 ms | max ms | longest of {WINDOW}, median ms \
             | held up by others | p99.9 without that ms |\n|---|---|---|---|---|---|---|---|---|---|\n"
        );
        std::iter::once(head).chain(rows).collect()
    }
}

impl Outcome {
    pub fn report(&self, name: &str, plan: &Plan) -> String {
        let mut out = String::new();
        self.write(&mut out, name, plan)
            .expect("invariant: writing to a string cannot fail");
        out
    }

    fn write(&self, out: &mut String, name: &str, plan: &Plan) -> std::fmt::Result {
        let Crowd { workloads, services } = plan.crowd;
        writeln!(out, "### {name}: {workloads} workloads in {services} services\n")?;
        writeln!(
            out,
            "| phase | seconds | echo p50 ms | p99 ms | p99.9 ms | max ms | CPU s of both proxies | MiB of one proxy | \
             more than quiet | held up by others | p99.9 without that ms |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|---|---|---|---|---|")?;
        let mib = |bytes: u64| bytes as f64 / 2.0 / f64::from(1 << 20);
        let quiet = self.phases.first().map_or(0.0, |phase| mib(phase.resident_bytes));
        for phase in &self.phases {
            let ms = |quantile| phase.echo_us.all.value_at_quantile(quantile) as f64 / 1e3;
            writeln!(
                out,
                "| {} | {:.2} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} | {:.1} | {:+.1} | {} | {:.3} |",
                phase.name,
                phase.took.as_secs_f64(),
                ms(0.5),
                ms(0.99),
                ms(0.999),
                phase.echo_us.all.max() as f64 / 1e3,
                phase.cpu_s,
                mib(phase.resident_bytes),
                mib(phase.resident_bytes) - quiet,
                phase.echo_us.held_up,
                phase.echo_us.own.value_at_quantile(0.999) as f64 / 1e3,
            )?;
        }
        writeln!(
            out,
            "\nCPU s of both proxies, by the names of their threads (how long each waited for a CPU on average, us):\n"
        )?;
        for phase in &self.phases {
            let of_thread = phase.by_thread.iter();
            let threads = of_thread.map(|(name, times)| {
                let waited_us = times.waited_ns as f64 / 1e3 / times.runs.max(1) as f64;
                format!("{name} {:.3} ({waited_us:.0})", times.ran_ns as f64 / 1e9)
            });
            let threads: Vec<String> = threads.collect();
            writeln!(out, "- {}: {}", phase.name, threads.join(", "))?;
        }
        let stolen = self
            .phases
            .iter()
            .map(|phase| format!("{} {}", phase.name, phase.stolen.as_millis()));
        let stolen: Vec<String> = stolen.collect();
        writeln!(
            out,
            "\nWhat the host took from the machine's CPUs, ms: {}",
            stolen.join(", ")
        )?;
        writeln!(
            out,
            "\nBoth started anew: ready after {:.2} s, {:.2} CPU s.",
            self.ready_after.as_secs_f64(),
            self.ready_cpu_s
        )?;
        for line in &self.turns {
            writeln!(out, "- {line}")?;
        }
        Ok(())
    }
}
