//! The whole data path under a seeded scheduler: worlds of proxies and applications in virtual time, with faults.

mod actor;
mod authority;
mod mesh;
mod oracle;
mod pattern;
mod plan;
mod proxy;
mod world;

use plan::Plan;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let from: u64 = arguments.first().map_or(0, |n| n.parse().expect("a seed"));
    let to: u64 = arguments.get(1).map_or(from + 1, |n| n.parse().expect("a seed"));
    let trace = arguments.get(2).is_some();
    let start = std::time::Instant::now();
    let mut connections = 0;
    let mut found = 0;
    for seed in from..to {
        let plan = Plan::draw(seed);
        let report = world::run(&plan, None, trace);
        connections += report.connections;
        if trace {
            for line in &report.trace {
                println!("{line}");
            }
        }
        if let Some(finding) = &report.finding {
            found += 1;
            println!("seed {seed}: {} {finding:?}", report.hash);
        }
        if to - from < 10 {
            println!(
                "seed {seed}: hash {:x} events {} connections {} time {:?}",
                report.hash, report.events, report.connections, report.virtual_time
            );
        }
    }
    println!(
        "{} seeds, {found} findings, {connections} connections, {:.0}/s",
        to - from,
        connections as f64 / start.elapsed().as_secs_f64()
    );
}
