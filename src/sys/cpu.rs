//! The CPUs that this process may use, pinning threads to them, and how soon a thread that wakes gets one.
//!
//! Read once at start; `pin` is called by each worker for itself. A process that is throttled by a CFS quota
//! must not pin: its threads are stopped by time used, not by place, and pinned ones could not move away from
//! a busy CPU.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A CPU by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cpu(pub usize);

/// CPU time per time, from the control group: `cpus` may be a fraction.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Quota {
    pub cpus: f64,
}

/// The CPUs on which the calling thread may run (cpuset, taskset), in ascending order. To be called before
/// anything is pinned.
pub fn allowed() -> io::Result<Vec<Cpu>> {
    let ids = core_affinity::get_core_ids().ok_or_else(io::Error::last_os_error)?;
    Ok(ids.into_iter().map(|id| Cpu(id.id)).collect())
}

/// Keeps the calling thread on one CPU. `false`: the kernel refused.
pub fn pin(cpu: Cpu) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu.0 })
}

/// Tells the scheduler that the calling thread works for about `slice` whenever it wakes: it then goes before threads
/// with longer slices, and gets no more CPU time than without. Linux 6.12 or later; older kernels take it and do
/// nothing. Needs no privilege.
pub fn run_in_slices(slice: Duration) -> io::Result<()> {
    let mut attributes = attributes()?;
    attributes.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the kernel reads `size` bytes, all of which are initialised.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Leaves the calling thread, and those that it starts from now on, behind others where a CPU is short: by how many
/// levels of nice. There is no way back without a privilege.
pub fn stand_back(levels: u8) {
    // SAFETY: an integer. On Linux it is about the calling thread; to be nicer is always allowed (nice(2)).
    unsafe { libc::nice(libc::c_int::from(levels)) };
}

/// How the calling thread is scheduled.
fn attributes() -> io::Result<libc::sched_attr> {
    // SAFETY: all fields are integers.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of_val(&attributes) as libc::c_uint;
    // SAFETY: the kernel writes at most `size` bytes; 0 is the calling thread, and there are no flags.
    match unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) } {
        0 => Ok(libc::sched_attr { size, ..attributes }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// CPU time of the calling thread since it began. A system call, where reading the wall clock is none.
pub fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one `timespec`.
    let outcome = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(outcome, 0, "invariant: a thread has a clock of its own");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The tightest CFS quota on this process; `None` when there is none.
pub fn quota() -> Option<Quota> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    quota_of(&groups, Path::new("/sys/fs/cgroup"))
}

/// CPUs of the machine that are running, whether this process may use them or not.
pub fn online() -> Option<usize> {
    count_of(&fs::read_to_string("/sys/devices/system/cpu/online").ok()?)
}

/// Counts a list as the kernel writes them: `0-3,5`.
fn count_of(list: &str) -> Option<usize> {
    list.trim()
        .split(',')
        .map(|range| match range.split_once('-') {
            Some((first, last)) => Some(last.parse::<usize>().ok()? + 1 - first.parse::<usize>().ok()?),
            None => range.parse::<usize>().ok().map(|_| 1),
        })
        .sum()
}

/// Whether each of `workers` threads can have a CPU of its own and keep it: the process was given some of the
/// machine's CPUs for itself, as Kubernetes' static CPU manager does, and may use them in full. On CPUs that
/// everybody shares, a pinned thread waits behind applications while another CPU is idle.
pub fn set_is_ours(allowed: &[Cpu], online: Option<usize>, quota: Option<Quota>, workers: usize) -> bool {
    quota.is_none() && workers <= allowed.len() && online.is_some_and(|online| allowed.len() < online)
}

/// `groups` is the text of `/proc/self/cgroup`: lines `hierarchy:controllers:path`; version 2 has no
/// controllers. A quota on any group above counts too. Seen from inside a container the path may name a group
/// that is not visible under `mount`; then the mount itself is ours.
fn quota_of(groups: &str, mount: &Path) -> Option<Quota> {
    let mut tightest: Option<Quota> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let roots: &[&str] = match controllers {
            "" => &["", "unified"],
            list if list.split(',').any(|controller| controller == "cpu") => &["cpu", "cpu,cpuacct"],
            _ => continue,
        };
        for root in roots.iter().map(|root| mount.join(root)) {
            let found = groups_up(&root, path).filter_map(|group| quota_in(&group));
            tightest = found.chain(tightest).reduce(|a, b| if b < a { b } else { a });
        }
    }
    tightest
}

/// The directories of a group and of all above it, within `root`.
fn groups_up(root: &Path, path: &str) -> impl Iterator<Item = PathBuf> {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    // A path that leads out of the mount is not visible here.
    let depth = if parts.contains(&"..") { 0 } else { parts.len() };
    let root = root.to_owned();
    (0..=depth).map(move |depth| root.join(parts[..depth].join("/")))
}

fn quota_in(group: &Path) -> Option<Quota> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    if let Some(text) = read("cpu.max") {
        let (quota, period) = text.trim().split_once(' ')?;
        return quota_from(quota, period);
    }
    quota_from(&read("cpu.cfs_quota_us")?, &read("cpu.cfs_period_us")?)
}

/// Version 2 says `max` and version 1 says `-1` when there is no quota.
fn quota_from(quota: &str, period: &str) -> Option<Quota> {
    let quota: u64 = quota.trim().parse().ok()?;
    let period: u64 = period.trim().parse().ok()?;
    (quota > 0 && period > 0).then(|| Quota {
        cpus: quota as f64 / period as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a file")).expect("directories");
        fs::write(path, text).expect("written");
    }

    #[test]
    fn the_tightest_quota_of_all_groups_above_counts() {
        let mount = tempfile::tempdir().expect("directory");
        let groups = "0::/kubepods/pod1/container\n";
        assert_eq!(quota_of(groups, mount.path()), None);
        write(mount.path(), "kubepods/pod1/container/cpu.max", "max 100000\n");
        assert_eq!(quota_of(groups, mount.path()), None);
        write(mount.path(), "kubepods/cpu.max", "800000 100000\n");
        assert_eq!(quota_of(groups, mount.path()), Some(Quota { cpus: 8.0 }));
        write(mount.path(), "kubepods/pod1/cpu.max", "150000 100000\n");
        assert_eq!(quota_of(groups, mount.path()), Some(Quota { cpus: 1.5 }));
    }

    #[test]
    fn a_group_that_is_not_visible_leaves_the_mount() {
        let mount = tempfile::tempdir().expect("directory");
        write(mount.path(), "cpu.max", "50000 100000");
        assert_eq!(
            quota_of("0::/../../elsewhere", mount.path()),
            Some(Quota { cpus: 0.5 })
        );
        assert_eq!(quota_of("0::/", mount.path()), Some(Quota { cpus: 0.5 }));
    }

    #[test]
    fn version_one_is_read_from_the_cpu_controller() {
        let mount = tempfile::tempdir().expect("directory");
        write(mount.path(), "cpu,cpuacct/pods/cpu.cfs_quota_us", "-1\n");
        write(mount.path(), "cpu,cpuacct/pods/cpu.cfs_period_us", "100000\n");
        let groups = "9:memory:/pods\n4:cpu,cpuacct:/pods\nnonsense\n";
        assert_eq!(quota_of(groups, mount.path()), None);
        write(mount.path(), "cpu,cpuacct/pods/cpu.cfs_quota_us", "200000\n");
        assert_eq!(quota_of(groups, mount.path()), Some(Quota { cpus: 2.0 }));
    }

    #[test]
    fn the_set_is_ours_without_a_quota_and_with_a_cpu_for_each_worker() {
        let cpus = [Cpu(2), Cpu(5)];
        assert!(set_is_ours(&cpus, Some(4), None, 2));
        assert!(!set_is_ours(&cpus, Some(4), None, 3));
        assert!(!set_is_ours(&cpus, Some(4), Some(Quota { cpus: 4.0 }), 1));
    }

    #[test]
    fn cpus_that_everybody_may_use_are_not_ours() {
        let cpus = [Cpu(0), Cpu(1)];
        assert!(!set_is_ours(&cpus, Some(2), None, 2));
        assert!(!set_is_ours(&cpus, None, None, 2));
    }

    #[test]
    fn lists_of_cpus_are_counted() {
        assert_eq!(count_of("0-3,5\n"), Some(5));
        assert_eq!(count_of("0"), Some(1));
        assert_eq!(count_of("zero"), None);
        assert!(online().expect("every kernel tells") >= 1);
    }

    #[test]
    fn a_thread_asks_for_short_slices_and_keeps_its_priority() {
        std::thread::spawn(|| {
            stand_back(19);
            run_in_slices(Duration::from_micros(200)).expect("everybody may");
            let attributes = attributes().expect("own attributes");
            assert_eq!(attributes.sched_nice, 19);
            assert_eq!(attributes.sched_policy, libc::SCHED_OTHER as u32);
            // Linux before 6.12 has one length for all threads, and does not tell it.
            assert!([0, 200_000].contains(&attributes.sched_runtime));
        })
        .join()
        .expect("asked");
    }

    #[test]
    fn a_thread_stands_back_and_others_do_not() {
        let before = attributes().expect("own attributes").sched_nice;
        std::thread::spawn(move || {
            let nice = || attributes().expect("own attributes").sched_nice;
            stand_back(2);
            assert_eq!(nice(), (before + 2).min(19));
            let child = std::thread::spawn(move || attributes().expect("own attributes").sched_nice);
            assert_eq!(child.join().expect("told"), nice());
        })
        .join()
        .expect("stood back");
        assert_eq!(attributes().expect("own attributes").sched_nice, before);
    }

    #[test]
    fn a_thread_is_pinned_to_an_allowed_cpu() {
        std::thread::spawn(|| {
            let last = *allowed().expect("own set").last().expect("at least one");
            assert!(pin(last));
            assert_eq!(allowed().expect("own set"), [last]);
        })
        .join()
        .expect("pinned");
    }
}
