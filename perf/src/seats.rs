//! Where threads run, and who goes first: so that a measurement of one program does not wait for another one.
//!
//! Set by `taskset` and `chrt` of util-linux, for one thread at a time.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use uztunnel::sys::cpu;
use uztunnel_rig::proxy::CpuTimes;

/// Who runs when several want the same CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Before all others (SCHED_FIFO): only for those that have next to nothing to do.
    First,
    /// Before all but those (SCHED_FIFO): only for those that leave time. Linux 6.12 and later let the classes below go
    /// first for a twentieth of the time (its fair server).
    Second,
    /// As the kernel thinks fit.
    Ordinary,
    /// With what the others leave (SCHED_IDLE). `First` and `Second` interrupt it when they wake, ordinary ones nearly
    /// always (`awake`).
    Last,
}

impl Class {
    /// Gives it to a thread, by its id; that may run where it did.
    pub fn give(self, thread: u32) -> io::Result<()> {
        let (class, priority) = match self {
            Self::First => ("--fifo", "2"),
            Self::Second => ("--fifo", "1"),
            Self::Ordinary => ("--other", "0"),
            Self::Last => ("--idle", "0"),
        };
        run("chrt", &[class, "--pid", priority, &thread.to_string()])
    }
}

/// Of one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    pub cpu: usize,
    pub class: Class,
}

impl Seat {
    pub const fn new(cpu: usize, class: Class) -> Self {
        Self { cpu, class }
    }

    /// Gives the seat to a thread, by its id.
    pub fn give(self, thread: u32) -> io::Result<()> {
        let cpu = self.cpu.to_string();
        run("taskset", &["--pid", "--cpu-list", &cpu, &thread.to_string()])?;
        self.class.give(thread)
    }

    /// Gives it to the calling thread.
    pub fn take(self) -> io::Result<()> {
        self.give(calling_thread()?)
    }
}

/// The calling thread, and those that it starts from now on, run on other CPUs than this one.
pub fn leave(cpu: usize) -> io::Result<()> {
    let allowed = cpu::allowed()?;
    let others: Vec<String> = allowed
        .iter()
        .filter(|other| other.0 != cpu)
        .map(|other| other.0.to_string())
        .collect();
    if others.is_empty() {
        return Err(io::Error::other("there is no other CPU"));
    }
    let thread = calling_thread()?.to_string();
    run("taskset", &["--pid", "--cpu-list", &others.join(","), &thread])
}

/// Ids and names of the threads of a process, but for those that end meanwhile.
pub fn threads(process: u32) -> io::Result<Vec<(u32, String)>> {
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let folder = entry?.path();
        let id = folder.file_name().and_then(|name| name.to_str()?.parse().ok());
        let id = id.ok_or_else(|| io::Error::other(format!("{}: no thread's id", folder.display())))?;
        match std::fs::read_to_string(folder.join("comm")) {
            Ok(name) => threads.push((id, name.trim_end().to_owned())),
            Err(_) if !folder.exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(threads)
}

/// What one thread had of CPUs so far.
pub fn times(process: u32, thread: u32) -> io::Result<CpuTimes> {
    let task = format!("/proc/{process}/task/{thread}");
    CpuTimes::read(Path::new(&task))
}

fn calling_thread() -> io::Result<u32> {
    let link = std::fs::read_link("/proc/thread-self")?;
    let thread = link.file_name().and_then(|name| name.to_str()?.parse().ok());
    thread.ok_or_else(|| io::Error::other(format!("{}: no thread's id", link.display())))
}

fn run(program: &str, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "{program} {}: {}",
        arguments.join(" "),
        said.trim_end()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_takes_its_seat_and_is_found_by_name() {
        let name = "seated";
        let thread = std::thread::Builder::new().name(name.to_owned());
        let check = move || -> io::Result<()> {
            Seat::new(0, Class::Last).take()?;
            let own = threads(std::process::id())?;
            let (id, _) = own.iter().find(|(_, found)| found == name).expect("this thread");
            let status = std::fs::read_to_string(format!("/proc/self/task/{id}/status"))?;
            assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
            assert!(times(std::process::id(), *id)?.ran_ns > 0);
            Ok(())
        };
        let done = thread.spawn(check).expect("a thread").join().expect("no panic");
        done.expect("a seat on the first CPU");
    }
}
