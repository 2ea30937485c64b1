//! `cargo xtask perf`: builds the proxy and the load tools in release mode and compares both drivers, the direct
//! path and, with `--against`, another binary. `scale` and `pods` measure the control plane: the proxies alone on the
//! first CPU, everything else on the second. `endpoints`, `policies` and `changes` do without a proxy.

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
    let scenario = rest.first().map_or("", String::as_str);
    let without_proxies = ["endpoints", "policies", "changes"].contains(&scenario);
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
    let built = target_dir().join("release");
    if scenario == "changes" {
        return process::run(&mut Command::new(built.join("uztunnel-perf-changes")));
    }
    let control_plane = ["scale", "pods"].contains(&scenario);
    let mut command = Command::new(built.join("uztunnel-perf"));
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
