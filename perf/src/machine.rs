//! What machine this is and how busy it is, for the head of a report and the whole-machine cost.

use std::io;
use std::time::Duration;

use uztunnel::sys::cpu;

/// Busy CPU time of the whole machine since boot, nanoseconds (all but idle and waiting for disks).
pub fn busy_ns() -> io::Result<u64> {
    let [user, nice, system, _idle, _iowait, irq, softirq, _steal] = ticks()?;
    Ok((user + nice + system + irq + softirq) * NS_PER_TICK)
}

/// What the host took from the machine's CPUs since boot while they had work, if it says so.
pub fn stolen() -> io::Result<Duration> {
    let [.., steal] = ticks()?;
    Ok(Duration::from_nanos(steal * NS_PER_TICK))
}

/// The kernel counts in USER_HZ, which is 100 on every architecture that Linux still supports.
const NS_PER_TICK: u64 = 10_000_000;

/// Of all CPUs together: user, nice, system, idle, iowait, irq, softirq, steal; guest time is part of user.
fn ticks() -> io::Result<[u64; 8]> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let malformed = || io::Error::other("/proc/stat has no usable cpu line");
    let line = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("cpu "))
        .ok_or_else(malformed)?;
    let fields = line.split_whitespace().take(8).map(str::parse);
    let fields: Vec<u64> = fields.collect::<Result<_, _>>().map_err(|_| malformed())?;
    fields.try_into().map_err(|_| malformed())
}

/// One line: processor, number of CPUs, kernel.
pub fn describe() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model.trim());
    let cpus = cpu::online().unwrap_or(0);
    format!(
        "{model}, {cpus} CPUs, Linux {}",
        read("/proc/sys/kernel/osrelease").trim()
    )
}
