//! The series of traffic, added up over the workers and put into the words of the contract.
//!
//! Runs on the thread that writes a scrape; workers notice nothing of it. Specification: sections 2 and 3 of the
//! observability contract: order of families and labels, names and values.

use std::fmt::{self, Write};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::bridge::traffic::{EndLabels, Labels, NameLabels, ResponseFlag, Sums, Traffic};
use crate::bridge::{Direction, LoadTable, Revocations};

/// What is counted outside of the control thread.
#[derive(Debug, Clone)]
pub struct Workers {
    pub traffic: Traffic,
    pub load: LoadTable,
    pub revocations: Revocations,
}

impl Workers {
    /// For so many of them, which have not counted anything yet.
    pub fn new(workers: usize) -> Self {
        Self {
            traffic: Traffic::default(),
            load: LoadTable::new(workers),
            revocations: Revocations::default(),
        }
    }
}

/// The `istio_tcp_*` series and their like.
#[derive(Debug)]
pub struct Istio(pub Workers);

/// What this program adds to them.
#[derive(Debug)]
pub struct Own(pub Workers);

impl Collector for Istio {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let series = self.0.traffic.series();
        let all = || series.iter();
        let unflagged = |labels| TrafficLabels(labels, ResponseFlag::None);
        let ended = |is_shown: fn(ResponseFlag) -> bool| {
            all().flat_map(move |(labels, sums)| {
                let flags = ResponseFlag::ALL.into_iter().filter(move |flag| is_shown(*flag));
                flags
                    .map(move |flag| (TrafficLabels(labels, flag), sums.closed[flag as usize]))
                    .filter(|(_, count)| *count > 0)
            })
        };
        let opened = |sums: &Sums| sums.opened;
        counters(
            &mut encoder,
            "tcp_connections_opened",
            "The total number of TCP connections opened.",
            None,
            all().map(|(labels, sums)| (unflagged(labels), opened(sums))),
        )?;
        counters(
            &mut encoder,
            "tcp_connections_closed",
            "The total number of TCP connections closed.",
            None,
            ended(|_| true),
        )?;
        counters(
            &mut encoder,
            "tcp_received",
            "The total number of bytes that clients sent over TCP connections.",
            Some(&Unit::Bytes),
            all().map(|(labels, sums)| (unflagged(labels), sums.received_bytes)),
        )?;
        counters(
            &mut encoder,
            "tcp_sent",
            "The total number of bytes that servers sent over TCP connections.",
            Some(&Unit::Bytes),
            all().map(|(labels, sums)| (unflagged(labels), sums.sent_bytes)),
        )?;
        counters(
            &mut encoder,
            "tcp_connections_failed",
            "The total number of TCP connections that failed (unstable).",
            None,
            ended(|flag| flag != ResponseFlag::None),
        )?;
        let directions = [Direction::Outbound, Direction::Inbound];
        gauges(
            &mut encoder,
            "tcp_sockets_open",
            "The number of sockets that were accepted and are open (unstable).",
            directions.map(|it| ([("reporter", reporter(it))], self.0.load.sockets_open(it))),
        )?;
        let names = self.0.traffic.names();
        counters(
            &mut encoder,
            "on_demand_dns",
            "The total number of look-ups of the host names of workloads (unstable).",
            None,
            names.iter().map(|(labels, count)| (LookupLabels(labels), *count)),
        )?;
        let rejected = directions.map(|it| ([("reporter", reporter(it))], self.0.revocations.rejections(it)));
        counters(
            &mut encoder,
            "crl_policy_rejections",
            "The total number of connections refused or ended because a certificate is revoked (unstable).",
            None,
            rejected.into_iter().filter(|(_, count)| *count > 0),
        )
    }
}

impl Collector for Own {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let totals = self.0.traffic.others();
        counters(
            &mut encoder,
            "connections_refused",
            "The total number of connections refused before a destination was chosen (unstable).",
            None,
            totals.refused.iter().map(|((direction, why), count)| {
                (
                    [("reporter", reporter(*direction)), ("reason", why.text())],
                    *count,
                )
            }),
        )?;
        let folded = (totals.folded > 0).then_some(([("labels", "unknown")], totals.folded));
        counters(
            &mut encoder,
            "connections_folded",
            "The total number of connections counted without labels, of which there were too many (unstable).",
            None,
            folded.into_iter(),
        )?;
        let failed = self.0.revocations.failed_loads();
        let failed = (failed > 0).then_some(([("result", "Failed")], failed));
        counters(
            &mut encoder,
            "crl_loads",
            "The total number of attempts to read revocation lists that failed (unstable).",
            None,
            failed.into_iter(),
        )?;
        let load = &self.0.load;
        let workers: Vec<(usize, String)> = (0..load.workers()).map(|it| (it, it.to_string())).collect();
        gauges(
            &mut encoder,
            "worker_connections",
            "The number of connections and sessions of each worker (unstable).",
            workers
                .iter()
                .map(|(it, name)| ([("worker", &**name)], u64::from(load.connections(*it)))),
        )?;
        gauges(
            &mut encoder,
            "worker_busy_per_mille",
            "The share of time in which each worker was busy lately (unstable).",
            workers
                .iter()
                .map(|(it, name)| ([("worker", &**name)], u64::from(load.busy_per_mille(*it)))),
        )
    }
}

/// Nothing at all is written for a family without series.
fn counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    series: impl Iterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut series = series.peekable();
    if series.peek().is_none() {
        return Ok(());
    }
    let mut family: MetricEncoder<'_> = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
    for (labels, count) in series {
        ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn reporter(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "source",
        Direction::Inbound => "destination",
    }
}

/// The labels of one series, in the order of the contract.
#[derive(Debug)]
struct TrafficLabels<'a>(&'a Labels, ResponseFlag);

impl EncodeLabelSet for TrafficLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Self(labels, flag) = self;
        let Labels {
            reporter: direction,
            source,
            source_principal,
            is_mutual_tls,
            service,
            destination,
            destination_principal,
            has_localities,
        } = labels;
        label(encoder, "reporter", reporter(*direction))?;
        let principal = source_principal
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        end(encoder, &SOURCE, source, &principal)?;
        label(encoder, "destination_service", &service.hostname)?;
        label(encoder, "destination_service_namespace", &service.namespace)?;
        label(encoder, "destination_service_name", &service.name)?;
        let principal = destination_principal
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        end(encoder, &DESTINATION, destination, &principal)?;
        label(encoder, "request_protocol", "tcp")?;
        label(encoder, "response_flags", flag.text())?;
        let policy = if *is_mutual_tls { "mutual_tls" } else { "" };
        label(encoder, "connection_security_policy", policy)?;
        if *has_localities {
            label(encoder, "source_region", &source.region)?;
            label(encoder, "source_zone", &source.zone)?;
            label(encoder, "destination_region", &destination.region)?;
            label(encoder, "destination_zone", &destination.zone)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct LookupLabels<'a>(&'a NameLabels);

impl EncodeLabelSet for LookupLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let NameLabels {
            source,
            source_principal,
            hostname,
        } = self.0;
        let principal = source_principal.as_ref().map(ToString::to_string);
        end(encoder, &SOURCE, source, &principal.unwrap_or_default())?;
        label(encoder, "hostname", hostname)
    }
}

const SOURCE: [&str; 8] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
];
const DESTINATION: [&str; 8] = [
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
];

fn end(encoder: &mut LabelSetEncoder<'_>, keys: &[&str; 8], end: &EndLabels, principal: &str) -> fmt::Result {
    let EndLabels {
        workload,
        canonical_service,
        canonical_revision,
        namespace,
        app,
        version,
        cluster,
        region: _,
        zone: _,
    } = end;
    let values: [&str; 8] = [
        workload,
        canonical_service,
        canonical_revision,
        namespace,
        principal,
        app,
        version,
        cluster,
    ];
    keys.iter()
        .zip(values)
        .try_for_each(|(key, value)| label(encoder, key, value))
}

fn label(encoder: &mut LabelSetEncoder<'_>, key: &str, value: &str) -> fmt::Result {
    let value = if value.is_empty() { "unknown" } else { value };
    let mut label = encoder.encode_label();
    let mut writing = label.encode_label_key()?;
    writing.write_str(key)?;
    let mut writing = writing.encode_label_value()?;
    writing.write_str(value)?;
    writing.finish()
}
