//! The rules. Each takes a tree and gives its findings; `negative.rs` holds one broken tree for each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::source::{File, Tree};
use crate::{EMPTY_NAMES, FILE_LINES_MAX, LAYERS, TABLES, TOP_LEVEL, TOP_LEVEL_REQUIRED};

pub struct Finding {
    pub path: String,
    /// 0: the file as a whole.
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.path, self.line, self.what)
    }
}

pub fn all(tree: &Tree) -> Vec<Finding> {
    let rules: [fn(&Tree) -> Vec<Finding>; 8] = [
        imports_point_down,
        no_cycles,
        files_are_short,
        names_say_something,
        files_say_what_they_are,
        words_stay_in_their_place,
        top_level_is_as_agreed,
        nothing_of_the_workplace_is_left,
    ];
    rules.iter().flat_map(|rule| rule(tree)).collect()
}

fn finding(file: &File, line: usize, what: impl Into<String>) -> Finding {
    Finding {
        path: file.path.clone(),
        line,
        what: what.into(),
    }
}

pub fn imports_point_down(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree
        .files
        .iter()
        .filter(|file| file.is_shipped() && file.path != "src/lib.rs")
    {
        let Some(module) = file.module() else { continue };
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
            findings.push(finding(
                file,
                0,
                format!("module `{module}` has no line in LAYERS"),
            ));
            continue;
        };
        for (line, target) in imports(file) {
            if target != module && is_module(&target) && !allowed.contains(&target.as_str()) {
                findings.push(finding(
                    file,
                    line,
                    format!("`{module}` may not import `{target}`"),
                ));
            }
        }
    }
    findings
}

pub fn no_cycles(tree: &Tree) -> Vec<Finding> {
    let mut edges = BTreeSet::new();
    for file in tree
        .files
        .iter()
        .filter(|file| file.is_shipped() && file.path != "src/lib.rs")
    {
        let Some(module) = file.module() else { continue };
        for (_, target) in imports(file) {
            if target != module && is_module(&target) {
                edges.insert((module.to_owned(), target));
            }
        }
    }
    find_cycle(&edges)
        .map(|cycle| Finding {
            path: "src".to_owned(),
            line: 0,
            what: format!("modules import each other in a circle: {}", cycle.join(" -> ")),
        })
        .into_iter()
        .collect()
}

fn is_module(name: &str) -> bool {
    LAYERS.iter().any(|(module, _)| *module == name)
}

/// A circle in the graph, as the list of its nodes, the first repeated at the end.
pub fn find_cycle(edges: &BTreeSet<(String, String)>) -> Option<Vec<String>> {
    let mut targets: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in edges {
        targets.entry(from).or_default().push(to);
    }
    let mut finished = BTreeSet::new();
    let starts: Vec<&str> = targets.keys().copied().collect();
    starts
        .into_iter()
        .find_map(|start| follow(start, &targets, &mut Vec::new(), &mut finished))
}

fn follow<'a>(
    node: &'a str,
    targets: &BTreeMap<&'a str, Vec<&'a str>>,
    path: &mut Vec<&'a str>,
    finished: &mut BTreeSet<&'a str>,
) -> Option<Vec<String>> {
    if let Some(at) = path.iter().position(|seen| *seen == node) {
        let circle = path[at..].iter().chain([&node]);
        return Some(circle.map(|name| (*name).to_owned()).collect());
    }
    if finished.contains(node) {
        return None;
    }
    path.push(node);
    let found = targets
        .get(node)
        .into_iter()
        .flatten()
        .find_map(|next| follow(next, targets, path, finished));
    path.pop();
    finished.insert(node);
    found
}

/// Line and first module of every path from the crate root: `crate::x`, `crate::{x, y::z}`, and `super::` chains
/// that climb to the root; in `main.rs`, `uztunnel::x`.
fn imports(file: &File) -> Vec<(usize, String)> {
    let root = if file.path == "src/main.rs" {
        "uztunnel::"
    } else {
        "crate::"
    };
    let climb = "super::".repeat(file.depth());
    let mut found = Vec::new();
    for prefix in [root, climb.as_str()] {
        for (at, _) in file.shipped.match_indices(prefix) {
            if file.shipped[..at]
                .ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
            {
                continue;
            }
            let line = file.shipped[..at].matches('\n').count() + 1;
            let rest = &file.shipped[at + prefix.len()..];
            found.extend(first_names(rest).into_iter().map(|name| (line, name)));
        }
    }
    found
}

/// `x::y` gives x; `{x::y, z}` gives x and z.
fn first_names(rest: &str) -> Vec<String> {
    let Some(list) = rest.strip_prefix('{') else {
        return vec![identifier(rest)];
    };
    let mut names = Vec::new();
    let mut depth = 0;
    let mut expected = true;
    for (at, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expected = true,
            character if expected && depth == 0 && !character.is_whitespace() => {
                names.push(identifier(&list[at..]));
                expected = false;
            }
            _ => {}
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.chars()
        .take_while(|character| character.is_alphanumeric() || *character == '_')
        .collect()
}

pub fn files_are_short(tree: &Tree) -> Vec<Finding> {
    let long = tree
        .files
        .iter()
        .filter(|file| file.is_rust() && file.text.lines().count() > FILE_LINES_MAX);
    long.filter(|file| !TABLES.iter().any(|(path, _)| *path == file.path))
        .map(|file| {
            let lines = file.text.lines().count();
            finding(
                file,
                lines,
                format!("{lines} lines; the limit is {FILE_LINES_MAX}"),
            )
        })
        .collect()
}

pub fn names_say_something(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| file.is_rust()) {
        for part in file.path.split('/') {
            let name = part.trim_end_matches(".rs");
            if part == "mod.rs" {
                findings.push(finding(file, 0, "`foo.rs` beside `foo/` instead of `foo/mod.rs`"));
            } else if EMPTY_NAMES.contains(&name) {
                findings.push(finding(
                    file,
                    0,
                    format!("`{name}` says nothing: name what it owns"),
                ));
            }
        }
    }
    findings
}

pub fn files_say_what_they_are(tree: &Tree) -> Vec<Finding> {
    let silent = tree
        .files
        .iter()
        .filter(|file| file.is_rust() && !file.text.starts_with("//!"));
    silent
        .map(|file| finding(file, 1, "does not open with `//!`: what it owns and keeps"))
        .collect()
}

/// A word, where it may stand, and why nowhere else.
struct Place {
    words: &'static [&'static str],
    allowed: fn(&File) -> bool,
    /// Tests may use it too.
    only_shipped: bool,
    why: &'static str,
}

const PLACES: &[Place] = &[
    Place {
        words: &["todo!", "unimplemented!", "dbg!", "#[ignore"],
        allowed: |_| false,
        only_shipped: false,
        why: "is unfinished work",
    },
    Place {
        words: &[".unwrap()"],
        allowed: |_| false,
        only_shipped: true,
        why: "hides why it cannot fail: `expect(\"invariant: ...\")`",
    },
    Place {
        words: &["unsafe"],
        allowed: |file| file.module() == Some("sys"),
        only_shipped: true,
        why: "belongs to `sys`",
    },
    Place {
        words: &["std::env"],
        // The command line is read in `main.rs`.
        allowed: |file| matches!(file.path.as_str(), "src/config/env.rs" | "src/main.rs"),
        only_shipped: true,
        why: "belongs to `config/env.rs`",
    },
    Place {
        words: &["Instant::now", "SystemTime::now"],
        allowed: |file| file.path == "src/clock.rs",
        only_shipped: true,
        why: "belongs to `clock.rs`",
    },
    Place {
        words: &["Mutex", "RwLock", "Condvar"],
        // The simulated network, behind the feature `sim`: a connection is handed from worker to worker as a
        // descriptor is, so what the kernel would lock is locked there.
        allowed: |file| {
            matches!(file.module(), Some("bridge" | "control")) || file.path.starts_with("src/sys/sim/")
        },
        only_shipped: true,
        why: "belongs to `bridge` and `control`: workers share nothing mutable",
    },
    Place {
        words: &["std::sync::atomic"],
        // In `sys`: memory that the kernel writes too, and wakers.
        allowed: |file| matches!(file.module(), Some("bridge" | "control" | "sys")),
        only_shipped: true,
        why: "belongs to `bridge`, `control` and `sys`: workers share nothing mutable",
    },
];

pub fn words_stay_in_their_place(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for place in PLACES {
        for file in tree
            .files
            .iter()
            .filter(|file| file.is_rust() && !(place.allowed)(file))
        {
            if place.only_shipped && !file.is_shipped() {
                continue;
            }
            let code = if place.only_shipped {
                &file.shipped
            } else {
                &file.code
            };
            for word in place.words {
                for line in lines_with_word(code, word) {
                    findings.push(finding(file, line, format!("`{word}` {}", place.why)));
                }
            }
        }
    }
    findings
}

/// Lines that contain `word` and not as a part of a longer one.
fn lines_with_word(code: &str, word: &str) -> Vec<usize> {
    let part_of_word = |character: char| character.is_alphanumeric() || character == '_';
    let opens = word.starts_with(part_of_word);
    let closes = word.ends_with(part_of_word);
    let mut lines = Vec::new();
    for (at, _) in code.match_indices(word) {
        let inside = (opens && code[..at].ends_with(part_of_word))
            || (closes && code[at + word.len()..].starts_with(part_of_word));
        if !inside {
            lines.push(code[..at].matches('\n').count() + 1);
        }
    }
    lines
}

pub fn top_level_is_as_agreed(tree: &Tree) -> Vec<Finding> {
    let present: BTreeSet<&str> = tree
        .files
        .iter()
        .filter_map(|file| file.path.split('/').next())
        .collect();
    let surplus = present
        .iter()
        .filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(name));
    let surplus = surplus.map(|name| (*name, "does not belong at the top level"));
    let missing = TOP_LEVEL_REQUIRED.iter().filter(|name| !present.contains(*name));
    let missing = missing.map(|name| (*name, "is missing at the top level"));
    surplus
        .chain(missing)
        .map(|(name, what)| Finding {
            path: name.to_owned(),
            line: 0,
            what: what.to_owned(),
        })
        .collect()
}

/// Paths of a workplace and words about how work was organised there; in pieces, so that this file may be checked.
const FOREIGN: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/opt/up", "stream"),
    concat!("anth", "ropic"),
    concat!("clau", "de"),
    concat!("sub", "agent"),
    concat!("language mo", "del"),
    concat!("work", "tree"),
    concat!("co-authored-", "by"),
];

pub fn nothing_of_the_workplace_is_left(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        for (number, line) in file.text.lines().enumerate() {
            let line = line.to_lowercase();
            for word in FOREIGN {
                if line.contains(word) {
                    findings.push(finding(
                        file,
                        number + 1,
                        format!("`{word}` is nobody else's business"),
                    ));
                }
            }
        }
    }
    findings
}
