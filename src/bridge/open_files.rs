//! How many files the workers have open together: the kernel bounds them for the process (RLIMIT_NOFILE), whoever of the
//! workers needs the next one.
//!
//! Written by each worker at the end of a turn in which its number changed, so readers may be a turn late. What that can
//! be too many, and what the other threads have open, is kept free (`limits::files_for_connections`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::limits;

/// Shared by all workers.
#[derive(Debug, Clone)]
pub struct OpenFiles(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    open: AtomicUsize,
}

impl OpenFiles {
    /// `allowed`: how many the process may have open.
    pub fn new(allowed: u64) -> Self {
        Self(Arc::new(Shared {
            limit: limits::files_for_connections(allowed),
            open: AtomicUsize::new(0),
        }))
    }

    /// Those that all workers may have open together.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// One worker had some open, and has others now.
    pub fn tell(&self, before: usize, now: usize) {
        if now > before {
            self.0.open.fetch_add(now - before, Ordering::Relaxed);
        } else if now < before {
            self.0.open.fetch_sub(before - now, Ordering::Relaxed);
        }
    }
}
