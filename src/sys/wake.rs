//! Ending a driver's wait from another thread, by an eventfd.
//!
//! `Waker` is shared by all threads, `Wakeup` belongs to the driver's. The one atomic (the only one outside
//! `bridge` and `control`) says whether the driver sleeps, so that waking a busy worker costs no system call
//! and any number of wakes costs one. Invariant: after `wake` returned, the driver's next wait ends, and
//! everything the waking thread wrote before is visible then.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::driver::Wake;

const AWAKE: u8 = 0;
/// In the kernel, or about to be: only the eventfd ends it.
const SLEEPING: u8 = 1;
const WOKEN: u8 = 2;

pub struct Waker {
    event: OwnedFd,
    state: AtomicU8,
}

impl Wake for Waker {
    fn wake(&self) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == SLEEPING {
            let one: u64 = 1;
            // SAFETY: writes the eight bytes of `one`; the descriptor is open as long as `self`. It can only
            // fail by the counter being full, and then it is readable already.
            unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
        }
    }
}

/// The driver's side.
pub(super) struct Wakeup {
    shared: Arc<Waker>,
}

impl Wakeup {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nothing else owns.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            shared: Arc::new(Waker {
                event,
                state: AtomicU8::new(AWAKE),
            }),
        })
    }

    pub fn waker(&self) -> Arc<dyn Wake> {
        self.shared.clone()
    }

    /// To be watched by the driver, edge-triggered: every write is an edge, so the counter is never read.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    /// Before a wait that may sleep. `false`: woken already, do not sleep.
    pub fn may_sleep(&self) -> bool {
        self.shared
            .state
            .compare_exchange(AWAKE, SLEEPING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// After a wait, and when `may_sleep` said no: whether anyone woke the driver since the last call.
    pub fn was_woken(&self) -> bool {
        self.shared.state.swap(AWAKE, Ordering::AcqRel) == WOKEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(wakeup: &Wakeup) -> Option<u64> {
        let mut value = 0u64;
        // SAFETY: reads at most the eight bytes of `value`.
        let n = unsafe {
            libc::read(
                wakeup.event().as_raw_fd(),
                (&raw mut value).cast(),
                size_of::<u64>(),
            )
        };
        (n == 8).then_some(value)
    }

    #[test]
    fn waking_a_driver_that_is_awake_writes_nothing_but_is_seen() {
        let wakeup = Wakeup::new().expect("eventfd");
        wakeup.waker().wake();
        wakeup.waker().wake();
        assert_eq!(counter(&wakeup), None);
        assert!(!wakeup.may_sleep());
        assert!(wakeup.was_woken());
        assert!(!wakeup.was_woken());
    }

    #[test]
    fn any_number_of_wakes_of_a_sleeping_driver_is_one_write() {
        let wakeup = Wakeup::new().expect("eventfd");
        assert!(wakeup.may_sleep());
        for _ in 0..3 {
            wakeup.waker().wake();
        }
        assert_eq!(counter(&wakeup), Some(1));
        assert!(wakeup.was_woken());
        assert!(wakeup.may_sleep());
    }
}
