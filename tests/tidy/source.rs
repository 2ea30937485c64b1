//! Files as the rules see them: the text, and the code in it without comments, literals and tests.

use std::path::Path;
use std::process::Command;

/// All files of the repository, or a made-up set of them.
pub struct Tree {
    pub files: Vec<File>,
}

pub struct File {
    /// From the top, with `/`.
    pub path: String,
    pub text: String,
    /// Same lines as `text`; comments and the contents of literals are blank. Empty for other than Rust.
    pub code: String,
    /// As `code`, with everything under `#[cfg(test)]` blank too.
    pub shipped: String,
}

impl Tree {
    /// What git tracks or would track.
    pub fn of_repository() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let output = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .expect("git runs");
        assert!(
            output.status.success(),
            "git ls-files: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let listing = String::from_utf8(output.stdout).expect("paths are text");
        // A file that was deleted but not committed yet is listed too, and cannot be read.
        let files = listing.lines().filter_map(|path| {
            let bytes = std::fs::read(root.join(path)).ok()?;
            Some(File::new(path, &String::from_utf8_lossy(&bytes)))
        });
        Self {
            files: files.collect(),
        }
    }

    pub fn made_up(files: &[(&str, &str)]) -> Self {
        Self {
            files: files.iter().map(|(path, text)| File::new(path, text)).collect(),
        }
    }
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") {
            blank_comments_and_literals(text)
        } else {
            String::new()
        };
        let shipped = blank_tests(&code);
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
            shipped,
        }
    }

    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Part of the shipped program: under `src/` and no test file.
    pub fn is_shipped(&self) -> bool {
        self.is_rust() && self.path.starts_with("src/") && !self.is_test_file()
    }

    /// `foo/tests.rs` or a file below `foo/tests/`.
    fn is_test_file(&self) -> bool {
        self.path
            .split('/')
            .any(|part| part == "tests.rs" || part == "tests")
    }

    /// The top module that the file belongs to: `worker` for `src/worker.rs` and `src/worker/pods.rs`.
    pub fn module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        Some(inside.split('/').next()?.trim_end_matches(".rs"))
    }

    /// How many `super::` lead from the file to the crate root.
    pub fn depth(&self) -> usize {
        self.path.matches('/').count()
    }
}

/// Blanks comments and what is inside string, byte-string, raw-string and character literals; keeps all lines.
fn blank_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = if text[at..].starts_with("//") {
            text[at..].find('\n').map_or(text.len(), |length| at + length)
        } else if text[at..].starts_with("/*") {
            block_comment_end(text, at)
        } else if let Some(end) = raw_string_end(text, at) {
            end
        } else if bytes[at] == b'"' {
            string_end(bytes, at)
        } else if bytes[at] == b'\'' {
            character_end(text, at)
        } else {
            let width = text[at..].chars().next().map_or(1, char::len_utf8);
            out.push_str(&text[at..at + width]);
            at += width;
            continue;
        };
        out.extend(
            text[at..end]
                .chars()
                .map(|character| if character == '\n' { '\n' } else { ' ' }),
        );
        at = end;
    }
    out
}

fn block_comment_end(text: &str, start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < text.len() {
        if text.as_bytes()[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if text.as_bytes()[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// The end of `r"..."`, `r#"..."#`, `br"..."` beginning at `start`, when one begins there.
fn raw_string_end(text: &str, start: usize) -> Option<usize> {
    let before = text[..start].chars().next_back();
    if before.is_some_and(|character| character.is_alphanumeric() || character == '_') {
        return None;
    }
    let rest = text[start..]
        .strip_prefix('b')
        .unwrap_or(&text[start..])
        .strip_prefix('r')?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    let inside = rest[hashes..].strip_prefix('"')?;
    let closing = format!("\"{}", "#".repeat(hashes));
    let opened = text.len() - inside.len();
    Some(
        inside
            .find(&closing)
            .map_or(text.len(), |length| opened + length + closing.len()),
    )
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The end of a character literal, or just behind the quote of a lifetime.
fn character_end(text: &str, start: usize) -> usize {
    let inside = &text[start + 1..];
    let mut characters = inside.chars();
    match (characters.next(), characters.next()) {
        (Some('\\'), Some(escaped)) => {
            let skip = start + 2 + escaped.len_utf8();
            text[skip..]
                .find('\'')
                .map_or(text.len(), |length| skip + length + 1)
        }
        (Some(character), Some('\'')) => start + 1 + character.len_utf8() + 1,
        _ => start + 1,
    }
}

/// Blanks the item behind each `#[cfg(test)]`.
fn blank_tests(code: &str) -> String {
    const ATTRIBUTE: &str = "#[cfg(test)]";
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find(ATTRIBUTE) {
        out.push_str(&rest[..at]);
        let end = at + item_end(&rest[at..]);
        out.extend(
            rest[at..end]
                .chars()
                .map(|character| if character == '\n' { '\n' } else { ' ' }),
        );
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// The end of an item: its closing brace, or the first `;` outside of all brackets.
fn item_end(code: &str) -> usize {
    let mut depth = 0;
    for (at, character) in code.char_indices() {
        match character {
            '{' | '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

#[test]
fn comments_literals_and_tests_are_blank_and_lines_stay() {
    let text = "let a = \"x // \\\" unsafe\"; // unsafe\n/* a /* b */ unsafe */ let c = '\\'';\nlet d: &'static str = \
                r#\"unsafe \"# ; let e = '\"'; live\n#[cfg(test)]\nmod tests {\n    fn x() { unsafe {} }\n}\nafter\n";
    let file = File::new("src/a.rs", text);
    assert!(
        !file.code.replace("{ unsafe {} }", "").contains("unsafe"),
        "{}",
        file.code
    );
    assert!(file.code.contains("live") && file.code.contains("static str") && file.code.contains("fn x"));
    assert!(
        !file.shipped.contains("fn x") && file.shipped.contains("after"),
        "{}",
        file.shipped
    );
    assert_eq!(file.shipped.lines().count(), text.lines().count());
}
