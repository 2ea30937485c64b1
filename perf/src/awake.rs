//! Keeps the CPUs of the machine awake while something is measured: a virtual one that sleeps is woken by its host, which
//! takes as long as it likes.
//!
//! Who holds `/dev/cpu_dma_latency` open with a latency of nothing is promised that CPUs without work poll for it
//! (Linux, Documentation/power/pm_qos_interface.rst). Rejected: threads of the lowest class (SCHED_IDLE) that compute. A
//! thread that wakes does not always take the CPU from one of them: if it had more than its part lately, the scheduler
//! (EEVDF, Linux 6.6 and later) lets the other one go on to the end of its slice, 1.4 ms with two CPUs. Up to four
//! times for an echo through two proxies.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

const DEVICE: &str = "/dev/cpu_dma_latency";

/// They are awake as long as it lives.
pub struct Awake(#[expect(dead_code, reason = "open files are what the kernel looks at")] File);

impl Awake {
    /// Says so where the kernel does not promise it.
    pub fn keep_or_say() -> Option<Self> {
        let awake = Self::keep();
        let say =
            |error: &io::Error| eprintln!("idle CPUs sleep, and what is measured has that in it: {error}");
        awake.inspect_err(say).ok()
    }

    fn keep() -> io::Result<Self> {
        let asking = || {
            let mut device = OpenOptions::new().write(true).open(DEVICE)?;
            // Microseconds, as the machine writes integers.
            device.write_all(&0_i32.to_ne_bytes())?;
            Ok(Self(device))
        };
        asking().map_err(|error: io::Error| io::Error::new(error.kind(), format!("{DEVICE}: {error}")))
    }
}
