//! What the allocator takes from the kernel, and what it keeps for the calling thread although nobody uses it.
//!
//! Any thread. A process that has another allocator than `main.rs` loses nothing by it.

use std::io;

/// From now on the kernel hands out small pages, whatever the node's setting for huge ones: a heap of huge pages keeps
/// two MiB wherever a few bytes are in use. Fails on kernels and under filters that do not know or allow it.
pub fn take_small_pages() -> io::Result<()> {
    // SAFETY: prctl takes integers here; the arguments that the option does not use have to be zero.
    let outcome = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives memory that the calling thread has not used for a while back to the kernel: about 0.1 ms for a MiB. Not by
/// force, which takes as long again for what is left: it walks through every free piece of every page, without a pause.
pub fn give_back() {
    // SAFETY: it has no arguments that could be wrong, and touches only memory that is not in use.
    unsafe { libmimalloc_sys::mi_collect(false) }
}
