//! Every rule finds what it is for: one broken tree each, and a clean one for all.

use crate::rules::{self, Finding};
use crate::source::Tree;

fn found(rule: fn(&Tree) -> Vec<Finding>, files: &[(&str, &str)]) -> Vec<String> {
    rule(&Tree::made_up(files))
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn an_import_that_points_up_is_found_however_it_is_written() {
    let rule = rules::imports_point_down;
    for text in [
        "//!\nuse crate::worker::pods;",
        "//!\nuse crate::{limits::A, worker};",
        "//!\nuse crate::{\n    limits::{A, B},\n    worker::{C, D},\n};",
        "//!\nfn a() { crate::worker::b() }",
        "//!\nuse super::super::worker;",
        "//!\npub use crate::worker as w;",
    ] {
        let found = found(rule, &[("src/sys/a.rs", text)]);
        assert!(
            found.len() == 1 && found[0].contains("`sys` may not import `worker`"),
            "{text}: {found:?}"
        );
    }
    assert_eq!(
        found(rule, &[("src/worker.rs", "//!\nuse crate::control::A;")]).len(),
        1
    );
    assert_eq!(
        found(rule, &[("src/wire/a.rs", "//!\nuse crate::sys::B;")]).len(),
        1
    );
    assert_eq!(
        found(rule, &[("src/main.rs", "//!\nuse uztunnel::worker;")]).len(),
        1
    );
    assert_eq!(found(rule, &[("src/novel.rs", "//!\n")]).len(), 1);
}

#[test]
fn an_import_that_points_down_or_stays_inside_is_fine() {
    let rule = rules::imports_point_down;
    let downwards = "//!\nuse crate::{bridge, wire::http2};\nuse super::super::mesh;\nuse crate::worker::b;";
    assert_eq!(found(rule, &[("src/worker/a.rs", downwards)]), [""; 0]);
    let in_tests = "//!\n#[cfg(test)]\nmod tests {\n    use crate::worker;\n}\n// use crate::worker;\n";
    assert_eq!(found(rule, &[("src/sys/a.rs", in_tests)]), [""; 0]);
    assert_eq!(
        found(
            rule,
            &[("src/sys/a.rs", "//!\nconst A: &str = \"crate::worker\";")]
        ),
        [""; 0]
    );
}

#[test]
fn modules_that_import_each_other_are_found() {
    let found = found(
        rules::no_cycles,
        &[
            ("src/sys/a.rs", "//!\nuse crate::wire::B;"),
            ("src/wire.rs", "//!\nuse crate::mesh::B;"),
            ("src/mesh.rs", "//!\nuse crate::sys::B;"),
        ],
    );
    assert!(found.len() == 1 && found[0].contains("in a circle"), "{found:?}");
}

#[test]
fn a_long_file_is_found() {
    let long = "//!\n".to_owned() + &"\n".repeat(crate::FILE_LINES_MAX);
    assert_eq!(found(rules::files_are_short, &[("src/a.rs", &long)]).len(), 1);
    assert_eq!(found(rules::files_are_short, &[("src/a.rs", "//!\n")]).len(), 0);
}

#[test]
fn empty_names_are_found() {
    for path in [
        "src/sys/mod.rs",
        "src/utils.rs",
        "perf/src/common/a.rs",
        "src/mesh/types.rs",
    ] {
        assert_eq!(
            found(rules::names_say_something, &[(path, "//!\n")]).len(),
            1,
            "{path}"
        );
    }
}

#[test]
fn a_file_without_a_header_is_found() {
    assert_eq!(
        found(rules::files_say_what_they_are, &[("src/a.rs", "use std::io;\n")]).len(),
        1
    );
    assert_eq!(
        found(rules::files_say_what_they_are, &[("src/a.rs", "//! Owns a.\n")]).len(),
        0
    );
}

#[test]
fn each_misplaced_word_is_found_where_it_must_not_stand() {
    let rule = rules::words_stay_in_their_place;
    for code in [
        "todo!()",
        "unimplemented!()",
        "dbg!(a)",
        "a.unwrap()",
        "unsafe { b() }",
        "std::env::var(\"A\")",
        "Instant::now()",
        "std::time::SystemTime::now()",
        "use std::sync::atomic::AtomicU64;",
        "Mutex::new(1)",
        "RwLock::new(1)",
    ] {
        let text = format!("//!\nfn a() {{ {code} }}\n");
        assert_eq!(found(rule, &[("src/worker/a.rs", &text)]).len(), 1, "{code}");
    }
    // What simulates the kernel may lock; what talks to it may not.
    assert_eq!(
        found(rule, &[("src/sys/a.rs", "//!\nfn a() { Condvar::new() }")]).len(),
        1
    );
    assert_eq!(
        found(rule, &[("tests/a.rs", "//!\n#[test]\n#[ignore]\nfn a() {}")]).len(),
        1
    );
    assert_eq!(
        found(
            rule,
            &[("src/a.rs", "//!\n#[cfg(test)]\nmod tests { fn a() { todo!() } }")]
        )
        .len(),
        1
    );
}

#[test]
fn words_in_their_place_are_fine() {
    let rule = rules::words_stay_in_their_place;
    for (path, code) in [
        ("src/sys/a.rs", "unsafe { b() }"),
        ("src/config/env.rs", "std::env::vars()"),
        ("src/clock.rs", "Instant::now()"),
        ("src/bridge/a.rs", "Mutex::new(1)"),
        ("src/sys/sim/a.rs", "Mutex::new(Condvar::new())"),
        ("src/lib.rs", "#![deny(unsafe_code)]"),
        (
            "src/worker/a.rs",
            "// a.unwrap() is banned\nlet b = \"todo!\"; c.unwrap_or(1); env!(\"A\");",
        ),
        (
            "src/worker/a.rs",
            "#[cfg(test)]\nmod tests { fn a() { b.unwrap(); Instant::now(); } }",
        ),
        ("src/worker/tests.rs", "b.unwrap()"),
        ("tests/a.rs", "b.unwrap()"),
    ] {
        assert_eq!(found(rule, &[(path, code)]), [""; 0], "{path}: {code}");
    }
}

#[test]
fn a_surplus_and_a_missing_name_at_the_top_are_found() {
    let mut files: Vec<(String, &str)> = crate::TOP_LEVEL_REQUIRED
        .iter()
        .map(|name| (format!("{name}/a"), ""))
        .collect();
    files.push((".github/a".to_owned(), ""));
    let as_slices = |files: &[(String, &'static str)]| -> Vec<String> {
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        found(rules::top_level_is_as_agreed, &files)
    };
    assert_eq!(as_slices(&files), [""; 0]);
    files.push(("scripts/a.sh".to_owned(), ""));
    files.retain(|(path, _)| path != "docs/a");
    assert_eq!(as_slices(&files).len(), 2);
}

#[test]
fn traces_of_a_workplace_are_found() {
    for text in [
        concat!("see /wo", "rk/notes"),
        concat!("Co-Authored-", "By: x"),
        concat!("/ro", "ot/.cache"),
    ] {
        assert_eq!(
            found(rules::nothing_of_the_workplace_is_left, &[("docs/a.md", text)]).len(),
            1,
            "{text}"
        );
    }
}
