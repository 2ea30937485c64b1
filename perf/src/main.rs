//! `uztunnel-perf SCENARIO --variant NAME=BINARY[,VARIABLE=VALUE]... [--base NAME] [--rounds N] [--slice-ms N]
//! [--workers N]`: measures the variants and the direct path side by side and prints Markdown. `tenants` beside the
//! scenarios: what the storm of one pod costs another one of its node.
//!
//! `uztunnel-perf scale --variant ... [--rounds N] [--workers N] [--workloads N] [--services N] [--changes N]
//! [--seconds N] [--cpu N] [--witnesses N]` and `uztunnel-perf pods --variant ... [--rounds N] [--workers N] [--pods N] [--cpu N]`:
//! the control plane, one variant after the other; with `--cpu` the proxies are kept on that CPU, and all else on the
//! others.
//!
//! `uztunnel-perf endpoints [ROUNDS]`: what it costs to choose an endpoint of services of several sizes.
//! `uztunnel-perf policies [ROUNDS]`: what it costs to authorize a connection where there are many policies.
//!
//! `cargo xtask perf` builds the binaries and calls it.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use uztunnel_perf::awake::Awake;
use uztunnel_perf::bench::{Variant, run_rounds};
use uztunnel_perf::scenario::{Scenario, names};
use uztunnel_perf::{endpoints, machine, pods, policies, report, scale, seats, tenants};
use uztunnel_rig::ProxyOptions;

struct Arguments {
    scenarios: Vec<Scenario>,
    tenants: bool,
    variants: Vec<(String, ProxyOptions)>,
    base: Option<String>,
    rounds: usize,
    slice: Duration,
}

fn main() -> ExitCode {
    let mut given = std::env::args().skip(1).peekable();
    let control_plane = ["scale", "pods"]
        .into_iter()
        .find(|name| given.peek().is_some_and(|first| first == name));
    let outcome = match control_plane {
        _ if given.peek().is_some_and(|first| first == "endpoints") => {
            run_decision("endpoints", given.nth(1), endpoints::run)
        }
        _ if given.peek().is_some_and(|first| first == "policies") => {
            run_decision("policies", given.nth(1), policies::run)
        }
        Some(name) => parse_control_plane(given.skip(1)).and_then(|arguments| match name {
            "scale" => run_scale(&arguments),
            _ => run_pods(&arguments),
        }),
        None => parse(given).and_then(|arguments| run(&arguments)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("uztunnel-perf: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    if arguments.tenants {
        let _awake = Awake::keep_or_say();
        let table = tenants::run(&arguments.variants, arguments.rounds, arguments.slice);
        println!(
            "{}\n\n{}",
            machine::describe(),
            table.map_err(|error| error.to_string())?
        );
    }
    if arguments.scenarios.is_empty() {
        return Ok(());
    }
    let mut variants = vec![Variant::direct().map_err(|error| error.to_string())?];
    for (name, options) in &arguments.variants {
        let variant = Variant::proxied(name, options).map_err(|error| format!("variant {name}: {error}"))?;
        variants.push(variant);
    }
    let names: Vec<&str> = variants.iter().map(|variant| variant.name.as_str()).collect();
    let base = match &arguments.base {
        Some(base) => Some(names.iter().position(|name| name == base).ok_or_else(|| {
            format!(
                "--base {base}: there is no such variant, expected one of {}",
                names.join(", ")
            )
        })?),
        None => None,
    };
    println!("{}\n", machine::describe());
    for scenario in &arguments.scenarios {
        let samples = run_rounds(&variants, scenario, arguments.rounds, arguments.slice);
        let samples = samples.map_err(|error| format!("scenario {}: {error}", scenario.name))?;
        println!("{}", report::table(scenario, &names, &samples, base));
    }
    Ok(())
}

fn run_decision(name: &str, rounds: Option<String>, run: fn(usize) -> String) -> Result<(), String> {
    let rounds = rounds.map_or(Ok(5), |rounds| parse_number(name, &rounds))?;
    println!("{}\n\n{}", machine::describe(), run(rounds));
    Ok(())
}

/// Of `scale` and `pods`.
struct ControlPlane {
    variants: Vec<(String, ProxyOptions)>,
    rounds: usize,
    pods: usize,
    plan: scale::Plan,
}

/// Where waiting for a CPU that sleeps would be a good part of what is measured.
fn run_scale(arguments: &ControlPlane) -> Result<(), String> {
    let _awake = Awake::keep_or_say();
    println!("{}\n", machine::describe());
    let mut together: Vec<_> = arguments
        .variants
        .iter()
        .map(|_| scale::Together::default())
        .collect();
    for round in 0..arguments.rounds {
        for ((name, options), together) in arguments.variants.iter().zip(&mut together) {
            let outcome =
                scale::run(options, &arguments.plan).map_err(|error| format!("variant {name}: {error}"))?;
            let name = format!("{name}, round {}", round + 1);
            println!("{}", outcome.report(&name, &arguments.plan));
            together.add(&outcome);
        }
    }
    for ((name, _), together) in arguments.variants.iter().zip(&together) {
        println!("{}", together.report(name));
    }
    Ok(())
}

fn run_pods(arguments: &ControlPlane) -> Result<(), String> {
    println!("{}\n\n{}", machine::describe(), pods::Outcome::head());
    for _ in 0..arguments.rounds {
        for (name, options) in &arguments.variants {
            let outcome =
                pods::run(options, arguments.pods).map_err(|error| format!("variant {name}: {error}"))?;
            println!("{}", outcome.report(name));
        }
    }
    Ok(())
}

fn parse_control_plane(mut given: impl Iterator<Item = String>) -> Result<ControlPlane, String> {
    let mut parsed = ControlPlane {
        variants: Vec::new(),
        rounds: 1,
        pods: 200,
        plan: scale::Plan::default(),
    };
    let (mut workers, mut cpu) = (2, None);
    while let Some(argument) = given.next() {
        let value = given.next().ok_or_else(|| format!("{argument} needs a value"))?;
        let number = || parse_number(&argument, &value);
        match argument.as_str() {
            "--variant" => parsed.variants.push(parse_variant(&value)?),
            "--rounds" => parsed.rounds = number()?,
            "--workers" => workers = number()?,
            "--pods" => parsed.pods = number()?,
            "--workloads" => parsed.plan.crowd.workloads = number()? as u32,
            "--services" => parsed.plan.crowd.services = number()? as u32,
            "--changes" => parsed.plan.changes_per_second = number()? as u32,
            "--seconds" => parsed.plan.changing = Duration::from_secs(number()? as u64),
            "--witnesses" => parsed.plan.witnesses = number()?,
            // The first CPU has the number 0.
            "--cpu" => {
                let number = value.parse();
                cpu = Some(number.map_err(|_| format!("--cpu {value}: expected the number of a CPU"))?);
            }
            other => return Err(format!("unknown option {other}")),
        }
    }
    if parsed.variants.is_empty() {
        return Err("which proxy? --variant NAME=BINARY".to_owned());
    }
    parsed.plan.cpu = cpu;
    if let Some(cpu) = cpu {
        seats::leave(cpu)
            .map_err(|error| format!("--cpu {cpu}: leaving that one to the proxies: {error}"))?;
    }
    for (_, options) in &mut parsed.variants {
        options.workers = workers;
        if let Some(cpu) = cpu {
            options.wrapper = ["taskset", "-c", &cpu.to_string()].map(str::to_owned).into();
        }
    }
    Ok(parsed)
}

fn parse(mut given: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let (mut scenarios, mut tenants) = (Vec::new(), false);
    let mut variants = Vec::new();
    let (mut base, mut rounds, mut slice_ms, mut workers) = (None, 5, 2_500, 2);
    while let Some(argument) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--variant" => variants.push(parse_variant(&value()?)?),
            "--base" => base = Some(value()?),
            "--rounds" => rounds = parse_number(&argument, &value()?)?,
            "--slice-ms" => slice_ms = parse_number(&argument, &value()?)?,
            "--workers" => workers = parse_number(&argument, &value()?)?,
            "tenants" => tenants = true,
            name => {
                let named = Scenario::named(name);
                scenarios
                    .extend(named.ok_or_else(|| format!("unknown scenario {name}: expected {}", names()))?);
            }
        }
    }
    if scenarios.is_empty() && !tenants {
        return Err(format!("which scenario? One of {}", names()));
    }
    for (_, options) in &mut variants {
        options.workers = workers;
    }
    Ok(Arguments {
        scenarios,
        tenants,
        variants,
        base,
        rounds,
        slice: Duration::from_millis(slice_ms as u64),
    })
}

/// `NAME=BINARY[,VARIABLE=VALUE]...`
fn parse_variant(text: &str) -> Result<(String, ProxyOptions), String> {
    let malformed = || format!("--variant {text}: expected NAME=BINARY[,VARIABLE=VALUE]...");
    let (name, rest) = text.split_once('=').ok_or_else(malformed)?;
    let mut parts = rest.split(',');
    let binary = Path::new(parts.next().ok_or_else(malformed)?);
    if !binary.is_file() {
        return Err(format!("--variant {text}: there is no file {}", binary.display()));
    }
    let mut options = ProxyOptions::new(binary);
    for setting in parts {
        let (variable, value) = setting.split_once('=').ok_or_else(malformed)?;
        options = options.variable(variable, value);
    }
    Ok((name.to_owned(), options))
}

fn parse_number(argument: &str, value: &str) -> Result<usize, String> {
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        Ok(_) | Err(_) => Err(format!("{argument} {value}: expected a whole number above 0")),
    }
}
