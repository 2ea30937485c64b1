//! The `uztunnel` binary: sub-commands and exit codes. Everything else is in the library.

use std::process::ExitCode;

use uztunnel::config::Environment;
use uztunnel::process::{boot, version};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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

fn main() -> ExitCode {
    let environment = Environment::capture();
    // A command that is no text is no command of ours; it is shown as well as possible.
    let command = std::env::args_os()
        .nth(1)
        .map(|command| command.to_string_lossy().into_owned());
    match command.as_deref() {
        None | Some("proxy") => boot::proxy(&environment),
        Some("preflight") => boot::preflight(&environment),
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
