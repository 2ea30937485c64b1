//! `cargo xtask journeys`: the tests that drive the real binary in network namespaces.

use std::path::{Path, PathBuf};

use crate::packages;
use crate::process::{Outcome, Tally, build_proxy, cargo, run_tests};

/// Drivers of node 0 and node 1, as the journeys' `JOURNEYS_IO` names them; `denied` is the proxy's own choice while
/// seccomp forbids io_uring.
pub const PAIRS: [&str; 5] = ["uring", "epoll", "uring-epoll", "epoll-uring", "denied"];

/// The reset storm is long where one driver is alone, and short where it only meets the other.
fn storm_seconds(pair: &str, variables: &[&str]) -> &'static str {
    if variables.is_empty() && matches!(pair, "uring" | "epoll") {
        "60"
    } else {
        "10"
    }
}

/// The profile that the journeys run: optimised, with debug assertions and poisoned buffers.
pub const PROFILE: &str = "journey";

pub fn run(arguments: &[String]) -> Outcome {
    let (mut filter, mut io, mut binary) = (None, "uring".to_owned(), None);
    let mut given = arguments.iter();
    while let Some(argument) = given.next() {
        let mut value = || {
            given
                .next()
                .cloned()
                .ok_or_else(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "--io" => io = value()?,
            "--binary" => binary = Some(PathBuf::from(value()?)),
            text => filter = Some(text.to_owned()),
        }
    }
    let pairs: Vec<&str> = match io.as_str() {
        "all" => PAIRS.to_vec(),
        one if PAIRS.contains(&one) => vec![one],
        other => return Err(format!("--io {other}: expected one of {}, all", PAIRS.join(", "))),
    };
    packages::ensure(&[packages::BUILD, packages::NETWORK, packages::INTEROP])?;
    let binary = match binary {
        Some(binary) => binary,
        None => build_proxy(PROFILE)?,
    };
    for pair in pairs {
        run_pair(&binary, pair, &[], filter.as_deref(), &mut Tally::default())?;
    }
    Ok(())
}

/// Runs the journeys on one pair of drivers; `variables` go to every proxy.
pub fn run_pair(
    binary: &Path,
    pair: &str,
    variables: &[&str],
    filter: Option<&str>,
    tally: &mut Tally,
) -> Outcome {
    let mut command = cargo(&["test", "--package", "uztunnel", "--test", "journeys"]);
    command
        .env("UZTUNNEL_BIN", binary)
        .env("JOURNEYS_IO", pair)
        .env("JOURNEYS_VARIABLES", variables.join(" "))
        .env("JOURNEYS_STORM_SECONDS", storm_seconds(pair, variables));
    command.arg("--").args(filter);
    run_tests(&mut command, tally)
}
