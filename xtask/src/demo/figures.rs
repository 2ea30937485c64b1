//! The second part: what it costs, measured now, beside the same pods' direct path.

use std::time::Duration;

use uztunnel_perf::bench::{Sample, measure};
use uztunnel_perf::machine;
use uztunnel_perf::scenario::{ALL, Scenario};
use uztunnel_perf::server::Server;
use uztunnel_rig::{Result, RigError, World};

const SLICE: Duration = Duration::from_secs(2);

pub fn show(world: &World) -> Result<()> {
    let start = |pod: &str| {
        Server::start(&world.pod(pod).namespace)
            .map_err(|error| RigError::new("starting the load server", error))
    };
    let (tunnelled, direct) = (start("shop")?, start("stranger")?);
    println!(
        "\nWhat it costs ({}; clients and servers run on the same CPUs):",
        machine::describe()
    );
    println!(
        "  {:<42} {:>20} {:>12} {:>12} {:>22}",
        "", "rate", "p50", "p99", "CPU of both proxies"
    );
    for scenario in ALL {
        let through = measure(world, &tunnelled, ["web", "shop"], scenario, SLICE)?;
        let beside = measure(world, &direct, ["visitor", "stranger"], scenario, SLICE)?;
        line(&format!("{}: uztunnel", scenario.what), scenario, &through, true);
        line(
            &format!("{:indent$}direct", "", indent = scenario.what.len() + 2),
            scenario,
            &beside,
            false,
        );
    }
    Ok(())
}

fn line(what: &str, scenario: &Scenario, sample: &Sample, proxied: bool) {
    let (rate, p50, p99) = if scenario.is_bulk() {
        (
            format!("{:.1} Gbit/s", sample.rate * 8e-9),
            "-".to_owned(),
            "-".to_owned(),
        )
    } else {
        let ms = |us: f64| format!("{:.3} ms", us / 1e3);
        (
            format!("{:.0} requests/s", sample.rate),
            ms(sample.p50_us),
            ms(sample.p99_us),
        )
    };
    let cost = match (proxied, scenario.is_bulk()) {
        (false, _) => "-".to_owned(),
        // Nanoseconds per byte are seconds per gigabyte.
        (true, true) => format!("{:.2} s per GB", sample.proxies_ns),
        (true, false) => format!("{:.1} us per request", sample.proxies_ns / 1e3),
    };
    println!("  {what:<62} {rate:>18} {p50:>10} {p99:>10} {cost:>21}");
}
