//! The command line: one sub-command, further arguments are ignored (the chart passes `proxy ztunnel`).
//!
//! Main thread. Exit codes are upstream's: 0 when it went as asked, 1 otherwise.

use std::process::ExitCode;

use crate::config::{Config, Environment};
use crate::process::{boot, preflight, version};
use crate::sys::allocator;
use crate::sys::select::IoMode;

const HELP: &str = "\
uztunnel: the node proxy of an Istio ambient mesh

Usage: uztunnel [COMMAND]

Commands:
  proxy      run the proxy (default); further arguments are ignored
  preflight  print what this node offers the proxy, what it would choose, and what to change
  version    print what this program is
  help       print this text

Settings come from environment variables: those of ztunnel, and UZTUNNEL_IO, UZTUNNEL_TLS,
UZTUNNEL_TLS_RECORDS_MAX, UZTUNNEL_RING_FEATURES.
";

/// Does what the process was called for.
pub fn run() -> ExitCode {
    let environment = Environment::capture();
    match environment.arguments.first().map(String::as_str) {
        None | Some("proxy") => proxy(&environment),
        Some("preflight") => preflight(&environment),
        Some("version") => {
            println!(
                "{}",
                version::banner(&environment.text_or("ISTIO_META_ISTIO_VERSION", "unknown"))
            );
            ExitCode::SUCCESS
        }
        Some("help") => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Some(unknown) => {
            eprintln!("unknown command: {unknown}\n\n{HELP}");
            ExitCode::FAILURE
        }
    }
}

fn proxy(environment: &Environment) -> ExitCode {
    // Before there is a heap to speak of. Where it is refused, the proxy works and takes more memory.
    let _ = allocator::take_small_pages();
    match boot::serve(environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// 0 when the proxy would start here and could serve pods.
fn preflight(environment: &Environment) -> ExitCode {
    let config = Config::from_env(environment);
    let (wanted, mask) = match &config {
        Ok(config) => boot::wanted_backend(&config.worker),
        Err(_) => (IoMode::Auto, None),
    };
    let report = preflight::report(wanted, mask);
    print!("{report}");
    if let Err(error) = &config {
        println!("The configuration is refused: {error}");
    }
    if config.is_ok() && report.is_ready() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
