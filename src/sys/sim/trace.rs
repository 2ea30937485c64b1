//! What happened, as a number that is equal for equal runs, and in words when somebody wants to read it.

use std::collections::VecDeque;
use std::time::Duration;

/// One event in words, and the number of the endpoint that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub who: u32,
    pub words: String,
}

/// Lines that a trace keeps.
const LINES_MAX: usize = 200_000;

#[derive(Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    /// `None`: nobody reads it.
    lines: Option<VecDeque<Line>>,
}

impl Trace {
    /// Keeps words from now on.
    pub fn keep_lines(&mut self) {
        self.lines.get_or_insert_default();
    }

    pub fn is_kept(&self) -> bool {
        self.lines.is_some()
    }

    /// `what`, `who` and `how_much` go into the hash; `words` are only asked for when they are kept. The low half of
    /// `who` is the number of an endpoint.
    pub fn note(&mut self, at: Duration, what: u64, who: u64, how_much: u64, words: impl FnOnce() -> String) {
        self.events += 1;
        for word in [at.as_nanos() as u64, what, who, how_much] {
            // FNV-1a over words, with a rotation so that high bits matter as well.
            self.hash = (self.hash.rotate_left(23) ^ word).wrapping_mul(0x0000_0100_0000_01B3);
        }
        if let Some(lines) = &mut self.lines {
            if lines.len() == LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(Line {
                who: who as u32,
                words: format!("{:>12.6} {}", at.as_secs_f64(), words()),
            });
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn events(&self) -> u64 {
        self.events
    }

    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().flatten()
    }
}
