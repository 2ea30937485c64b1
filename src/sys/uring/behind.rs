//! Bulk in crowded turns: large sends and receives are handed over behind everything else, a few at a time. The kernel
//! runs an entry at once, and whatever arrives meanwhile waits for the end of the call that does it.
//!
//! Invariant: what waits here is an operation like any other, and is handed over before its cancellation.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use io_uring::squeue;

use super::UringDriver;
use super::operation::{Class, Operation, Target, Work};
use super::slots::Key;
use crate::limits;

#[derive(Default)]
pub(super) struct Behind {
    pub crowded: bool,
    /// Oldest first.
    waiting: VecDeque<Waiting>,
    /// The last turn had no room, since others had something to do.
    put_off: bool,
}

struct Waiting {
    operation: Key,
    entry: squeue::Entry,
    bytes: usize,
}

impl Behind {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether receives of the class are asked for one by one: one that goes on takes what it likes.
    pub fn holds_back(&self, class: Class) -> bool {
        self.crowded && class == Class::Large
    }
}

impl UringDriver {
    /// Starts an operation that moves so many bytes at most.
    ///
    /// # Safety
    /// As `submit` demands.
    pub(super) unsafe fn submit_bytes(
        &mut self,
        target: Target,
        work: Work,
        entry: squeue::Entry,
        bytes: usize,
    ) -> Key {
        if !self.behind.crowded || bytes <= limits::RECEIVE_SMALL_BYTES {
            // SAFETY: the caller's promise.
            return unsafe { self.submit(target, work, entry) };
        }
        let operation = self.operations.insert(Operation { target, work });
        self.behind.waiting.push_back(Waiting {
            operation,
            entry: entry.user_data(operation.to_word()),
            bytes,
        });
        operation
    }

    /// Hands over what this turn has room for. It has none where others have something to do, unless the last one had
    /// none either.
    pub(super) fn serve_behind(&mut self) -> io::Result<()> {
        if self.behind.crowded && !self.behind.is_empty() && !self.behind.put_off {
            if !self.ring.has_completions() {
                self.ring.enter(Some(Duration::ZERO))?;
            }
            self.behind.put_off = self.ring.has_completions();
            if self.behind.put_off {
                return Ok(());
            }
        }
        self.behind.put_off = false;
        let mut room = limits::bulk_bytes_max(self.behind.crowded);
        while room > 0
            && let Some(waiting) = self.behind.waiting.pop_front()
        {
            room = room.saturating_sub(waiting.bytes);
            // SAFETY: promised to `submit_bytes`; the operation is not over, as it never started.
            unsafe { self.ring.push(waiting.entry) };
        }
        Ok(())
    }

    /// Hands over an operation that is to be cancelled.
    pub(super) fn hasten(&mut self, operation: Key) {
        let waiting = &mut self.behind.waiting;
        if let Some(at) = waiting.iter().position(|waiting| waiting.operation == operation)
            && let Some(waiting) = waiting.remove(at)
        {
            // SAFETY: as in `serve_behind`.
            unsafe { self.ring.push(waiting.entry) };
        }
    }
}
