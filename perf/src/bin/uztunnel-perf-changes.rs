//! `uztunnel-perf-changes`: what a change of a large mesh costs, without a proxy. A program of its own, since it has the
//! proxy's allocator, and the load tools keep theirs.

use std::process::ExitCode;

use uztunnel_perf::awake::Awake;
use uztunnel_perf::{changes, machine};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let _awake = Awake::keep_or_say();
    match changes::run() {
        Ok(table) => {
            println!("{}\n\n{table}", machine::describe());
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("uztunnel-perf-changes: {message}");
            ExitCode::FAILURE
        }
    }
}
