//! `cargo xtask test`: the whole test run, step by step, and a closing summary. CI runs exactly this.
//!
//! A failed step does not hide the later ones: all run, and the summary says which failed.

use std::time::{Duration, Instant};

use crate::journeys::{self, Journeys};
use crate::packages;
use crate::process::{Outcome, Tally, build_proxy, cargo, root, run, run_tests};
use crate::sim;

/// Steps with a test program of their own place, in this order; what else lies in `tests/` runs after them.
const FIRST: [&str; 3] = ["tidy", "contract", "interop"];
/// Run after them by steps of their own: simulated worlds, and the journeys once per pair of drivers.
const LATER: [&str; 2] = ["sim", "journeys"];

struct Summary {
    steps: Vec<(String, Duration, Outcome)>,
    tally: Tally,
}

impl Summary {
    fn step(&mut self, name: &str, action: impl FnOnce(&mut Tally) -> Outcome) {
        println!("\n=== {name}");
        let started = Instant::now();
        let outcome = action(&mut self.tally);
        if let Err(message) = &outcome {
            println!("=== {name}: FAILED: {message}");
        }
        self.steps.push((name.to_owned(), started.elapsed(), outcome));
    }

    fn close(self) -> Outcome {
        println!("\n=== summary");
        for (name, elapsed, outcome) in &self.steps {
            let word = if outcome.is_ok() { "ok" } else { "FAILED" };
            println!("{word:>7} {:>7.1} s  {name}", elapsed.as_secs_f64());
        }
        for complaint in &self.tally.complaints {
            println!("  {complaint}");
        }
        println!("{} passed, {} failed", self.tally.passed, self.tally.failed);
        let failed: Vec<&str> = self
            .steps
            .iter()
            .filter(|(_, _, outcome)| outcome.is_err())
            .map(|(name, ..)| name.as_str())
            .collect();
        if failed.is_empty() {
            Ok(())
        } else {
            Err(format!("failed: {}", failed.join(", ")))
        }
    }
}

pub fn run_tidy(arguments: &[String]) -> Outcome {
    no_arguments("tidy", arguments)?;
    run(&mut cargo(&[
        "test",
        "--quiet",
        "--package",
        "uztunnel",
        "--test",
        "tidy",
    ]))
}

pub fn run_all(arguments: &[String]) -> Outcome {
    no_arguments("test", arguments)?;
    packages::ensure(&[packages::BUILD, packages::NETWORK, packages::INTEROP])?;
    let mut summary = Summary {
        steps: Vec::new(),
        tally: Tally::default(),
    };
    summary.step("format", |_| run(&mut cargo(&["fmt", "--all", "--check"])));
    summary.step("clippy", |_| {
        run(&mut cargo(&[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    });
    summary.step("clippy sim", |_| sim::run_clippy());
    summary.step("unit", |tally| {
        run_tests(&mut cargo(&["test", "--workspace", "--lib", "--bins"]), tally)
    });
    summary.step("rig", |tally| {
        run_tests(
            &mut cargo(&["test", "--package", "uztunnel-rig", "--test", "rig"]),
            tally,
        )
    });
    for name in test_programs()? {
        summary.step(&name, |tally| {
            run_tests(
                &mut cargo(&["test", "--package", "uztunnel", "--test", &name]),
                tally,
            )
        });
    }
    summary.step("contract sim", sim::run_contract);
    summary.step("sim", sim::run_all);
    run_journeys(&mut summary);
    summary.close()
}

/// Every pair of drivers, most with istiod's stand-in as control plane and one with the mesh file; then, on one pair
/// each, the ring as the oldest kernel offers it and the reference record layer; last the demo.
fn run_journeys(summary: &mut Summary) {
    let mut binary = None;
    summary.step("build", |_| {
        binary = Some(build_proxy(journeys::PROFILE)?);
        Ok(())
    });
    let Some(binary) = binary else { return };
    for pair in journeys::PAIRS {
        let control_plane = if pair == "epoll-uring" { "file" } else { "istiod" };
        summary.step(&format!("journeys {pair}, {control_plane}"), |tally| {
            Journeys::new(pair, control_plane).run(&binary, tally)
        });
    }
    for variable in ["UZTUNNEL_RING_FEATURES=5.15", "UZTUNNEL_TLS=buffered"] {
        summary.step(&format!("journeys uring {variable}"), |tally| {
            let mut journeys = Journeys::new("uring", "istiod");
            journeys.variables.push(variable);
            journeys.run(&binary, tally)
        });
    }
    summary.step("demo", |tally| {
        let mut command = cargo(&["test", "--package", "xtask", "--test", "demo"]);
        run_tests(command.env("UZTUNNEL_BIN", &binary), tally)
    });
}

/// Names of the integration tests: `tests/<name>.rs` and `tests/<name>/main.rs`.
fn test_programs() -> Result<Vec<String>, String> {
    let folder = root().join("tests");
    let entries =
        std::fs::read_dir(&folder).map_err(|error| format!("reading {}: {error}", folder.display()))?;
    let mut names: Vec<String> = Vec::new();
    for entry in entries.flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if let Some(name) = file.strip_suffix(".rs") {
            names.push(name.to_owned());
        } else if entry.path().join("main.rs").is_file() {
            names.push(file);
        }
    }
    names.retain(|name| !LATER.contains(&name.as_str()));
    let rank = |name: &String| {
        FIRST
            .iter()
            .position(|first| first == name)
            .unwrap_or(FIRST.len())
    };
    names.sort_by_key(|name| (rank(name), name.clone()));
    Ok(names)
}

fn no_arguments(command: &str, arguments: &[String]) -> Outcome {
    match arguments.first() {
        None => Ok(()),
        Some(argument) => Err(format!("{command} {argument}: {command} takes no arguments")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_integration_tests_are_found_and_tidy_comes_first() {
        let names = test_programs().expect("the folder is readable");
        assert_eq!(names.first().map(String::as_str), Some("tidy"));
        assert!(
            !names
                .iter()
                .any(|name| LATER.contains(&name.as_str()) || name == "support"),
            "{names:?}"
        );
    }
}
