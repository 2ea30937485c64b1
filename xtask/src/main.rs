//! `cargo xtask`: everything that is done with this repository.
//!
//! | command | what |
//! |---|---|
//! | `demo [--control-plane] [--iptables] [--keep] [--io ...]` | two nodes, four pods, real traffic, shown to a person |
//! | `test` | the whole test run, as CI does it |
//! | `tidy` | the style rules only |
//! | `journeys [FILTER] [--io ...] [--control-plane ...]` | the tests in network namespaces |
//! | `sim [--seed N] [--seeds N..M] [--minutes T] ...` | the data path in simulated worlds |
//! | `perf SCENARIO [--against BINARY] ...` | measurements side by side |
//! | `fuzz TARGET [SECONDS]` | libFuzzer on one target |

mod checks;
mod demo;
mod fuzz;
mod journeys;
mod packages;
mod perf;
mod process;
mod sim;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <command>

  demo [--control-plane] [--iptables] [--keep] [--io uring|epoll|mixed] [--binary PATH]
        two nodes, four pods and real traffic; --control-plane adds a stand-in for istiod, --keep leaves it running
        until Ctrl-C
  test
        the whole test run: format, clippy, unit, contract, interop, tidy, fuzz corpora, simulation, journeys, demo
  tidy
        the style rules only
  journeys [FILTER] [--io uring|epoll|uring-epoll|epoll-uring|denied|all] [--control-plane istiod|file]
           [--ttl SECONDS] [--duration SECONDS] [--binary PATH] [--cluster FOLDER]
        tests in network namespaces; --duration and --ttl are for those that go on for a while: resets, and
        certificates that are renewed under load; --cluster: those under istiod itself, whose programs are in FOLDER
  sim [--seed N | --seeds N..M | --minutes T | --hunt] [--trace] ...
        the data path in simulated worlds with faults; without options what CI runs
  perf SCENARIO... [--against PATH] [--rounds N] [--slice-ms N] [--workers N]
        rr1, rr64, connect, bulk1, bulk4 or all: both drivers, the direct path and PATH side by side
  perf scale [--against PATH] [--rounds N] [--workers N] [--workloads N] [--services N] [--changes N] [--seconds N]
        [--witnesses N]
        a large mesh loaded into two proxies, then changed all the time, and what an echo through them feels of it; a
        witness tells what the machine alone makes of a turn of 20 us
  perf pods [--against PATH] [--rounds N] [--workers N] [--pods N]
        pods announced at once: time until all have certificates, memory of each
  perf endpoints [ROUNDS]
        what it costs to choose an endpoint of a service of ten and of a thousand
  perf changes
        what it costs to decode, apply and publish changes of a large mesh, without a proxy
  fuzz TARGET [SECONDS]
        libFuzzer on one target of tests/fuzz
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = arguments.split_first() else {
        eprint!("{USAGE}");
        return ExitCode::FAILURE;
    };
    let outcome = match command.as_str() {
        "demo" => demo::run(rest),
        "test" => checks::run_all(rest),
        "tidy" => checks::run_tidy(rest),
        "journeys" => journeys::run(rest),
        "sim" => sim::run_with(rest),
        "perf" => perf::run(rest),
        "fuzz" => fuzz::run(rest),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        other => Err(format!("unknown command {other}\n\n{USAGE}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
