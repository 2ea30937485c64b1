//! `cargo xtask sim`: the whole data path under a seeded scheduler, in virtual time.

use crate::journeys;
use crate::packages;
use crate::process::{Outcome, Tally, cargo, run, run_tests};

/// The simulation is a test program of its own, optimised and with every debug assertion.
const ARGUMENTS: [&str; 10] = [
    "test",
    "--quiet",
    "--package",
    "uztunnel",
    "--profile",
    journeys::PROFILE,
    "--features",
    "sim",
    "--test",
    "sim",
];

/// With the options of the simulation itself; it explains them when it does not know one.
pub fn run_with(options: &[String]) -> Outcome {
    packages::ensure(&[packages::BUILD])?;
    let mut command = cargo(&ARGUMENTS);
    command.arg("--").args(options);
    run(&mut command)
}

/// What CI runs: known seeds, determinism, planted bugs, new seeds.
pub fn run_all(tally: &mut Tally) -> Outcome {
    run_tests(&mut cargo(&ARGUMENTS), tally)
}

/// The contract list on the simulated driver, beside the drivers of the kernel.
pub fn run_contract(tally: &mut Tally) -> Outcome {
    let arguments = [
        "test",
        "--package",
        "uztunnel",
        "--features",
        "sim",
        "--test",
        "contract",
        "sim",
    ];
    run_tests(&mut cargo(&arguments), tally)
}

/// The warnings that only the code behind the feature would give.
pub fn run_clippy() -> Outcome {
    run(&mut cargo(&[
        "clippy",
        "--quiet",
        "--package",
        "uztunnel",
        "--features",
        "sim",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}
