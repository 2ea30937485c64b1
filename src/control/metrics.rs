//! What the control plane counts, and everything that a scrape shows.
//!
//! Counters are shared between the loops of the control thread that count and the scrape that reads them; the rest
//! is looked up when it is scraped. Names, types, labels and help are a contract with dashboards. Specification:
//! sections 1.2 and 2 of the observability contract: whatever is not on its list of stable series says `(unstable)`.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use crate::control::roster::Roster;
use crate::control::xds::protocol::Kind;
use crate::sys::rlimit;

pub mod exposition;
pub mod traffic;

use traffic::Workers;

/// The counters. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    terminations: Family<TerminationLabels, Counter>,
    messages: Family<MessageLabels, Counter>,
    message_bytes: Family<MessageLabels, Counter>,
    certificate_requests: Family<RequestLabels, Counter>,
}

/// Why there is no stream to the control plane any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Termination {
    /// It could not be opened.
    ConnectionError,
    /// The server went away in good order.
    Reconnect,
    /// Any other failure.
    Error,
    /// The server ended it without complaint.
    Complete,
}

impl Metrics {
    pub fn stream_ended(&self, reason: Termination) {
        self.terminations
            .get_or_create(&TerminationLabels { reason })
            .inc();
    }

    /// One response, whatever became of it. `None`: of a type that was not asked for.
    pub fn response_received(&self, kind: Option<Kind>, payload_bytes: usize) {
        // Names that a server makes up must not become series without end.
        let url = kind.map_or("unknown", Kind::type_url);
        self.messages.get_or_create(&MessageLabels { url }).inc();
        let bytes = self.message_bytes.get_or_create(&MessageLabels { url });
        bytes.inc_by(payload_bytes as u64);
    }

    /// The CA answered a request, or failed to.
    pub fn certificate_answered(&self, is_issued: bool) {
        let result = if is_issued {
            RequestResult::Issued
        } else {
            RequestResult::Failed
        };
        self.certificate_requests
            .get_or_create(&RequestLabels { result })
            .inc();
    }

    /// Everything that a scrape shows, in the order of its sections.
    pub fn registry(&self, istio_version: &str, roster: Roster, workers: Workers) -> Registry {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        let istio = registry.sub_registry_with_prefix("istio");
        self.register_istio(istio, istio_version, workers.clone());
        let pods = registry.sub_registry_with_prefix("workload_manager");
        pods.register_collector(Box::new(Pods(roster)));
        let own = registry.sub_registry_with_prefix("uztunnel");
        own.register(
            "certificate_requests",
            "The total number of requests to the certificate authority (unstable)",
            self.certificate_requests.clone(),
        );
        own.register_collector(Box::new(traffic::Own(workers)));
        registry
    }

    fn register_istio(&self, istio: &mut Registry, istio_version: &str, workers: Workers) {
        let build = Family::<BuildLabels, Gauge>::default();
        let labels = BuildLabels {
            component: "ztunnel",
            tag: istio_version.to_owned(),
        };
        build.get_or_create(&labels).set(1);
        istio.register("build", "Istio component build info", build);
        istio.register(
            "xds_connection_terminations",
            "The total number of completed connections to the control plane, by reason (unstable)",
            self.terminations.clone(),
        );
        istio.register(
            "xds_message",
            "The total number of messages received from the control plane (unstable)",
            self.messages.clone(),
        );
        istio.register_with_unit(
            "xds_message",
            "The total number of bytes of resources received from the control plane (unstable)",
            Unit::Bytes,
            self.message_bytes.clone(),
        );
        istio.register_collector(Box::new(traffic::Istio(workers)));
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    component: &'static str,
    /// Of the Istio release, not of this program.
    tag: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TerminationLabels {
    reason: Termination,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MessageLabels {
    url: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum RequestResult {
    Issued,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    result: RequestResult,
}

/// What the kernel says about this process.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        if let Some(open) = open_descriptors() {
            gauge(
                &mut encoder,
                "process_open_fds",
                "Number of open file descriptors",
                open,
            )?;
        }
        if let Ok(limit) = rlimit::open_files() {
            // "Unlimited" is above what a gauge holds.
            let soft = i64::try_from(limit.soft).unwrap_or(i64::MAX);
            gauge(
                &mut encoder,
                "process_max_fds",
                "Maximum number of open file descriptors",
                soft,
            )?;
        }
        Ok(())
    }
}

/// Linux tells their number as the directory's size, before 6.2 only by listing it.
fn open_descriptors() -> Option<i64> {
    const OWN: &str = "/proc/self/fd";
    let told = std::fs::metadata(OWN).ok()?.len();
    if told > 0 {
        return i64::try_from(told).ok();
    }
    // One of them is the directory's own.
    let listed = std::fs::read_dir(OWN).ok()?.count().saturating_sub(1);
    i64::try_from(listed).ok()
}

/// The pods of this node.
#[derive(Debug)]
struct Pods(Roster);

impl Collector for Pods {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let (up, pending, started, stopped) = self.0.look(|listed| {
            let (up, pending) = (listed.up.len(), listed.pending.len());
            (up, pending, listed.started, listed.stopped)
        });
        let up_help = "The total number of pods that are served (unstable).";
        gauge(&mut encoder, "active_proxy_count", up_help, up as i64)?;
        let pending_help = "The total number of pods that are announced and not served yet (unstable).";
        gauge(&mut encoder, "pending_proxy_count", pending_help, pending as i64)?;
        let started_help = "The total number of pods that were begun to be served (unstable).";
        counter(&mut encoder, "proxies_started", started_help, started)?;
        let stopped_help = "The total number of pods that were no longer served (unstable).";
        counter(&mut encoder, "proxies_stopped", stopped_help, stopped)
    }
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: i64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

fn counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
}
