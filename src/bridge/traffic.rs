//! What workers count of connections, and what a scrape reads of it.
//!
//! A worker counts into series of its own: plain additions to memory that it alone writes, in relaxed atomics because a
//! scrape reads them from another thread, at any time and without telling. A new series crosses once, through a
//! channel; nobody ever waits for the worker, nor it for anybody. The scrape adds up what equal labels of all workers
//! say. Invariant: a series is never forgotten, so no counter goes back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use super::log::Direction;
use super::orders::PodUid;
use crate::identity::Identity;

/// How a connection ended, in the words of `response_flags` (contract: observability.md section 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResponseFlag {
    None,
    Deny,
    Connect,
    TlsFailure,
    H2HandshakeFailure,
    NetworkPolicy,
    IdentityError,
    CertRevoked,
}

impl ResponseFlag {
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2HandshakeFailure,
        Self::NetworkPolicy,
        Self::IdentityError,
        Self::CertRevoked,
    ];

    pub fn text(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

/// Why a captured connection, or a stream of a peer, never became a connection that is counted in `istio_tcp_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// No way to the destination.
    Route,
    /// The control plane did not tell in time who the pod is.
    WorkloadUnknown,
    /// It was meant for this proxy's own ports.
    Recursive,
    /// What the peer asked for is not this pod's, or no request.
    Request,
    /// No TLS session, or no certificate for one.
    Handshake,
    /// A bound for one pod or peer.
    Capacity,
    /// The worker has few places left, or the process few open files, and the pod or the source of its peer's session has
    /// more than its part of them.
    TenantPart,
    /// The worker has no place left for anybody.
    WorkerFull,
    /// The process has as many open files as it may have.
    OpenFiles,
    /// The pod or the proxy is on its way out.
    Ending,
}

impl Refusal {
    pub const ALL: [Self; 10] = [
        Self::Route,
        Self::WorkloadUnknown,
        Self::Recursive,
        Self::Request,
        Self::Handshake,
        Self::Capacity,
        Self::TenantPart,
        Self::WorkerFull,
        Self::OpenFiles,
        Self::Ending,
    ];

    pub fn text(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::WorkloadUnknown => "workload_unknown",
            Self::Recursive => "recursive",
            Self::Request => "request",
            Self::Handshake => "handshake",
            Self::Capacity => "capacity",
            Self::TenantPart => "tenant_part",
            Self::WorkerFull => "worker_full",
            Self::OpenFiles => "open_files",
            Self::Ending => "ending",
        }
    }
}

/// What the series of one kind of connection are labelled with, flags aside. Empty texts are unknown.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels {
    /// Outbound connections are reported by their source.
    pub reporter: Direction,
    pub source: EndLabels,
    /// What mutual TLS has proven.
    pub source_principal: Option<Identity>,
    pub is_mutual_tls: bool,
    pub service: ServiceLabels,
    pub destination: EndLabels,
    /// Of the destination's workload, proven or not.
    pub destination_principal: Option<Identity>,
    /// Whether anything is known of where either end is.
    pub has_localities: bool,
}

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EndLabels {
    pub workload: Arc<str>,
    pub canonical_service: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub namespace: Arc<str>,
    pub app: Arc<str>,
    pub version: Arc<str>,
    pub cluster: Arc<str>,
    pub region: Arc<str>,
    pub zone: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ServiceLabels {
    pub hostname: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// A number that one thread counts and others may look at.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    /// Only by the one who counts: two stores at once would lose one of them.
    fn add(&self, more: u64) {
        let sum = self.0.load(Ordering::Relaxed).wrapping_add(more);
        self.0.store(sum, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whoever sees it by `get_first` also sees what was counted before.
    fn add_last(&self, more: u64) {
        let sum = self.0.load(Ordering::Relaxed).wrapping_add(more);
        self.0.store(sum, Ordering::Release);
    }

    fn get_first(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// The counters of one kind of connection on one worker.
#[derive(Debug)]
pub struct Series {
    labels: Labels,
    opened: Count,
    received_bytes: Count,
    sent_bytes: Count,
    closed: [Count; ResponseFlag::ALL.len()],
}

impl Series {
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    pub fn count_opened(&self) {
        self.opened.add(1);
    }

    pub fn count_closed(&self, flag: ResponseFlag) {
        self.closed[flag as usize].add_last(1);
    }

    /// Client to server.
    pub fn count_received(&self, bytes: u64) {
        self.received_bytes.add(bytes);
    }

    /// Server to client.
    pub fn count_sent(&self, bytes: u64) {
        self.sent_bytes.add(bytes);
    }
}

/// Whose host name was looked up, and by which workload. Empty texts are unknown.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NameLabels {
    pub source: EndLabels,
    pub source_principal: Option<Identity>,
    pub hostname: Arc<str>,
}

/// How often a name was looked up for connections of one worker, from memory or not.
#[derive(Debug)]
pub struct NameSeries {
    labels: NameLabels,
    lookups: Count,
}

impl NameSeries {
    pub fn count(&self) {
        self.lookups.add(1);
    }
}

/// What a worker begins to count.
#[derive(Debug)]
enum Fresh {
    Connections(Arc<Series>),
    Names(Arc<NameSeries>),
}

/// What one worker counts besides its series.
#[derive(Debug, Default)]
struct Others {
    refused: [[Count; Refusal::ALL.len()]; 2],
    /// Connections that were counted under labels that say nothing, because there were too many kinds.
    folded: Count,
}

/// A worker's end.
#[derive(Debug)]
pub struct Shard {
    fresh: mpsc::Sender<Fresh>,
    others: Arc<Others>,
}

impl Shard {
    /// Begins to count a kind of connection, which scrapes show from now on. Once for each kind.
    pub fn begin(&self, labels: Labels) -> Arc<Series> {
        let series = Arc::new(Series {
            labels,
            opened: Count::default(),
            received_bytes: Count::default(),
            sent_bytes: Count::default(),
            closed: Default::default(),
        });
        // Nobody scrapes any more: the process is on its way out.
        let _ = self.fresh.send(Fresh::Connections(Arc::clone(&series)));
        series
    }

    /// The same for the look-ups of a name.
    pub fn begin_name(&self, labels: NameLabels) -> Arc<NameSeries> {
        let lookups = Count::default();
        let series = Arc::new(NameSeries { labels, lookups });
        let _ = self.fresh.send(Fresh::Names(Arc::clone(&series)));
        series
    }

    pub fn count_refused(&self, direction: Direction, why: Refusal) {
        self.others.refused[direction as usize][why as usize].add(1);
    }

    pub fn count_folded(&self) {
        self.others.folded.add(1);
    }
}

/// The counts of all workers. Clones share them.
#[derive(Debug, Clone)]
pub struct Traffic(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    fresh: mpsc::Sender<Fresh>,
    /// Of scrapes: workers never take it after their start.
    gathered: Mutex<Gathered>,
}

#[derive(Debug)]
struct Gathered {
    arriving: mpsc::Receiver<Fresh>,
    series: Vec<Arc<Series>>,
    names: Vec<Arc<NameSeries>>,
    others: Vec<Arc<Others>>,
}

/// What the series with the same labels have counted together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    pub opened: u64,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// In the order of `ResponseFlag::ALL`.
    pub closed: [u64; ResponseFlag::ALL.len()],
}

/// What is counted apart from the series.
#[derive(Debug, Default)]
pub struct OtherSums {
    pub refused: BTreeMap<(Direction, Refusal), u64>,
    pub folded: u64,
}

impl Default for Traffic {
    fn default() -> Self {
        let (fresh, arriving) = mpsc::channel();
        let gathered = Mutex::new(Gathered {
            arriving,
            series: Vec::new(),
            names: Vec::new(),
            others: Vec::new(),
        });
        Self(Arc::new(Shared { fresh, gathered }))
    }
}

impl Traffic {
    /// For one more worker.
    pub fn shard(&self) -> Shard {
        let others = Arc::<Others>::default();
        self.gathered().others.push(Arc::clone(&others));
        Shard {
            fresh: self.0.fresh.clone(),
            others,
        }
    }

    /// With what has arrived.
    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        let mut gathered = self.0.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        let Gathered {
            arriving,
            series,
            names,
            others: _,
        } = &mut *gathered;
        for fresh in arriving.try_iter() {
            match fresh {
                Fresh::Connections(one) => series.push(one),
                Fresh::Names(one) => names.push(one),
            }
        }
        gathered
    }

    /// How often names were looked up.
    pub fn names(&self) -> BTreeMap<NameLabels, u64> {
        let names = self.gathered().names.clone();
        let mut totals = BTreeMap::<NameLabels, u64>::new();
        for one in names {
            *totals.entry(one.labels.clone()).or_default() += one.lookups.get();
        }
        totals
    }

    /// One look at all series.
    pub fn series(&self) -> BTreeMap<Labels, Sums> {
        let series = self.gathered().series.clone();
        let mut totals = BTreeMap::<Labels, Sums>::new();
        for one in series {
            let sums = match totals.get_mut(&one.labels) {
                Some(sums) => sums,
                None => totals.entry(one.labels.clone()).or_default(),
            };
            // Ends first: no look shows more connections closed than opened.
            for (sum, count) in sums.closed.iter_mut().zip(&one.closed) {
                *sum += count.get_first();
            }
            sums.opened += one.opened.get();
            sums.received_bytes += one.received_bytes.get();
            sums.sent_bytes += one.sent_bytes.get();
        }
        totals
    }

    pub fn others(&self) -> OtherSums {
        let others = self.gathered().others.clone();
        let mut totals = OtherSums::default();
        for one in others {
            for direction in [Direction::Inbound, Direction::Outbound] {
                for why in Refusal::ALL {
                    let count = one.refused[direction as usize][why as usize].get();
                    if count > 0 {
                        *totals.refused.entry((direction, why)).or_default() += count;
                    }
                }
            }
            totals.folded += one.folded.get();
        }
        totals
    }
}

/// How a live connection goes on from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Hbone,
    DoubleHbone,
}

impl Protocol {
    pub fn text(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Hbone => "HBONE",
            Self::DoubleHbone => "DOUBLEHBONE",
        }
    }
}

/// A connection that a worker serves or sets up at this moment, as the dump shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LiveConnection {
    pub pod: PodUid,
    pub direction: Direction,
    pub source: SocketAddr,
    pub original: Original,
    /// Outbound: the next hop. Inbound: where the pod's application takes it.
    pub actual: SocketAddr,
    pub protocol: Protocol,
}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Original {
    /// A captured connection's destination.
    Address(SocketAddr),
    /// The host that an inbound request says it is forwarded for.
    Host(Option<Box<str>>),
}

/// Which of a worker's tables a page of connections begins in, and at which slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LiveCursor {
    pub table: usize,
    pub slot: usize,
}

/// Some of a worker's connections. What comes and goes between two pages may be missing or there twice.
#[derive(Debug, Default)]
pub struct LivePage {
    pub connections: Vec<LiveConnection>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<LiveCursor>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(workload: &str) -> Labels {
        Labels {
            reporter: Direction::Outbound,
            source: EndLabels {
                workload: workload.into(),
                ..EndLabels::default()
            },
            source_principal: None,
            is_mutual_tls: false,
            service: ServiceLabels::default(),
            destination: EndLabels::default(),
            destination_principal: None,
            has_localities: false,
        }
    }

    #[test]
    fn equal_labels_of_several_workers_are_one_series_and_stay() {
        let traffic = Traffic::default();
        let shards = [traffic.shard(), traffic.shard()];
        for (at, shard) in shards.iter().enumerate() {
            let series = shard.begin(labels("web"));
            series.count_opened();
            series.count_received(4 + at as u64);
            series.count_closed(ResponseFlag::Deny);
            shard.count_refused(Direction::Inbound, Refusal::Request);
        }
        shards[1].begin(labels("cart")).count_sent(7);
        drop(shards);
        for _ in 0..2 {
            let series = traffic.series();
            let web = series[&labels("web")];
            assert_eq!((web.opened, web.received_bytes, web.sent_bytes), (2, 9, 0));
            assert_eq!(web.closed[ResponseFlag::Deny as usize], 2);
            assert_eq!(web.closed.iter().sum::<u64>(), 2);
            assert_eq!(series[&labels("cart")].sent_bytes, 7);
            assert_eq!(
                traffic.others().refused,
                BTreeMap::from([((Direction::Inbound, Refusal::Request), 2)])
            );
        }
    }

    #[test]
    fn a_scrape_beside_a_worker_that_counts_loses_nothing_and_never_goes_back() {
        const CONNECTIONS: u64 = 200_000;
        let traffic = Traffic::default();
        let shard = traffic.shard();
        let counting = std::thread::spawn(move || {
            let series = shard.begin(labels("web"));
            for _ in 0..CONNECTIONS {
                series.count_opened();
                series.count_sent(3);
                series.count_closed(ResponseFlag::None);
            }
        });
        let mut before = Sums::default();
        while !counting.is_finished() {
            let now = traffic.series().get(&labels("web")).copied().unwrap_or_default();
            assert!(now.opened >= before.opened && now.sent_bytes >= before.sent_bytes);
            assert!(now.closed.iter().sum::<u64>() <= now.opened);
            before = now;
        }
        counting.join().expect("it counts");
        let sums = traffic.series()[&labels("web")];
        assert_eq!((sums.opened, sums.sent_bytes), (CONNECTIONS, 3 * CONNECTIONS));
        assert_eq!(sums.closed[ResponseFlag::None as usize], CONNECTIONS);
    }
}
