//! Counts allocations per thread, for threads that ask for it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const COUNTERS_MAX: usize = 256;

/// Counter 0 collects what nobody asks for.
static COUNTERS: [AtomicU64; COUNTERS_MAX] = [const { AtomicU64::new(0) }; COUNTERS_MAX];
static TAKEN: AtomicUsize = AtomicUsize::new(1);

thread_local! {
    static MINE: Cell<usize> = const { Cell::new(0) };
}

/// The allocations of one thread since it called `count_here`.
#[derive(Clone, Copy)]
pub struct Counter(usize);

/// Counts the calling thread's allocations from now on.
pub fn count_here() -> Counter {
    let counter = TAKEN.fetch_add(1, Ordering::Relaxed);
    assert!(counter < COUNTERS_MAX);
    MINE.set(counter);
    Counter(counter)
}

impl Counter {
    pub fn allocations(self) -> u64 {
        COUNTERS[self.0].load(Ordering::Relaxed)
    }
}

fn count() {
    COUNTERS[MINE.get()].fetch_add(1, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it is; the counters neither allocate nor need a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: promised by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: promised by the caller.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: promised by the caller.
        unsafe { System.realloc(memory, layout, size) }
    }
}
