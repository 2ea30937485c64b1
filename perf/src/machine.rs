//! What machine this is and how busy it is, for the head of a report and the whole-machine cost.

use std::io;

use uztunnel::sys::cpu;

/// Busy CPU time of the whole machine since boot, nanoseconds (all but idle and waiting for disks).
pub fn busy_ns() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let malformed = || io::Error::other("/proc/stat has no usable cpu line");
    let line = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("cpu "))
        .ok_or_else(malformed)?;
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    let fields: Vec<u64> = line
        .split_whitespace()
        .take(8)
        .filter_map(|field| field.parse().ok())
        .collect();
    if fields.len() < 8 {
        return Err(malformed());
    }
    let busy: u64 = fields.iter().sum::<u64>() - fields[3] - fields[4] - fields[7];
    // The kernel counts in USER_HZ, which is 100 on every architecture that Linux still supports.
    Ok(busy * 10_000_000)
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
