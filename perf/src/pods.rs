//! Many pods announced to one node at once, each with an identity of its own: how long until all have certificates,
//! and what a pod costs in memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use uztunnel_rig::agent::Answer;
use uztunnel_rig::authority::Authority;
use uztunnel_rig::ca::{Ca, Script};
use uztunnel_rig::proxy::Output;
use uztunnel_rig::{Blueprint, PodSpec, ProxyOptions, Result, RigError, World};

/// What one run showed.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    pub pods: usize,
    /// From the first announcement until the agent had an answer to every one.
    pub announced_after: Duration,
    /// And until the CA had answered for the last identity.
    pub certified_after: Duration,
    pub cpu_s: f64,
    pub resident_before: u64,
    pub resident_after: u64,
}

/// Until freed memory is given back.
const SETTLING: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);
const ROOTS_FILE: &str = "ca-root.pem";

pub fn run(options: &ProxyOptions, pods: usize) -> Result<Outcome> {
    let mut blueprint = Blueprint {
        nodes: 1,
        label: "pods".to_owned(),
        ..Blueprint::default()
    };
    for number in 0..pods {
        blueprint = blueprint.pod(PodSpec::new(&format!("p{number}"), 0));
    }
    let mut world = World::build(blueprint)?;
    let node = &world.nodes[0];
    for pod in &world.pods {
        node.agent.forget(&pod.uid);
    }
    let authority = Arc::new(Authority::new("the mesh")?);
    let script = Script::signing(&authority, Duration::from_secs(24 * 3600));
    let server = authority.server(&["127.0.0.1"])?;
    let ca = node.namespace.run(|| Ca::start(server, script))?;
    let roots = world.scratch().join(ROOTS_FILE);
    std::fs::write(&roots, authority.pem()).map_err(|error| RigError::new("writing the CA's root", error))?;
    let options = ProxyOptions {
        output: Output::Collected,
        ..options.clone()
    }
    .variable("FAKE_CA", "false")
    .variable("CA_ADDRESS", &format!("https://{}", ca.address()))
    .variable("CA_ROOT_CA", ROOTS_FILE);
    world.start_proxies(&[options])?;
    std::thread::sleep(SETTLING);

    let node = &world.nodes[0];
    let resident_before = node.proxy().resident_bytes()?;
    let cpu_before = node.proxy().cpu_ns()?;
    let begun = Instant::now();
    for pod in &world.pods {
        let answer = node
            .agent
            .add(&pod.uid, pod.workload_info(), pod.namespace.fd())?;
        if answer != Answer::Ack {
            return Err(RigError::new("announcing a pod", format!("{answer:?}")));
        }
    }
    let announced_after = begun.elapsed();
    while ca.service.answered() < pods {
        if begun.elapsed() > PATIENCE {
            let cause = format!(
                "{} certificates of {pods} after {PATIENCE:?}",
                ca.service.answered()
            );
            return Err(RigError::new("waiting for certificates", cause));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let certified_after = begun.elapsed();
    std::thread::sleep(SETTLING);
    Ok(Outcome {
        pods,
        announced_after,
        certified_after,
        cpu_s: (node.proxy().cpu_ns()? - cpu_before) as f64 / 1e9,
        resident_before,
        resident_after: node.proxy().resident_bytes()?,
    })
}

impl Outcome {
    pub fn report(&self, name: &str) -> String {
        let more = self.resident_after.saturating_sub(self.resident_before);
        format!(
            "| {name} | {} | {:.2} | {:.2} | {:.2} | {:.1} | {:.1} | {:.1} |",
            self.pods,
            self.announced_after.as_secs_f64(),
            self.certified_after.as_secs_f64(),
            self.cpu_s,
            self.resident_before as f64 / f64::from(1 << 20),
            self.resident_after as f64 / f64::from(1 << 20),
            more as f64 / 1024.0 / self.pods as f64
        )
    }

    /// Above the reports.
    pub fn head() -> &'static str {
        "| variant | pods | announced after s | certified after s | CPU s | MiB before | MiB after | KiB per pod |\n\
         |---|---|---|---|---|---|---|---|"
    }
}
