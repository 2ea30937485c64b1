//! Programs that the commands run: cargo, mostly, from the top of the repository.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub type Outcome = Result<(), String>;

/// The top of the repository.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent()
        .expect("invariant: xtask lies below the top")
        .to_owned()
}

/// `cargo` with these arguments; its output goes where ours goes.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root()).stdin(Stdio::null());
    command
}

/// Runs to the end; any exit status but 0 is an error that names the command.
pub fn run(command: &mut Command) -> Outcome {
    let status = command
        .status()
        .map_err(|error| format!("{}: {error}", describe(command)))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} ended with {status}", describe(command)))
    }
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Builds the proxy with a profile and returns its path.
pub fn build_proxy(profile: &str) -> Result<PathBuf, String> {
    println!("building uztunnel ({profile})");
    run(&mut cargo(&[
        "build",
        "--quiet",
        "--profile",
        profile,
        "--package",
        "uztunnel",
        "--bin",
        "uztunnel",
    ]))?;
    Ok(target_dir().join(profile).join("uztunnel"))
}

/// Tests that ran, read from the closing lines of cargo's test programs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    /// Lines that name what failed, for the summary: whoever reads only the end of a long run must know it.
    pub complaints: Vec<String>,
}

/// Lines of the output that say what failed, as the test programs here write them.
const COMPLAINTS: [&str; 5] = ["FAILED", PANICKED, "not found in", "never struck", "is back:"];
/// What went wrong stands in the line after it.
const PANICKED: &str = "panicked at";
/// How the simulation begins a finding.
const FINDING: &str = "seed ";
/// Complaints kept, and bytes of each.
const COMPLAINTS_MAX: usize = 12;
const COMPLAINT_BYTES_MAX: usize = 300;

impl Tally {
    /// Adds what a line like `test result: ok. 3 passed; 0 failed; ...` says.
    fn read(&mut self, line: &str) {
        let Some(results) = line.strip_prefix("test result: ") else {
            return;
        };
        let words: Vec<&str> = results.split_whitespace().collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].parse::<u64>() else {
                continue;
            };
            match pair[1].trim_end_matches(';') {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                _ => {}
            }
        }
    }
}

/// Runs a command whose standard output is passed on line by line and counted.
pub fn run_tests(command: &mut Command, tally: &mut Tally) -> Outcome {
    let failed = |command: &Command, error| format!("{}: {error}", describe(command));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(command, error))?;
    let stdout = child.stdout.take().expect("invariant: stdout was piped");
    let mut complaints = Vec::new();
    let mut has_panicked = false;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.map_err(|error| failed(command, error))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.read(&line);
        if (has_panicked || is_complaint(&line)) && complaints.len() < COMPLAINTS_MAX {
            complaints.push(line.chars().take(COMPLAINT_BYTES_MAX).collect());
        }
        has_panicked = line.contains(PANICKED);
    }
    let status = child.wait().map_err(|error| failed(command, error))?;
    if status.success() {
        Ok(())
    } else {
        tally.complaints.append(&mut complaints);
        Err(format!("{} ended with {status}", describe(command)))
    }
}

fn is_complaint(line: &str) -> bool {
    line.starts_with(FINDING) || COMPLAINTS.iter().any(|words| line.contains(words))
}

pub fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let arguments: Vec<_> = command
        .get_args()
        .map(|argument| argument.to_string_lossy())
        .collect();
    format!("`{program} {}`", arguments.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_added_up() {
        let mut tally = Tally::default();
        tally.read(
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.1s",
        );
        tally.read("test a::b ... ok");
        tally.read("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(
            tally,
            Tally {
                passed: 13,
                failed: 2,
                complaints: Vec::new(),
            }
        );
    }

    #[test]
    fn what_a_failed_run_complained_of_is_kept_for_the_summary() {
        let mut tally = Tally::default();
        let script = "echo test good ... ok; echo test bad ... FAILED; exit 1";
        run_tests(Command::new("sh").args(["-c", script]), &mut tally).expect_err("it ended with 1");
        assert_eq!(tally.complaints, ["test bad ... FAILED"]);
        run_tests(Command::new("sh").args(["-c", "echo no test FAILED"]), &mut tally)
            .expect("it ended with 0");
        assert_eq!(tally.complaints.len(), 1);
    }
}
