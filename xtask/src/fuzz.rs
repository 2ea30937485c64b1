//! `cargo xtask fuzz`: one libFuzzer target of `tests/fuzz`, on the stable toolchain.
//!
//! The coverage instrumentation is an LLVM pass and needs no nightly compiler; only the address sanitizer would, and
//! the code under test is free of `unsafe`. New inputs that reach new code are kept in the corpus, which the
//! ordinary test run replays; an input that fails is kept in `tests/fuzz/artifacts`.

use crate::packages;
use crate::process::{self, Outcome, cargo, root};

const SECONDS_DEFAULT: &str = "60";

/// What cargo-fuzz asks of LLVM, without the sanitizer.
const INSTRUMENTATION: &str = "--cfg fuzzing -C passes=sancov-module \
    -C llvm-args=-sanitizer-coverage-level=4 -C llvm-args=-sanitizer-coverage-trace-compares \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table \
    -C codegen-units=1 -C debug-assertions";

fn run_target(target: &str, seconds: &str) -> Outcome {
    let folder = root().join("tests/fuzz");
    let corpus = folder.join("corpus").join(target);
    if !corpus.is_dir() {
        let known = std::fs::read_dir(folder.join("corpus")).map(|entries| {
            let mut names: Vec<String> = entries
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names.join(", ")
        });
        let known = known.unwrap_or_default();
        return Err(format!(
            "fuzz {target}: there is no such target, expected one of {known}"
        ));
    }
    let artifacts = folder.join("artifacts").join(target);
    std::fs::create_dir_all(&artifacts)
        .map_err(|error| format!("creating {}: {error}", artifacts.display()))?;
    packages::ensure(&[packages::BUILD, &[("c++", "g++")]])?;
    let manifest = folder.join("Cargo.toml");
    let mut command = cargo(&["run", "--quiet", "--release", "--manifest-path"]);
    command
        .arg(manifest)
        .args(["--bin", target, "--target-dir"])
        .arg(folder.join("target"));
    command.env("RUSTFLAGS", INSTRUMENTATION).arg("--").arg(&corpus);
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    process::run(&mut command)
}

pub fn run(arguments: &[String]) -> Outcome {
    match arguments {
        [target] => run_target(target, SECONDS_DEFAULT),
        [target, seconds] if seconds.parse::<u32>().is_ok() => run_target(target, seconds),
        [_, seconds] => Err(format!("fuzz: {seconds} is no number of seconds")),
        _ => Err("usage: cargo xtask fuzz TARGET [SECONDS]".to_owned()),
    }
}
