//! Compiles the schemas of the control plane for the rig's own istiod, apart from the program's copy.

use std::process::ExitCode;

const SCHEMAS: &[&str] = &["authorization.proto", "discovery.proto", "workload.proto"];

fn main() -> ExitCode {
    let folder = std::path::Path::new("../../proto");
    let schemas: Vec<_> = SCHEMAS.iter().map(|schema| folder.join(schema)).collect();
    for schema in &schemas {
        println!("cargo:rerun-if-changed={}", schema.display());
    }
    let compiled = protox::compile(&schemas, [folder])
        .map_err(|error| error.to_string())
        .and_then(|set| prost_build::compile_fds(set).map_err(|error| error.to_string()));
    match compiled {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot compile the schemas in proto/: {error}");
            ExitCode::FAILURE
        }
    }
}
