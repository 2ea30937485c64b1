//! `uztunnel preflight`: what this node offers the proxy, which driver it would choose and why, and what to
//! change.
//!
//! Runs instead of the proxy, in the same container: the answer depends on that container's seccomp profile,
//! capabilities and limits. Gathering and judging are apart: `judge` is pure.

use std::fmt;
use std::io;

use crate::sys::confinement::{Capability, Confinement, RingSysctl, Seccomp};
use crate::sys::cpu::{self, Cpu, Quota};
use crate::sys::rlimit::{self, Limit};
use crate::sys::select::{self, Choice, IoMode, Refusal};
use crate::sys::uring::{FeatureSet, KernelRelease};

/// Below this a busy node runs out: a proxied connection takes two descriptors.
const OPEN_FILES_ADVISED: u64 = 65_536;

/// What is so, and what to change. `Display` is the text of the subcommand.
#[derive(Debug)]
pub struct Report {
    lines: Vec<Line>,
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Line {
    name: &'static str,
    value: String,
}

/// Something worth changing on this node or in this pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub severity: Severity,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The proxy works without, but not at its best.
    Advised,
    /// The proxy would not start, or could not serve pods.
    Required,
}

impl Report {
    /// Whether the proxy would start and could do its work.
    pub fn is_ready(&self) -> bool {
        self.changes
            .iter()
            .all(|change| change.severity < Severity::Required)
    }

    pub fn changes(&self) -> &[Change] {
        &self.changes
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Line { name, value } in &self.lines {
            writeln!(f, "{name:<26} {value}")?;
        }
        writeln!(f)?;
        if self.changes.is_empty() {
            return writeln!(f, "Nothing to change.");
        }
        writeln!(f, "To change:")?;
        for Change { severity, text } in &self.changes {
            let severity = match severity {
                Severity::Required => "required",
                Severity::Advised => "advised",
            };
            writeln!(f, "  {severity}: {text}")?;
        }
        Ok(())
    }
}

/// Looks at this node with the eyes of a proxy that is told to use `wanted` (`UZTUNNEL_IO`) and `mask`
/// (`UZTUNNEL_RING_FEATURES`).
pub fn report(wanted: IoMode, mask: Option<FeatureSet>) -> Report {
    judge(&Facts {
        wanted,
        choice: select::choose(wanted, mask),
        confinement: Confinement::read(),
        locked_memory: rlimit::locked_memory(),
        open_files: rlimit::raise_open_files(),
        cpus: cpu::allowed(),
        online: cpu::online(),
        quota: cpu::quota(),
    })
}

struct Facts {
    wanted: IoMode,
    choice: Result<Choice, Refusal>,
    confinement: Confinement,
    locked_memory: io::Result<Limit>,
    /// After it was raised as far as it goes.
    open_files: io::Result<Limit>,
    cpus: io::Result<Vec<Cpu>>,
    online: Option<usize>,
    quota: Option<Quota>,
}

fn judge(facts: &Facts) -> Report {
    let mut report = Report {
        lines: Vec::new(),
        changes: Vec::new(),
    };
    judge_driver(facts, &mut report);
    judge_kernel(&facts.confinement, &mut report);
    judge_capabilities(&facts.confinement, &mut report);
    judge_limits(facts, &mut report);
    judge_cpus(facts, &mut report);
    report
        .changes
        .sort_by_key(|change| std::cmp::Reverse(change.severity));
    report
}

impl Report {
    fn say(&mut self, name: &'static str, value: impl Into<String>) {
        self.lines.push(Line {
            name,
            value: value.into(),
        });
    }

    fn change(&mut self, severity: Severity, text: impl Into<String>) {
        self.changes.push(Change {
            severity,
            text: text.into(),
        });
    }
}

fn judge_driver(facts: &Facts, report: &mut Report) {
    let wanted = facts.wanted;
    match &facts.choice {
        Ok(Choice::Uring(profile)) => {
            report.say("driver", format!("uring (UZTUNNEL_IO={wanted}): it works here"));
            let blocks = if profile.buffer_rings { "yes" } else { "no" };
            report.say(
                "ring features",
                format!(
                    "as of Linux {}, provided-buffer rings {blocks}, multishot receive {}",
                    profile.set,
                    if profile.multishot_receive() { "yes" } else { "no" }
                ),
            );
        }
        Ok(Choice::Epoll(None)) => report.say("driver", format!("epoll (UZTUNNEL_IO={wanted}): asked for")),
        Ok(Choice::Epoll(Some(refusal))) => {
            report.say(
                "driver",
                format!(
                    "epoll (UZTUNNEL_IO={wanted}): io_uring is not used, likely because of {}: {}",
                    refusal.cause.name(),
                    refusal.obstacle
                ),
            );
            report.change(
                Severity::Advised,
                format!("for io_uring (speed only), {}", refusal.cause.remedy()),
            );
        }
        Err(refusal) => {
            report.say(
                "driver",
                format!(
                    "none (UZTUNNEL_IO={wanted}): io_uring cannot be used, likely because of {}: {}",
                    refusal.cause.name(),
                    refusal.obstacle
                ),
            );
            report.change(
                Severity::Required,
                format!("{}, or set UZTUNNEL_IO=auto", refusal.cause.remedy()),
            );
        }
    }
}

fn judge_kernel(confinement: &Confinement, report: &mut Report) {
    let release = confinement.kernel_release.as_deref();
    let unsafe_rings = release
        .and_then(KernelRelease::parse)
        .is_some_and(KernelRelease::has_unsafe_buffer_rings);
    report.say(
        "kernel",
        match unsafe_rings {
            true => format!(
                "{} (CVE-2024-0582: provided-buffer rings are not used)",
                release.unwrap_or_default()
            ),
            false => release.unwrap_or("unknown").to_owned(),
        },
    );
    report.say(
        "seccomp",
        confinement.seccomp.map_or("unknown", Seccomp::name).to_owned(),
    );
    report.say(
        "kernel.io_uring_disabled",
        match confinement.ring_sysctl {
            None => "absent (before Linux 6.6, or not visible)",
            Some(RingSysctl::Everyone) => "0 (anyone may make rings)",
            Some(RingSysctl::Privileged) => "1 (CAP_SYS_ADMIN or the group kernel.io_uring_group)",
            Some(RingSysctl::Nobody) => "2 (nobody may make rings)",
        },
    );
}

fn judge_capabilities(confinement: &Confinement, report: &mut Report) {
    let states: Vec<String> = Capability::ALL
        .into_iter()
        .map(|capability| {
            let state = match confinement.has(capability) {
                Some(true) => "yes",
                Some(false) => "MISSING",
                None => "unknown",
            };
            format!("{} {state}", capability.name())
        })
        .collect();
    report.say("capabilities", states.join(", "));
    for capability in Capability::ALL {
        if confinement.has(capability) == Some(false) {
            let why = match capability {
                Capability::SysAdmin => "enter the network namespaces of pods",
                Capability::NetAdmin => "mark packets and keep the source addresses of clients",
                Capability::NetRaw => "bind addresses that are not this node's own",
            };
            report.change(
                Severity::Required,
                format!(
                    "add the capability {} to the container, to {why}",
                    capability.name()
                ),
            );
        }
    }
}

fn judge_limits(facts: &Facts, report: &mut Report) {
    report.say(
        "memlock limit",
        match &facts.locked_memory {
            Ok(limit) => format!("{} (counts for rings before Linux 5.12 only)", bytes(limit.soft)),
            Err(error) => format!("unknown: {error}"),
        },
    );
    match &facts.open_files {
        Ok(limit) => {
            report.say("open files limit", count(limit.soft));
            if limit.soft < OPEN_FILES_ADVISED {
                report.change(
                    Severity::Advised,
                    format!(
                        "raise RLIMIT_NOFILE (ulimit -n) from {} to {OPEN_FILES_ADVISED}: a connection takes \
                         two descriptors",
                        limit.soft
                    ),
                );
            }
        }
        Err(error) => report.say("open files limit", format!("unknown: {error}")),
    }
}

fn judge_cpus(facts: &Facts, report: &mut Report) {
    let quota = match facts.quota {
        Some(quota) => format!("{:.2} CPUs", quota.cpus),
        None => "none".to_owned(),
    };
    match &facts.cpus {
        Ok(cpus) => {
            let numbers: Vec<String> = cpus.iter().map(|cpu| cpu.0.to_string()).collect();
            report.say("CPU set", format!("{} ({})", cpus.len(), numbers.join(",")));
            let pinned = match cpu::set_is_ours(cpus, facts.online, facts.quota, cpus.len()) {
                true => "are pinned, the set is ours alone",
                false => "are not pinned, others share the set",
            };
            report.say("CPU quota", format!("{quota}; workers {pinned}"));
        }
        Err(error) => {
            report.say("CPU set", format!("unknown: {error}"));
            report.say("CPU quota", quota);
        }
    }
    if let Some(quota) = facts.quota
        && quota.cpus < 1.0
    {
        report.change(
            Severity::Advised,
            format!(
                "raise the CPU limit from {:.2} to at least 1, or remove it: every connection of the node waits \
                 when the proxy is throttled",
                quota.cpus
            ),
        );
    }
}

fn bytes(value: u64) -> String {
    match value {
        u64::MAX => "unlimited".to_owned(),
        value if value >= 1 << 20 => format!("{} MiB", value >> 20),
        value => format!("{} KiB", value >> 10),
    }
}

fn count(value: u64) -> String {
    match value {
        u64::MAX => "unlimited".to_owned(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(soft: u64) -> io::Result<Limit> {
        Ok(Limit { soft, hard: soft })
    }

    fn facts(wanted: IoMode) -> Facts {
        Facts {
            wanted,
            choice: select::choose(wanted, None),
            confinement: Confinement::read(),
            locked_memory: limit(8 << 20),
            open_files: limit(1 << 20),
            cpus: Ok(vec![Cpu(2), Cpu(3)]),
            online: Some(4),
            quota: None,
        }
    }

    #[test]
    fn everything_asked_about_is_in_the_report() {
        let text = judge(&facts(IoMode::Auto)).to_string();
        for name in [
            "driver",
            "ring features",
            "kernel",
            "seccomp",
            "kernel.io_uring_disabled",
            "CAP_NET_ADMIN",
            "CAP_SYS_ADMIN",
            "CAP_NET_RAW",
            "memlock limit",
            "open files limit",
            "CPU set",
            "CPU quota",
        ] {
            assert!(text.contains(name), "{name} is missing in\n{text}");
        }
        assert!(text.contains("uring (UZTUNNEL_IO=auto): it works here"), "{text}");
        assert!(text.contains("2 (2,3)"), "{text}");
    }

    #[test]
    fn a_node_with_everything_needs_no_change() {
        let mut whole = facts(IoMode::Epoll);
        whole.confinement = Confinement::default();
        let report = judge(&whole);
        assert!(report.is_ready());
        assert_eq!(report.changes(), []);
        assert!(report.to_string().ends_with("Nothing to change.\n"), "{report}");
        assert!(
            report
                .to_string()
                .contains("epoll (UZTUNNEL_IO=epoll): asked for")
        );
    }

    #[test]
    fn tight_limits_are_advice_and_not_a_refusal() {
        let mut tight = facts(IoMode::Epoll);
        tight.open_files = limit(1024);
        tight.quota = Some(Quota { cpus: 0.2 });
        let report = judge(&tight);
        assert!(report.is_ready());
        let text = report.to_string();
        assert!(
            text.contains("advised: raise RLIMIT_NOFILE (ulimit -n) from 1024 to 65536"),
            "{text}"
        );
        assert!(text.contains("advised: raise the CPU limit from 0.20"), "{text}");
        assert!(text.contains("0.20 CPUs; workers are not pinned"), "{text}");
    }

    #[test]
    fn a_ring_that_is_not_used_is_explained_with_what_would_help() {
        let mut old = facts(IoMode::Auto);
        old.choice = select::choose(IoMode::Auto, Some(FeatureSet::V5_15));
        let report = judge(&old);
        assert!(report.is_ready());
        let text = report.to_string();
        assert!(
            text.contains("epoll (UZTUNNEL_IO=auto): io_uring is not used"),
            "{text}"
        );
        assert!(
            text.contains("advised: for io_uring (speed only), run Linux 6.1 or newer"),
            "{text}"
        );
        let mut strict = facts(IoMode::Uring);
        let Ok(Choice::Epoll(Some(refusal))) = old.choice else {
            panic!("chosen above");
        };
        strict.choice = Err(refusal);
        let report = judge(&strict);
        assert!(!report.is_ready());
        assert!(report.to_string().contains("required: run Linux 6.1"), "{report}");
    }

    #[test]
    fn a_missing_capability_is_required_with_its_reason() {
        let mut bare = facts(IoMode::Epoll);
        bare.confinement = Confinement::parse("CapEff:\t0000000000003000\n", None, None, None);
        let report = judge(&bare);
        assert!(!report.is_ready());
        let text = report.to_string();
        assert!(
            text.contains("CAP_NET_ADMIN yes, CAP_SYS_ADMIN MISSING, CAP_NET_RAW yes"),
            "{text}"
        );
        assert_eq!(report.changes().len(), 1);
        assert!(
            text.contains("required: add the capability CAP_SYS_ADMIN to the container, to enter"),
            "{text}"
        );
    }

    #[test]
    fn this_node_can_be_reported() {
        let report = report(IoMode::Auto, None);
        assert!(report.to_string().lines().count() > 10);
    }
}
