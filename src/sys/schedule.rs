//! How the kernel's scheduler shares a CPU between our threads.
//!
//! A worker that wakes on a CPU where the control thread is decoding waits for the rest of that thread's slice, three
//! milliseconds as a rule. A thread that asks for a short slice is interrupted after it, if others wait (EEVDF, Linux
//! 6.12 and newer; older kernels ignore the length). It gets no smaller share of the CPU by it, only more often.
//! Threads that it starts afterwards inherit it.
//!
//! The kernel looks at slices when a thread wakes and when its clock ticks, which is every 4 or 10 ms: whoever works
//! for longer gives way in between by itself.

use std::io;
use std::time::Duration;

/// `struct sched_attr` of the kernel, first version.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const SCHED_OTHER: u32 = 0;

/// What ordinary threads get differs by machine; the kernel takes 0.1 to 100 ms.
pub fn set_slice(slice: Duration) -> io::Result<()> {
    let mut attributes = Attributes::default();
    let size = size_of::<Attributes>() as u32;
    // SAFETY: 0 is the calling thread, and `attributes` is writable memory of the size that is given.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    if attributes.policy != SCHED_OTHER {
        // Somebody has chosen another scheduling for us.
        return Ok(());
    }
    attributes.size = size;
    attributes.flags = 0;
    attributes.runtime = slice.as_nanos() as u64;
    // SAFETY: as above; the kernel only reads it.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if set < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Lets in whoever waits for this CPU. Costs less than a microsecond if nobody does.
pub fn give_way() {
    std::thread::yield_now();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_the_slice_that_it_asks_for_where_the_kernel_knows_of_slices() {
        std::thread::spawn(|| {
            set_slice(Duration::from_micros(200)).expect("allowed to everybody");
            let mut attributes = Attributes::default();
            let size = size_of::<Attributes>() as u32;
            // SAFETY: as in `set_slice`.
            let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
            assert_eq!(got, 0);
            // 0 on kernels before 6.12.
            assert!(
                [0, 200_000].contains(&attributes.runtime),
                "{}",
                attributes.runtime
            );
        })
        .join()
        .expect("the thread");
    }
}
