//! Replays every committed fuzz corpus through its target: the same code that libFuzzer runs (`tests/fuzz`).
//!
//! Every bug that fuzzing finds leaves its input in the corpus.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "fuzz/targets.rs"]
mod targets;

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

/// Names in a directory, sorted.
fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries
        .map(|entry| {
            entry
                .expect("directory entry")
                .file_name()
                .into_string()
                .expect("UTF-8 name")
        })
        .collect()
}

fn target_names() -> BTreeSet<String> {
    targets::ALL.iter().map(|(name, _)| (*name).to_owned()).collect()
}

#[test]
fn every_corpus_file_passes_through_its_target() {
    for (name, run) in targets::ALL {
        let corpus = fuzz_dir().join("corpus").join(name);
        let files = names(&corpus);
        assert!(!files.is_empty(), "{} holds nothing to replay", corpus.display());
        for file in files {
            let input = fs::read(corpus.join(&file)).expect("corpus file");
            // Names the input before it runs: the output of a test is shown when it fails.
            println!("{name}/{file}, {} bytes", input.len());
            run(&input);
        }
    }
}

#[test]
fn every_target_has_a_body_a_binary_and_a_corpus() {
    let expected = target_names();
    let sources = |dir: &str| -> BTreeSet<String> {
        let files = names(&fuzz_dir().join(dir));
        files
            .iter()
            .map(|file| file.trim_end_matches(".rs").to_owned())
            .collect()
    };
    assert_eq!(sources("targets"), expected);
    assert_eq!(sources("bins"), expected);
    assert_eq!(names(&fuzz_dir().join("corpus")), expected);

    let manifest = fs::read_to_string(fuzz_dir().join("Cargo.toml")).expect("manifest");
    for name in &expected {
        let bin = format!("[[bin]]\nname = \"{name}\"\npath = \"bins/{name}.rs\"\n");
        assert!(
            manifest.contains(&bin),
            "tests/fuzz/Cargo.toml has no [[bin]] {name}"
        );
    }
}

#[test]
fn every_cut_of_every_corpus_file_passes_too() {
    for (name, run) in targets::ALL {
        let corpus = fuzz_dir().join("corpus").join(name);
        for file in names(&corpus) {
            let input = fs::read(corpus.join(&file)).expect("corpus file");
            println!("{name}/{file}, cut anywhere");
            // Large inputs at some cuts only, so that the run stays short.
            let step = (input.len() / 256).max(1);
            (0..input.len()).step_by(step).for_each(|len| run(&input[..len]));
        }
    }
}
