//! Which driver the workers use, decided once for all of them, and why.
//!
//! Runs at start. Rule: whatever keeps io_uring from working, known or not, leads to epoll under `auto` and
//! stops the start under `uring`; the reason names the failed step, the errno, the likely cause and what would
//! help. Errnos are diagnosed, never listed as acceptable: sandboxes return odd ones.

use std::fmt;
use std::str::FromStr;

use super::confinement::{Confinement, RingSysctl, Seccomp};
use super::uring::{self, FeatureSet, KernelRelease, Profile, RingError};

/// What the operator wants (`UZTUNNEL_IO`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoMode {
    /// io_uring where it works and pays, else epoll.
    #[default]
    Auto,
    /// io_uring or no start.
    Uring,
    Epoll,
}

impl IoMode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

impl fmt::Display for IoMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no I/O mode; use auto, uring or epoll")]
pub struct UnknownIoMode {
    given: String,
}

impl FromStr for IoMode {
    type Err = UnknownIoMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let modes = [Self::Auto, Self::Uring, Self::Epoll];
        let found = modes.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| UnknownIoMode {
            given: text.to_owned(),
        })
    }
}

/// The driver of every worker.
#[derive(Debug)]
pub enum Choice {
    Uring(Profile),
    /// With the reason when io_uring was wanted.
    Epoll(Option<Refusal>),
}

impl Choice {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Uring(_) => "uring",
            Self::Epoll(_) => "epoll",
        }
    }
}

/// The line to log at start.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uring(profile) => {
                let rings = if profile.buffer_rings { "on" } else { "off" };
                write!(
                    f,
                    "io backend=uring features={} buffer_rings={rings}",
                    profile.set
                )
            }
            Self::Epoll(None) => f.write_str("io backend=epoll wanted=epoll"),
            Self::Epoll(Some(refusal)) => {
                write!(
                    f,
                    "io backend=epoll wanted=uring {refusal} effect=throughput only"
                )
            }
        }
    }
}

/// Why io_uring is not used.
#[derive(Debug)]
pub struct Refusal {
    pub obstacle: Obstacle,
    pub cause: Cause,
    confinement: Confinement,
}

#[derive(Debug)]
pub enum Obstacle {
    /// A step failed.
    Failed(RingError),
    /// It works, but without what makes it faster than epoll.
    NotWorthwhile(Profile),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => error.fmt(f),
            Self::NotWorthwhile(profile) if profile.set >= FeatureSet::V6_1 => {
                f.write_str("no safe provided-buffer rings (CVE-2024-0582)")
            }
            Self::NotWorthwhile(profile) => write!(
                f,
                "only what Linux {} offers works, and below 6.1 epoll is faster",
                profile.set
            ),
        }
    }
}

/// What most likely stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Sysctl,
    Seccomp,
    Kernel,
    /// Locked-memory limit or memory control group.
    Memory,
    Descriptors,
    /// A security module, or a sandbox that is not quite Linux.
    Sandbox,
}

impl Cause {
    /// For metrics and the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sysctl => "sysctl",
            Self::Seccomp => "seccomp",
            Self::Kernel => "kernel",
            Self::Memory => "memory",
            Self::Descriptors => "descriptors",
            Self::Sandbox => "sandbox",
        }
    }

    pub fn remedy(self) -> &'static str {
        match self {
            Self::Sysctl => {
                "set kernel.io_uring_disabled to 0, or to 1 for a proxy with CAP_SYS_ADMIN or in the group \
                 kernel.io_uring_group"
            }
            Self::Seccomp => {
                "give the pod a seccomp profile that allows io_uring_setup, io_uring_enter and \
                 io_uring_register"
            }
            Self::Kernel => "run Linux 6.1 or newer, except 6.4 to 6.6.4, with CONFIG_IO_URING",
            Self::Memory => "raise RLIMIT_MEMLOCK (ulimit -l) or the container's memory limit",
            Self::Descriptors => "raise RLIMIT_NOFILE (ulimit -n)",
            Self::Sandbox => {
                "look for denials of a security module (SELinux, AppArmor), or for a sandbox such as gVisor or \
                 LXC, and allow io_uring there"
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seccomp = self.confinement.seccomp.map_or("unknown", Seccomp::name);
        let sysctl = self.confinement.ring_sysctl.map(RingSysctl::value);
        let sysctl = sysctl.map_or("absent".to_owned(), |value| value.to_string());
        write!(
            f,
            "reason={} ({}; seccomp {seccomp}, kernel.io_uring_disabled {sysctl}) fix=\"{}\"",
            self.cause.name(),
            self.obstacle,
            self.cause.remedy()
        )
    }
}

impl std::error::Error for Refusal {}

/// Decides for all workers. `mask` holds the ring back to an older kernel's features, for tests; under `auto`
/// such a ring is judged as that kernel's would be.
///
/// # Errors
/// `wanted` is `Uring`, and it does not work here.
pub fn choose(wanted: IoMode, mask: Option<FeatureSet>) -> Result<Choice, Refusal> {
    let confinement = match wanted {
        IoMode::Epoll => return Ok(Choice::Epoll(None)),
        IoMode::Auto | IoMode::Uring => Confinement::read(),
    };
    let release = confinement.kernel_release.as_deref();
    let probed = uring::probe(mask, release.and_then(KernelRelease::parse));
    decide(wanted, probed, confinement)
}

fn decide(
    wanted: IoMode,
    probed: Result<Profile, RingError>,
    confinement: Confinement,
) -> Result<Choice, Refusal> {
    let refusal = match probed {
        Ok(profile) if wanted == IoMode::Uring || profile.is_worthwhile() => {
            return Ok(Choice::Uring(profile));
        }
        Ok(profile) => Refusal {
            obstacle: Obstacle::NotWorthwhile(profile),
            cause: Cause::Kernel,
            confinement,
        },
        Err(error) => Refusal {
            cause: diagnose(&error, &confinement),
            obstacle: Obstacle::Failed(error),
            confinement,
        },
    };
    match wanted {
        IoMode::Uring => Err(refusal),
        IoMode::Auto | IoMode::Epoll => Ok(Choice::Epoll(Some(refusal))),
    }
}

fn diagnose(refused: &RingError, confinement: &Confinement) -> Cause {
    let filtered = confinement.seccomp == Some(Seccomp::Filter);
    match refused.error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if confinement.is_ring_forbidden_by_sysctl() => Cause::Sysctl,
        Some(libc::EPERM) if filtered => Cause::Seccomp,
        // Container runtimes answer so for calls newer than their profile.
        Some(libc::ENOSYS) if filtered => Cause::Seccomp,
        Some(libc::ENOSYS | libc::EINVAL) => Cause::Kernel,
        Some(libc::ENOMEM) => Cause::Memory,
        Some(libc::EMFILE | libc::ENFILE) => Cause::Descriptors,
        Some(_) | None => Cause::Sandbox,
    }
}

#[cfg(test)]
mod tests;
