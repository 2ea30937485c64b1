//! The style guide's checkable half. `cargo xtask tidy` runs it; so does every test run.
//!
//! Layers: imports only point down. A new edge is one word in `LAYERS`, seen and judged in review.

#[path = "tidy/negative.rs"]
mod negative;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

use source::Tree;

/// Every module of the crate and the modules that it may import.
///
/// process > worker, control > bridge > tls, runtime > sys, wire, mesh, config > limits, identity, clock, planted; `worker`
/// and `control` never see each other, nor do `sys`, `wire` and `mesh`.
pub const LAYERS: &[(&str, &[&str])] = &[
    ("main", &["process", "config"]),
    (
        "process",
        &[
            "worker", "control", "bridge", "tls", "runtime", "sys", "wire", "mesh", "config", "limits",
            "identity", "clock", "planted",
        ],
    ),
    (
        "worker",
        &[
            "bridge", "tls", "runtime", "sys", "wire", "mesh", "config", "limits", "identity", "clock",
            "planted",
        ],
    ),
    (
        "control",
        &[
            "bridge", "tls", "runtime", "sys", "wire", "mesh", "config", "limits", "identity", "clock",
            "planted",
        ],
    ),
    (
        "bridge",
        &[
            "tls", "runtime", "sys", "wire", "mesh", "config", "limits", "identity", "clock", "planted",
        ],
    ),
    (
        "tls",
        &["sys", "wire", "config", "limits", "identity", "clock", "planted"],
    ),
    (
        "runtime",
        &["sys", "config", "limits", "identity", "clock", "planted"],
    ),
    ("sys", &["limits", "identity", "clock", "planted"]),
    ("wire", &["limits", "identity", "planted"]),
    ("mesh", &["limits", "identity"]),
    ("config", &["limits", "identity"]),
    ("planted", &[]),
    ("limits", &[]),
    ("identity", &[]),
    ("clock", &[]),
];

/// Lines that a file may have; a file that is one table is named in `TABLES` with its reason.
pub const FILE_LINES_MAX: usize = 800;

/// (path, reason)
pub const TABLES: &[(&str, &str)] = &[];

/// What may stand at the top of the tree besides dot-files.
pub const TOP_LEVEL: &[&str] = &[
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "deploy",
    "docs",
    "perf",
    "proto",
    "src",
    "tests",
    "xtask",
];

/// What has to stand there.
pub const TOP_LEVEL_REQUIRED: &[&str] = &[
    "CHANGELOG.md",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "docs",
    "perf",
    "proto",
    "src",
    "tests",
    "xtask",
];

/// Names that say nothing.
pub const EMPTY_NAMES: &[&str] = &[
    "util", "utils", "helper", "helpers", "common", "misc", "types", "base", "manager", "factory",
];

#[test]
fn the_tree_is_tidy() {
    let findings = rules::all(&Tree::of_repository());
    let listing: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(
        findings.is_empty(),
        "{} findings:\n{}",
        findings.len(),
        listing.join("\n")
    );
}

#[test]
fn the_layer_table_itself_has_no_cycle() {
    let edges = LAYERS
        .iter()
        .flat_map(|(from, to)| to.iter().map(move |to| ((*from).into(), (*to).into())));
    assert_eq!(rules::find_cycle(&edges.collect()), None);
}
