//! `cargo xtask journeys`: the tests that drive the real binary in network namespaces.

use std::path::{Path, PathBuf};

use crate::packages;
use crate::process::{Outcome, Tally, build_proxy, cargo, run_tests};

/// Drivers of node 0 and node 1, as the journeys' `JOURNEYS_IO` names them; `denied` is the proxy's own choice while
/// seccomp forbids io_uring.
pub const PAIRS: [&str; 5] = ["uring", "epoll", "uring-epoll", "epoll-uring", "denied"];

/// Who tells the proxies about the mesh, as `JOURNEYS_CONTROL_PLANE` names it.
const CONTROL_PLANES: [&str; 2] = ["istiod", "file"];

/// The profile that the journeys run: optimised, with debug assertions and poisoned buffers.
pub const PROFILE: &str = "journey";

/// How long a start takes is measured here: the other journeys would be part of it.
const ALONE: &str = "control_plane::started_without_its_control_plane";

/// They need programs that are not the project's.
const UNDER_A_CLUSTER: &str = "cluster::";

/// One run of all journeys, or of those that a filter leaves.
#[derive(Debug, Clone)]
pub struct Journeys {
    pub pair: &'static str,
    pub control_plane: &'static str,
    /// `NAME=VALUE` for every proxy.
    pub variables: Vec<&'static str>,
    filter: Option<String>,
    /// Where the programs of a real control plane are: the journeys that need them, unless the filter says others.
    cluster: Option<String>,
    /// What was asked for instead of `Lengths::of`.
    ttl: Option<u32>,
    duration: Option<u32>,
}

/// How long the journeys go on that could go on for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lengths {
    storm_seconds: u32,
    certificate_ttl_seconds: u32,
    certificate_seconds: u32,
    restarts: u32,
}

impl Lengths {
    /// Long where one driver is alone, and short where it only meets the other.
    fn of(pair: &str, variables: &[&str]) -> Self {
        if variables.is_empty() && matches!(pair, "uring" | "epoll") {
            Self {
                storm_seconds: 60,
                certificate_ttl_seconds: 10,
                certificate_seconds: 40,
                restarts: 50,
            }
        } else {
            Self {
                storm_seconds: 10,
                certificate_ttl_seconds: 4,
                certificate_seconds: 12,
                restarts: 5,
            }
        }
    }
}

pub fn run(arguments: &[String]) -> Outcome {
    let (mut journeys, binary) = parse(arguments)?;
    packages::ensure(&[packages::BUILD, packages::NETWORK, packages::INTEROP])?;
    let binary = match binary {
        Some(binary) => binary,
        None => build_proxy(PROFILE)?,
    };
    for journeys in &mut journeys {
        journeys.run(&binary, &mut Tally::default())?;
    }
    Ok(())
}

fn parse(arguments: &[String]) -> Result<(Vec<Journeys>, Option<PathBuf>), String> {
    let (mut io, mut binary) = ("uring".to_owned(), None);
    let mut wanted = Journeys::new(PAIRS[0], CONTROL_PLANES[0]);
    let mut given = arguments.iter();
    while let Some(argument) = given.next() {
        let mut value = || {
            given
                .next()
                .cloned()
                .ok_or_else(|| format!("{argument} needs a value"))
        };
        let seconds = |text: String| {
            let seconds = text.parse().ok().filter(|seconds| *seconds > 0);
            seconds.ok_or_else(|| format!("{argument} {text}: expected a number of seconds"))
        };
        match argument.as_str() {
            "--io" => io = value()?,
            "--control-plane" => wanted.control_plane = one_of(argument, &value()?, &CONTROL_PLANES)?,
            "--cluster" => wanted.cluster = Some(value()?),
            "--ttl" => wanted.ttl = Some(seconds(value()?)?),
            "--duration" => wanted.duration = Some(seconds(value()?)?),
            "--binary" => binary = Some(PathBuf::from(value()?)),
            option if option.starts_with('-') => {
                return Err(format!(
                    "journeys {option}: expected a filter, --io, --control-plane, --cluster, --ttl, --duration or --binary"
                ));
            }
            text => wanted.filter = Some(text.to_owned()),
        }
    }
    let pairs = match io.as_str() {
        "all" => PAIRS.to_vec(),
        one => vec![one_of("--io", one, &PAIRS).map_err(|error| format!("{error}, all"))?],
    };
    let of_pair = |pair| Journeys {
        pair,
        ..wanted.clone()
    };
    Ok((pairs.into_iter().map(of_pair).collect(), binary))
}

fn one_of(option: &str, value: &str, known: &[&'static str]) -> Result<&'static str, String> {
    let found = known.iter().find(|it| **it == value).copied();
    found.ok_or_else(|| format!("{option} {value}: expected one of {}", known.join(", ")))
}

impl Journeys {
    pub fn new(pair: &'static str, control_plane: &'static str) -> Self {
        Self {
            pair,
            control_plane,
            variables: Vec::new(),
            filter: None,
            cluster: None,
            ttl: None,
            duration: None,
        }
    }

    /// All of them side by side, after those that would be disturbed by it; or those that the filter leaves.
    pub fn run(&self, binary: &Path, tally: &mut Tally) -> Outcome {
        if self.cluster.is_some() {
            let filter = self.filter.as_deref().unwrap_or(UNDER_A_CLUSTER);
            return self.run_some(binary, &[filter, "--test-threads=1"], tally);
        }
        let side_by_side = format!("--test-threads={}", side_by_side());
        if let Some(filter) = &self.filter {
            return self.run_some(binary, &[filter, &side_by_side], tally);
        }
        let alone = self.run_some(binary, &[ALONE, "--test-threads=1"], tally);
        self.run_some(binary, &["--skip", ALONE, &side_by_side], tally)
            .and(alone)
    }

    fn run_some(&self, binary: &Path, which: &[&str], tally: &mut Tally) -> Outcome {
        let lengths = Lengths::of(self.pair, &self.variables);
        let ttl = self.ttl.unwrap_or(lengths.certificate_ttl_seconds);
        let duration = self.duration.unwrap_or(lengths.certificate_seconds);
        let storm = self.duration.unwrap_or(lengths.storm_seconds);
        let mut command = cargo(&["test", "--package", "uztunnel", "--test", "journeys"]);
        command
            .env("UZTUNNEL_BIN", binary)
            .env("JOURNEYS_IO", self.pair)
            .env("JOURNEYS_CONTROL_PLANE", self.control_plane)
            .env("JOURNEYS_VARIABLES", self.variables.join(" "))
            .env("JOURNEYS_STORM_SECONDS", storm.to_string())
            .env("JOURNEYS_TTL_SECONDS", ttl.to_string())
            .env("JOURNEYS_DURATION_SECONDS", duration.to_string())
            .env("JOURNEYS_RESTARTS", lengths.restarts.to_string());
        if let Some(folder) = &self.cluster {
            // The tests run in a folder of their own.
            let absolute = std::path::absolute(folder);
            command.env(
                "CLUSTER_PROGRAMS",
                absolute.map_err(|error| format!("--cluster {folder}: {error}"))?,
            );
        }
        command.arg("--").args(which);
        if self.cluster.is_none() {
            command.args(["--skip", UNDER_A_CLUSTER]);
        }
        if self.duration.is_some() {
            // Somebody waits for the figures.
            command.arg("--show-output");
        }
        run_tests(&mut command, tally)
    }
}

/// Journeys wait for about half of their time: three for every two CPUs.
fn side_by_side() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    cpus + cpus.div_ceil(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Journeys>, String> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        super::parse(&words).map(|(journeys, _)| journeys)
    }

    #[test]
    fn options_choose_pairs_control_plane_and_lengths() {
        let all = parse("storm --io all --control-plane file").expect("valid");
        assert_eq!(all.len(), PAIRS.len());
        for (journeys, pair) in all.iter().zip(PAIRS) {
            assert_eq!((journeys.pair, journeys.control_plane), (pair, "file"));
            assert_eq!(journeys.filter.as_deref(), Some("storm"));
        }
        let long = parse("certificates --ttl 60 --duration 300").expect("valid");
        assert_eq!((long[0].pair, long[0].control_plane), ("uring", "istiod"));
        assert_eq!((long[0].ttl, long[0].duration), (Some(60), Some(300)));
        let real = parse("--cluster programs").expect("valid");
        assert_eq!(real[0].cluster.as_deref(), Some("programs"));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (text, expected) in [
            ("--io kqueue", "--io kqueue: expected one of uring,"),
            (
                "--control-plane none",
                "--control-plane none: expected one of istiod, file",
            ),
            ("--duration long", "--duration long: expected a number of seconds"),
            ("--ttl", "--ttl needs a value"),
            ("--cluster", "--cluster needs a value"),
            ("--loud", "journeys --loud: expected"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
