//! The lines that a proxy prints, kept and searchable, and the fields of its access log.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::{PATIENCE, Result, RigError};

/// Lines shown when a wait fails.
const TAIL_LINES: usize = 12;

#[derive(Default)]
struct Shared {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

/// Lines of one proxy, of both its output streams. Cloning shares them.
#[derive(Clone, Default)]
pub struct Logs {
    shared: Arc<Shared>,
}

impl Logs {
    /// Reads `stream` to its end on a thread of its own.
    pub fn collect(&self, stream: impl Read + Send + 'static) -> thread::JoinHandle<()> {
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { return };
                lock(&shared).push(String::from_utf8_lossy(&line).into_owned());
                shared.grown.notify_all();
            }
        })
    }

    pub fn lines(&self) -> Vec<String> {
        lock(&self.shared).clone()
    }

    pub fn tail(&self) -> String {
        let lines = lock(&self.shared);
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    pub fn contain(&self, text: &str) -> bool {
        lock(&self.shared).iter().any(|line| line.contains(text))
    }

    /// Waits for a line that `wanted` accepts, also among those already there.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.wait_within(PATIENCE, what, wanted)
    }

    pub fn wait_within(&self, limit: Duration, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut seen = 0;
        let mut lines = lock(&self.shared);
        loop {
            if let Some(line) = lines[seen..].iter().find(|line| wanted(line)) {
                return Ok(line.clone());
            }
            seen = lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(lines);
                let cause = format!("no such line within {limit:?}; the last lines:\n{}", self.tail());
                return Err(RigError::new(format!("waiting for a log line ({what})"), cause));
            }
            lines = self
                .shared
                .grown
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// All records of the access log so far.
    pub fn access(&self) -> Vec<AccessRecord> {
        lock(&self.shared)
            .iter()
            .filter_map(|line| AccessRecord::parse(line))
            .collect()
    }

    /// Waits for an access-log record that `wanted` accepts.
    pub fn wait_for_access(
        &self,
        what: &str,
        wanted: impl Fn(&AccessRecord) -> bool,
    ) -> Result<AccessRecord> {
        let line = self.wait_for(what, |line| {
            AccessRecord::parse(line).is_some_and(|record| wanted(&record))
        })?;
        Ok(AccessRecord::parse(&line).expect("invariant: the line was parsed before"))
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Vec<String>> {
    shared.lines.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One line of the access log: `time TAB level TAB access TAB message TAB fields`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRecord {
    pub level: String,
    pub message: String,
    pub fields: BTreeMap<String, String>,
}

impl AccessRecord {
    pub fn parse(line: &str) -> Option<Self> {
        let mut columns = line.split('\t');
        columns.next()?;
        let level = columns.next()?.to_owned();
        if columns.next()? != "access" {
            return None;
        }
        let message = columns.next()?.to_owned();
        Some(Self {
            level,
            message,
            fields: parse_fields(columns.next()?)?,
        })
    }

    /// The field, or the empty text when it is absent.
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

/// `k=v k="v with \"quotes\""`, in any order.
fn parse_fields(text: &str) -> Option<BTreeMap<String, String>> {
    let mut fields = BTreeMap::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = if let Some(quoted) = after.strip_prefix('"') {
            unquote(quoted)?
        } else {
            let end = after.find(' ').unwrap_or(after.len());
            (after[..end].to_owned(), &after[end..])
        };
        fields.insert(key.to_owned(), value);
        rest = after.trim_start();
    }
    Some(fields)
}

/// The text up to the closing quote, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_gives_its_fields() {
        let line = "2026-01-02T03:04:05.000006Z\terror\taccess\tconnection complete\tsrc.addr=198.18.1.10:4011 \
                    src.identity=\"spiffe://cluster.local/ns/shop/sa/web\" bytes_sent=120 duration=\"7ms\" \
                    error=\"io error: \\\"x\\\" = y\"";
        let record = AccessRecord::parse(line).expect("a record");
        assert_eq!(record.level, "error");
        assert_eq!(record.field("src.addr"), "198.18.1.10:4011");
        assert_eq!(
            record.field("src.identity"),
            "spiffe://cluster.local/ns/shop/sa/web"
        );
        assert_eq!(record.field("bytes_sent"), "120");
        assert_eq!(record.field("error"), "io error: \"x\" = y");
        assert_eq!(record.field("dst.addr"), "");
    }

    #[test]
    fn other_lines_are_no_records() {
        assert_eq!(
            AccessRecord::parse("2026-01-02T03:04:05Z\tinfo\tproxy\tready"),
            None
        );
        assert_eq!(AccessRecord::parse("panicked at"), None);
    }
}
