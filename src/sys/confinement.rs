//! What keeps the calling thread from kernel features: seccomp filters, capabilities, sysctls, limits; as /proc
//! tells it.
//!
//! Read at start and for `preflight`, never on a data path. Everything is optional: inside a sandbox files may
//! be missing, and that is itself worth saying.

use std::fs;

/// Capabilities that the proxy needs or that explain a refusal (linux/capability.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    NetAdmin,
    NetRaw,
    SysAdmin,
}

impl Capability {
    pub const ALL: [Self; 3] = [Self::NetAdmin, Self::SysAdmin, Self::NetRaw];

    pub fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysAdmin => "CAP_SYS_ADMIN",
        }
    }

    fn bit(self) -> u32 {
        match self {
            Self::NetAdmin => 12,
            Self::NetRaw => 13,
            Self::SysAdmin => 21,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seccomp {
    Off,
    Strict,
    Filter,
}

impl Seccomp {
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Strict => "strict",
            Self::Filter => "filter active",
        }
    }
}

/// `kernel.io_uring_disabled`: who may make rings (Linux 6.6, and kernels with it backported).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingSysctl {
    Everyone,
    /// Holders of CAP_SYS_ADMIN and members of `kernel.io_uring_group`.
    Privileged,
    Nobody,
}

impl RingSysctl {
    pub fn value(self) -> u8 {
        match self {
            Self::Everyone => 0,
            Self::Privileged => 1,
            Self::Nobody => 2,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinement {
    pub seccomp: Option<Seccomp>,
    pub no_new_privileges: Option<bool>,
    /// The effective set.
    capabilities: Option<u64>,
    groups: Vec<i64>,
    pub ring_sysctl: Option<RingSysctl>,
    /// `kernel.io_uring_group`; -1: none.
    ring_group: Option<i64>,
    /// As `uname -r` prints it.
    pub kernel_release: Option<String>,
}

impl Confinement {
    /// Of the calling thread: a filter can be in force on one thread only.
    pub fn read() -> Self {
        let text = |path| fs::read_to_string(path).ok();
        let status = text("/proc/thread-self/status").or_else(|| text("/proc/self/status"));
        Self::parse(
            status.as_deref().unwrap_or(""),
            text("/proc/sys/kernel/io_uring_disabled").as_deref(),
            text("/proc/sys/kernel/io_uring_group").as_deref(),
            text("/proc/sys/kernel/osrelease").as_deref(),
        )
    }

    /// From the texts of `/proc/self/status`, the two sysctls and the release.
    pub(crate) fn parse(
        status: &str,
        disabled: Option<&str>,
        group: Option<&str>,
        release: Option<&str>,
    ) -> Self {
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        let numbers = |text: Option<&str>| -> Vec<i64> {
            let words = text.unwrap_or("").split_ascii_whitespace();
            words.filter_map(|word| word.parse().ok()).collect()
        };
        Self {
            seccomp: match field("Seccomp") {
                Some("0") => Some(Seccomp::Off),
                Some("1") => Some(Seccomp::Strict),
                Some("2") => Some(Seccomp::Filter),
                Some(_) | None => None,
            },
            no_new_privileges: field("NoNewPrivs").map(|value| value != "0"),
            capabilities: field("CapEff").and_then(|value| u64::from_str_radix(value, 16).ok()),
            groups: [numbers(field("Groups")), numbers(field("Gid"))].concat(),
            ring_sysctl: match disabled.map(str::trim) {
                Some("0") => Some(RingSysctl::Everyone),
                Some("1") => Some(RingSysctl::Privileged),
                Some("2") => Some(RingSysctl::Nobody),
                Some(_) | None => None,
            },
            ring_group: group.and_then(|value| value.trim().parse().ok()),
            kernel_release: release.map(|release| release.trim().to_owned()),
        }
    }

    /// `None`: not known.
    pub fn has(&self, capability: Capability) -> Option<bool> {
        self.capabilities.map(|set| set >> capability.bit() & 1 == 1)
    }

    /// Whether the sysctl alone keeps this thread from making a ring.
    pub fn is_ring_forbidden_by_sysctl(&self) -> bool {
        match self.ring_sysctl {
            Some(RingSysctl::Nobody) => true,
            Some(RingSysctl::Privileged) => {
                let member = self
                    .ring_group
                    .is_some_and(|group| group >= 0 && self.groups.contains(&group));
                self.has(Capability::SysAdmin) != Some(true) && !member
            }
            Some(RingSysctl::Everyone) | None => false,
        }
    }
}

#[cfg(test)]
pub(in crate::sys) mod tests {
    use super::*;

    pub fn confined(seccomp: &str, capabilities: &str, disabled: Option<&str>) -> Confinement {
        let status = format!(
            "Name:\tuztunnel\nGid:\t1337\t1337\t1337\t1337\nGroups:\t7 9 \nCapEff:\t{capabilities}\n\
             NoNewPrivs:\t1\nSeccomp:\t{seccomp}\nSeccomp_filters:\t1\n"
        );
        Confinement::parse(&status, disabled, Some("9\n"), Some("6.12.9-generic\n"))
    }

    #[test]
    fn the_status_of_a_thread_is_understood() {
        let found = confined("2", "0000000000203000", Some("1\n"));
        assert_eq!(found.seccomp, Some(Seccomp::Filter));
        assert_eq!(found.no_new_privileges, Some(true));
        for capability in Capability::ALL {
            assert_eq!(found.has(capability), Some(true), "{}", capability.name());
        }
        assert_eq!(found.ring_sysctl, Some(RingSysctl::Privileged));
        assert_eq!(found.kernel_release.as_deref(), Some("6.12.9-generic"));
        let nothing = Confinement::parse("", None, None, None);
        assert_eq!(nothing, Confinement::default());
        assert_eq!(nothing.has(Capability::SysAdmin), None);
    }

    #[test]
    fn the_sysctl_forbids_rings_to_whom_it_says() {
        let member = |disabled| confined("0", "0", Some(disabled)).is_ring_forbidden_by_sysctl();
        assert!(!member("0"));
        assert!(!member("1"), "group 9 may");
        assert!(member("2"));
        let mut stranger = confined("0", "0", Some("1"));
        stranger.ring_group = Some(-1);
        assert!(stranger.is_ring_forbidden_by_sysctl());
        stranger.capabilities = Some(1 << 21);
        assert!(!stranger.is_ring_forbidden_by_sysctl());
    }

    #[test]
    fn this_thread_can_be_read() {
        let here = Confinement::read();
        assert!(here.seccomp.is_some());
        assert!(here.has(Capability::NetAdmin).is_some());
        assert!(here.kernel_release.is_some());
    }
}
