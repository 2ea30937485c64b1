//! Compiles the protobuf schemas without needing `protoc`.

use std::process::{Command, ExitCode};

const SCHEMAS: &[&str] = &[
    "proto/authorization.proto",
    "proto/ca.proto",
    "proto/discovery.proto",
    "proto/workload.proto",
    "proto/zds.proto",
];

fn main() -> ExitCode {
    for schema in SCHEMAS {
        println!("cargo:rerun-if-changed={schema}");
    }
    let compiled = protox::compile(SCHEMAS, ["proto"])
        .map_err(|error| error.to_string())
        .and_then(|set| {
            prost_build::Config::new()
                // Payloads stay slices of the message that they came in.
                .bytes([".envoy.service.discovery.v3.Any"])
                // Whatever is iterated has one order.
                .btree_map(["."])
                .compile_fds(set)
                .map_err(|error| error.to_string())
        });
    if let Err(error) = compiled {
        eprintln!("cannot compile the schemas in proto/: {error}");
        return ExitCode::FAILURE;
    }
    describe_build();
    ExitCode::SUCCESS
}

/// What `uztunnel version` reports about the build. Only optimised builds ask git: a debug build would be
/// compiled anew after every commit.
fn describe_build() {
    println!("cargo:rerun-if-env-changed=UZTUNNEL_BUILD_REVISION");
    let profile = std::env::var("PROFILE").unwrap_or_default();
    let mut revision = std::env::var("UZTUNNEL_BUILD_REVISION").ok();
    let mut status = None;
    if profile == "release" {
        // Changes with every commit, checkout and merge; absent outside a checkout.
        if let Some(log) = first_line("git", &["rev-parse", "--git-path", "logs/HEAD"]) {
            println!("cargo:rerun-if-changed={log}");
        }
        revision = revision.or_else(|| first_line("git", &["rev-parse", "HEAD"]));
        let changes = first_line_or_empty("git", &["status", "--porcelain", "--untracked-files=no"]);
        status = changes.map(|changes| if changes.is_empty() { "Clean" } else { "Modified" });
    }
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let rustc = first_line(&rustc, &["--version"]);
    println!(
        "cargo:rustc-env=UZTUNNEL_REVISION={}",
        revision.as_deref().unwrap_or("unknown")
    );
    println!(
        "cargo:rustc-env=UZTUNNEL_BUILD_STATUS={}",
        status.unwrap_or("unknown")
    );
    println!(
        "cargo:rustc-env=UZTUNNEL_RUSTC={}",
        rustc.as_deref().unwrap_or("unknown")
    );
    println!("cargo:rustc-env=UZTUNNEL_PROFILE={profile}");
}

fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    first_line_or_empty(program, arguments).filter(|line| !line.is_empty())
}

fn first_line_or_empty(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output
        .status
        .success()
        .then(|| text.lines().next().unwrap_or_default().to_owned())
}
