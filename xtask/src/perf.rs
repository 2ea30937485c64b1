//! `cargo xtask perf`: builds the proxy and the load tools in release mode and compares both drivers, the direct
//! path and, with `--against`, another binary. `scale` and `pods` measure the control plane: the proxies alone on the
//! first CPU, everything else on the second. `endpoints` and `policies` measure a decision, without a proxy.

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
    let without_proxies = rest
        .first()
        .is_some_and(|first| ["endpoints", "policies"].contains(&first.as_str()));
    let binary = match without_proxies {
        true => None,
        false => Some(build_proxy("release")?),
    };
    process::run(&mut cargo(&[
        "build",
        "--quiet",
        "--release",
        "--package",
        "uztunnel-perf",
    ]))?;
    let tool = target_dir().join("release").join("uztunnel-perf");
    let control_plane = rest
        .first()
        .is_some_and(|first| ["scale", "pods"].contains(&first.as_str()));
    let mut command = Command::new(tool);
    command.args(rest);
    if control_plane {
        command.args(["--cpu", "0"]);
    }
    for (binary, driver) in binary
        .iter()
        .flat_map(|it| ["uring", "epoll"].map(|driver| (it, driver)))
    {
        command
            .arg("--variant")
            .arg(format!("{driver}={},UZTUNNEL_IO={driver}", binary.display()));
    }
    if let Some(against) = against.filter(|_| !without_proxies) {
        command.arg("--variant").arg(format!("against={against}"));
        if !control_plane {
            command.args(["--base", "against"]);
        }
    }
    process::run(&mut command)
}
