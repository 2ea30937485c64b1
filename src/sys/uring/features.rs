//! What the driver uses of io_uring, by kernel generation, and which generation a ring is made for.
//!
//! Pure. The generation in force is found by trying (`sys::uring::probe`), never from the kernel's version:
//! distributions backport, sandboxes remove. The version is looked at for one thing, the range of kernels
//! whose provided-buffer rings can be made to use freed memory (CVE-2024-0582).

use std::fmt;
use std::str::FromStr;

/// Generations of io_uring, oldest first. A ring made for one uses nothing that came later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FeatureSet {
    /// Plain rings; receives wait for readiness and then read by `recv(2)`.
    V5_15,
    /// A failing entry does not stop the submission of the rest; the ring's descriptor can be registered.
    V5_18,
    /// Provided-buffer rings, multishot accept, cooperative task work, cancellation by descriptor.
    V5_19,
    /// Multishot receive, single issuer.
    V6_0,
    /// Deferred task work.
    V6_1,
    /// No submission array; waiting that does not count as disk wait where the feature bit says so (6.15).
    V6_6,
}

impl FeatureSet {
    pub const NEWEST: Self = Self::V6_6;

    /// The generation to try when the kernel does not know this one's flags.
    pub fn older(self) -> Option<Self> {
        match self {
            Self::V6_6 => Some(Self::V6_1),
            Self::V6_1 => Some(Self::V6_0),
            Self::V6_0 => Some(Self::V5_19),
            Self::V5_19 => Some(Self::V5_18),
            Self::V5_18 => Some(Self::V5_15),
            Self::V5_15 => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::V5_15 => "5.15",
            Self::V5_18 => "5.18",
            Self::V5_19 => "5.19",
            Self::V6_0 => "6.0",
            Self::V6_1 => "6.1",
            Self::V6_6 => "6.6",
        }
    }
}

impl fmt::Display for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no set of ring features; use 5.15, 5.18, 5.19, 6.0, 6.1 or 6.6")]
pub struct UnknownFeatureSet {
    given: String,
}

impl FromStr for FeatureSet {
    type Err = UnknownFeatureSet;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut set = Some(Self::NEWEST);
        while let Some(candidate) = set {
            if candidate.name() == text {
                return Ok(candidate);
            }
            set = candidate.older();
        }
        Err(UnknownFeatureSet {
            given: text.to_owned(),
        })
    }
}

/// How a worker makes its ring: what the probe found to work, the same for every worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    pub set: FeatureSet,
    /// Entries of the submission queue; the completion queue has four times as many.
    pub entries: u32,
    /// Whether received bytes land in blocks that the kernel picks when they arrive. Without it an idle
    /// receive waits for readiness and then reads, as on epoll.
    pub buffer_rings: bool,
}

impl Profile {
    pub fn new(set: FeatureSet, entries: u32, release: Option<KernelRelease>) -> Self {
        let vulnerable = release.is_some_and(KernelRelease::has_unsafe_buffer_rings);
        Self {
            set,
            entries,
            buffer_rings: set >= FeatureSet::V5_19 && !vulnerable,
        }
    }

    pub(super) fn multishot_accept(self) -> bool {
        self.set >= FeatureSet::V5_19
    }

    pub fn multishot_receive(self) -> bool {
        self.set >= FeatureSet::V6_0 && self.buffer_rings
    }

    pub(super) fn poll_first(self) -> bool {
        self.set >= FeatureSet::V5_19
    }

    pub(super) fn cancel_by_descriptor(self) -> bool {
        self.set >= FeatureSet::V5_19
    }

    pub(super) fn registered_ring(self) -> bool {
        self.set >= FeatureSet::V5_18
    }

    /// Whether a ring like this beats epoll. Without deferred task work completions interrupt the running
    /// thread; without buffer rings every receive costs the calls that epoll costs.
    pub fn is_worthwhile(self) -> bool {
        self.set >= FeatureSet::V6_1 && self.buffer_rings
    }
}

/// `major.minor.patch` of a release string such as `6.6.3-1-generic`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelRelease {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl KernelRelease {
    pub fn parse(release: &str) -> Option<Self> {
        let numbers = release.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut parts = numbers.split('.').map(str::parse);
        let major = parts.next()?.ok()?;
        let minor = parts.next()?.ok()?;
        let patch = parts.next().and_then(Result::ok).unwrap_or(0);
        Some(Self { major, minor, patch })
    }

    /// CVE-2024-0582: 6.4 up to and including 6.6.4. A distribution may have fixed its own build; that
    /// cannot be told from outside, and the loss is speed only.
    pub fn has_unsafe_buffer_rings(self) -> bool {
        let first = Self {
            major: 6,
            minor: 4,
            patch: 0,
        };
        let last = Self {
            major: 6,
            minor: 6,
            patch: 4,
        };
        first <= self && self <= last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_generation_is_found_by_its_name() {
        let mut set = Some(FeatureSet::NEWEST);
        let mut seen = 0;
        while let Some(this) = set {
            assert_eq!(this.name().parse(), Ok(this));
            if let Some(older) = this.older() {
                assert!(older < this);
            }
            set = this.older();
            seen += 1;
        }
        assert_eq!(seen, 6);
        let refused = "4.19".parse::<FeatureSet>().expect_err("too old");
        assert!(refused.to_string().contains("\"4.19\""), "{refused}");
    }

    #[test]
    fn buffer_rings_are_refused_exactly_where_they_are_unsafe() {
        let unsafe_on = |text: &str| {
            let release = KernelRelease::parse(text);
            assert!(release.is_some(), "{text}");
            !Profile::new(FeatureSet::V6_1, 64, release).buffer_rings
        };
        for text in ["6.4.0", "6.5.13-ubuntu", "6.6.0-rc1", "6.6.4-generic", "6.6"] {
            assert!(unsafe_on(text), "{text}");
        }
        for text in [
            "6.3.13",
            "6.6.5",
            "6.6.12-talos",
            "6.7.0",
            "6.18.44-fc-v669",
            "5.15.0",
        ] {
            assert!(!unsafe_on(text), "{text}");
        }
        assert_eq!(KernelRelease::parse("unknown"), None);
    }

    #[test]
    fn an_older_generation_never_uses_more() {
        let old = Profile::new(FeatureSet::V5_15, 64, None);
        assert!(
            !old.buffer_rings && !old.multishot_accept() && !old.multishot_receive() && !old.poll_first()
        );
        let middle = Profile::new(FeatureSet::V5_19, 64, None);
        assert!(middle.buffer_rings && middle.multishot_accept() && !middle.multishot_receive());
        assert!(!middle.is_worthwhile());
        assert!(Profile::new(FeatureSet::V6_1, 64, None).is_worthwhile());
    }
}
