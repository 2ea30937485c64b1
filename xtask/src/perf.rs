//! `cargo xtask perf`: builds the proxy and the load tools in release mode and compares both drivers, the direct
//! path and, with `--against`, another binary.

use std::process::Command;

use crate::packages;
use crate::process::{self, Outcome, build_proxy, cargo, target_dir};

pub fn run(arguments: &[String]) -> Outcome {
    let mut against = None;
    let mut rest = Vec::new();
    let mut given = arguments.iter();
    while let Some(argument) = given.next() {
        if argument == "--against" {
            against = Some(
                given
                    .next()
                    .ok_or("--against needs the path of a binary")?
                    .as_str(),
            );
        } else {
            rest.push(argument.clone());
        }
    }
    packages::ensure(&[packages::BUILD, packages::NETWORK])?;
    let binary = build_proxy("release")?;
    process::run(&mut cargo(&[
        "build",
        "--quiet",
        "--release",
        "--package",
        "uztunnel-perf",
    ]))?;
    let mut command = Command::new(target_dir().join("release").join("uztunnel-perf"));
    command.args(rest);
    for driver in ["uring", "epoll"] {
        command
            .arg("--variant")
            .arg(format!("{driver}={},UZTUNNEL_IO={driver}", binary.display()));
    }
    if let Some(against) = against {
        command.arg("--variant").arg(format!("against={against}"));
        command.args(["--base", "against"]);
    }
    process::run(&mut command)
}
