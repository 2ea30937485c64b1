//! What every connection leaves behind: what is counted of it while it lives, and its access record, handed to the log
//! thread once a turn. Formatting is done there and by scrapes, never on a worker.
//!
//! Invariant: what is opened is closed once, in the series that it was opened in. Specification: observability contract,
//! sections 3 and 4.

mod describe;
mod kinds;
mod names;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tracing::Level;

use self::kinds::Kinds;
use self::names::Names;
use super::outcome::{Outcome, Phase};
use crate::bridge::log::{ACCESS_TARGET, AccessEvent, AccessRecord, Direction, LogSink, Party};
use crate::bridge::traffic::{Original, Refusal, Series, Shard};
use crate::clock;
use crate::identity::Identity;
use crate::mesh::{Service, Tail, TunnelAuthority, Workload};
use crate::wire::baggage::Baggage;

/// Collects the records and counts of one worker.
pub struct Telemetry {
    log: LogSink,
    batch: Vec<AccessRecord>,
    kinds: Kinds,
    names: Names,
}

/// What is known of a connection while it lives.
#[derive(Debug, Clone)]
pub struct Account {
    pub direction: Direction,
    pub started: Instant,
    /// Names the connection in the lines of both nodes' logs: the id of its trace.
    pub connection_id: u128,
    pub source_address: SocketAddr,
    pub source: Option<Arc<Workload>>,
    /// What the peer says about a source that the mesh does not know here.
    pub source_told: Option<Box<Baggage>>,
    /// Only with mutual TLS.
    pub source_identity: Option<Identity>,
    /// Outbound: the next hop. Inbound HBONE: the local address. Plaintext: the captured destination.
    pub destination_address: SocketAddr,
    /// What CONNECT asks for.
    pub hbone_address: Option<TunnelAuthority>,
    pub service: Option<Arc<Service>>,
    pub destination: Option<Arc<Workload>>,
    /// What a destination in another network says about itself. It goes before what the mesh knows, which is about the
    /// gateway then.
    pub destination_told: Option<Box<Baggage>>,
    /// Only with mutual TLS.
    pub destination_identity: Option<Identity>,
    /// What the client asked for.
    pub original: Original,
    /// To another network, in a session inside of another one.
    pub is_through_gateway: bool,
    client_to_server_bytes: u64,
    server_to_client_bytes: u64,
    /// Where it is counted, from the moment that it is opened.
    series: Option<Arc<Series>>,
}

/// From when on a connection is counted (contract: observability.md section 3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opens {
    AtOnce,
    /// Who the destination is, is known only then.
    Connected,
}

impl Account {
    pub fn new(
        direction: Direction,
        started: Instant,
        source_address: SocketAddr,
        destination_address: SocketAddr,
    ) -> Self {
        let original = match direction {
            Direction::Outbound => Original::Address(destination_address),
            Direction::Inbound => Original::Host(None),
        };
        Self {
            direction,
            started,
            connection_id: 0,
            source_address,
            source: None,
            source_told: None,
            source_identity: None,
            destination_address,
            hbone_address: None,
            service: None,
            destination: None,
            destination_told: None,
            destination_identity: None,
            original,
            is_through_gateway: false,
            client_to_server_bytes: 0,
            server_to_client_bytes: 0,
            series: None,
        }
    }

    pub fn from_client(&mut self, bytes: usize) {
        self.client_to_server_bytes += bytes as u64;
        if let Some(series) = &self.series {
            series.count_received(bytes as u64);
        }
    }

    pub fn to_client(&mut self, bytes: usize) {
        self.server_to_client_bytes += bytes as u64;
        if let Some(series) = &self.series {
            series.count_sent(bytes as u64);
        }
    }

    /// Bytes that the local application sent: the client when outbound, the server when inbound.
    pub fn from_application(&mut self, bytes: usize) {
        match self.direction {
            Direction::Outbound => self.from_client(bytes),
            Direction::Inbound => self.to_client(bytes),
        }
    }

    pub fn to_application(&mut self, bytes: usize) {
        match self.direction {
            Direction::Outbound => self.to_client(bytes),
            Direction::Inbound => self.from_client(bytes),
        }
    }

    fn into_record(self, event: AccessEvent, error: Option<String>) -> AccessRecord {
        let source = match (&self.source, self.source_told) {
            (None, Some(told)) => told_party(self.source_address, *told, self.source_identity),
            (source, _) => party(self.source_address, source.as_deref(), self.source_identity),
        };
        let (address, identity) = (self.destination_address, self.destination_identity);
        let destination = match self.destination_told {
            Some(told) => told_party(address, *told, identity),
            None => party(address, self.destination.as_deref(), identity),
        };
        AccessRecord {
            time: clock::wall(),
            event,
            source,
            destination,
            hbone_address: self.hbone_address,
            service: self.service.map(|service| service.hostname.clone()),
            direction: self.direction,
            error,
        }
    }
}

fn party(address: SocketAddr, workload: Option<&Workload>, identity: Option<Identity>) -> Party {
    let text = |of: fn(&Workload) -> &Arc<str>| workload.map(of).filter(|text| !text.is_empty()).cloned();
    let name = workload
        .map(|workload| &workload.name)
        .filter(|name| !name.is_empty())
        .cloned();
    Party {
        address,
        workload: name.or_else(|| text(|workload| &workload.canonical_name).map(Tail::from)),
        namespace: text(|workload| &workload.namespace),
        identity,
        cluster: text(|workload| &workload.site.cluster_id),
    }
}

/// Somebody by the own words of its proxy; the identity alone is proven.
fn told_party(address: SocketAddr, told: Baggage, identity: Option<Identity>) -> Party {
    Party {
        address,
        workload: told.workload_name.as_deref().map(Tail::from),
        namespace: told.namespace.map(Arc::from),
        identity,
        cluster: told.cluster.map(Arc::from),
    }
}

impl Telemetry {
    pub fn new(log: LogSink, shard: Shard) -> Self {
        Self {
            log,
            batch: Vec::new(),
            kinds: Kinds::new(shard),
            names: Names::default(),
        }
    }

    /// A connection is about to be set up: who it is from and where it goes is known. Once for each.
    pub fn open(&mut self, account: &mut Account) {
        if account.series.is_some() {
            return;
        }
        self.begin(account);
        // The log thread would drop the line as well, but the record is not free.
        if tracing::enabled!(target: ACCESS_TARGET, Level::DEBUG) {
            self.batch
                .push(account.clone().into_record(AccessEvent::Opened, None));
        }
    }

    /// An endpoint was given up for another one, which `account` describes by now. To what is counted these are two
    /// connections, so that each destination has its own; the log has one line, at the end.
    pub fn reopen(&mut self, account: &mut Account, given_up: &Outcome, opens: Opens) {
        if let Some(series) = account.series.take() {
            series.count_closed(given_up.flag(Phase::SettingUp));
        }
        match opens {
            Opens::AtOnce => self.begin(account),
            Opens::Connected => {}
        }
    }

    /// The same for an endpoint that would have been counted from its success on.
    pub fn give_up(&mut self, mut account: Account, given_up: &Outcome) {
        self.begin(&mut account);
        if let Some(series) = account.series {
            series.count_closed(given_up.flag(Phase::SettingUp));
        }
    }

    fn begin(&mut self, account: &mut Account) {
        let series = self.kinds.series(account);
        series.count_opened();
        account.series = Some(series);
    }

    /// A connection ended that had both of its ends.
    pub fn close(&mut self, account: Account, now: Instant, outcome: &Outcome) {
        self.end(account, now, outcome, Phase::Relaying);
    }

    /// A connection could not be set up.
    pub fn fail(&mut self, account: Account, now: Instant, outcome: &Outcome) {
        self.end(account, now, outcome, Phase::SettingUp);
    }

    fn end(&mut self, account: Account, now: Instant, outcome: &Outcome, phase: Phase) {
        if let Some(series) = &account.series {
            series.count_closed(outcome.flag(phase));
        }
        // The log counts from the pod's side: what it sent, what it received.
        let (bytes_sent, bytes_received) = match account.direction {
            Direction::Outbound => (account.client_to_server_bytes, account.server_to_client_bytes),
            Direction::Inbound => (account.server_to_client_bytes, account.client_to_server_bytes),
        };
        let duration = now.saturating_duration_since(account.started);
        let event = AccessEvent::Complete {
            bytes_sent,
            bytes_received,
            duration,
        };
        self.batch.push(account.into_record(event, outcome.error()));
    }

    /// A connection was refused of which nothing is known yet.
    pub fn count_refused(&self, direction: Direction, why: Refusal) {
        self.kinds.shard().count_refused(direction, why);
    }

    /// A connection of `source` needs the addresses of a host name.
    pub fn count_lookup(&mut self, source: &Workload, hostname: &Arc<str>) {
        self.names.count(self.kinds.shard(), source, hostname);
    }

    /// A connection was refused before it became one.
    pub fn refuse(&mut self, account: Account, outcome: &Outcome) {
        self.count_refused(account.direction, outcome.refusal());
        self.batch
            .push(account.into_record(AccessEvent::Failed, outcome.error()));
    }

    pub fn flush(&mut self) {
        if !self.batch.is_empty() {
            self.log.access(std::mem::take(&mut self.batch));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::Traffic;
    use crate::bridge::log::{LogItem, log_queue};
    use crate::bridge::traffic::ResponseFlag;
    use crate::limits;

    fn record(source: Option<Workload>, told: Option<&str>) -> AccessRecord {
        let nowhere = ([198, 18, 0, 1], 1).into();
        let mut account = Account::new(Direction::Inbound, clock::now(), nowhere, nowhere);
        account.source = source.map(Arc::new);
        account.source_identity = Some(Identity::new("cluster.local", "bank", "till"));
        account.source_told = told.map(|text| Box::new(Baggage::parse([text]).expect("ASCII")));
        account.into_record(AccessEvent::Opened, None)
    }

    #[test]
    fn a_source_is_called_as_its_peer_says_only_where_the_mesh_does_not_know_it() {
        let told = "k8s.cluster.name=c2,k8s.namespace.name=bank,k8s.deployment.name=till,service.name=tills";
        let told_only = record(None, Some(told)).source;
        assert_eq!(told_only.workload.as_deref(), Some("till"));
        assert_eq!(told_only.namespace.as_deref(), Some("bank"));
        assert_eq!(told_only.cluster.as_deref(), Some("c2"));
        assert!(told_only.identity.is_some(), "what was proven stays");
        let known = Workload::new(
            "c1//Pod/shop/cart",
            "cart",
            Identity::new("cluster.local", "shop", "cart"),
        );
        let both = record(Some(known), Some(told)).source;
        assert_eq!(both.workload.as_deref(), Some("cart"));
        assert_eq!(both.namespace.as_deref(), Some("shop"));
        assert_eq!(both.cluster, None);
        let neither = record(None, None).source;
        assert_eq!((neither.workload, neither.namespace), (None, None));
    }

    /// A destination; what is opened, received and sent; what is closed by flag.
    type Counted = (String, [u64; 3], Vec<(ResponseFlag, u64)>);

    fn counted(traffic: &Traffic) -> Vec<Counted> {
        traffic
            .series()
            .iter()
            .map(|(labels, sums)| {
                let closed = ResponseFlag::ALL.into_iter().zip(sums.closed);
                (
                    labels.destination.workload.to_string(),
                    [sums.opened, sums.received_bytes, sums.sent_bytes],
                    closed.filter(|(_, count)| *count > 0).collect(),
                )
            })
            .collect()
    }

    fn opened(telemetry: &mut Telemetry, destination: &str) -> Account {
        let nowhere = ([198, 18, 0, 1], 1).into();
        let mut account = Account::new(Direction::Outbound, clock::now(), nowhere, nowhere);
        account.destination = Some(named(destination));
        telemetry.open(&mut account);
        account
    }

    fn named(name: &str) -> Arc<Workload> {
        let mut workload = Workload::new(name, name, Identity::new("cluster.local", "shop", name));
        workload.workload_name = name.into();
        Arc::new(workload)
    }

    #[test]
    fn a_connection_is_opened_before_it_is_there_and_closed_once_with_its_flag() {
        let traffic = Traffic::default();
        let (sink, _queue) = log_queue();
        let mut telemetry = Telemetry::new(sink, traffic.shard());
        let now = clock::now();
        let mut well = opened(&mut telemetry, "cart");
        assert_eq!(counted(&traffic), [("cart".to_owned(), [1, 0, 0], vec![])]);
        well.from_client(3);
        well.to_client(5);
        assert_eq!(counted(&traffic), [("cart".to_owned(), [1, 3, 5], vec![])]);
        telemetry.close(well, now, &Outcome::Complete);
        let dead = opened(&mut telemetry, "cart");
        let refused = Outcome::ConnectFailed(std::io::ErrorKind::ConnectionRefused.into());
        telemetry.fail(dead, now, &refused);
        // The same words mean one thing before both ends are there, and another thing behind.
        let torn = || Outcome::SessionClosed("the peer went away".to_owned());
        let early = opened(&mut telemetry, "cart");
        telemetry.fail(early, now, &torn());
        let late = opened(&mut telemetry, "cart");
        telemetry.close(late, now, &torn());
        let expected = vec![
            (ResponseFlag::None, 1),
            (ResponseFlag::Connect, 2),
            (ResponseFlag::H2HandshakeFailure, 1),
        ];
        assert_eq!(counted(&traffic), [("cart".to_owned(), [4, 3, 5], expected)]);
    }

    #[test]
    fn an_endpoint_that_is_given_up_is_a_failed_connection_of_its_own_and_no_line() {
        let traffic = Traffic::default();
        let (sink, _queue) = log_queue();
        let mut telemetry = Telemetry::new(sink, traffic.shard());
        let mut account = opened(&mut telemetry, "dead");
        let refused = Outcome::ConnectFailed(std::io::ErrorKind::ConnectionRefused.into());
        account.destination = Some(named("well"));
        telemetry.reopen(&mut account, &refused, Opens::AtOnce);
        assert_eq!(telemetry.batch, []);
        telemetry.close(account, clock::now(), &Outcome::Complete);
        assert_eq!(telemetry.batch.len(), 1);
        let [dead, well] = [ResponseFlag::Connect, ResponseFlag::None].map(|flag| vec![(flag, 1)]);
        let expected = [
            ("dead".to_owned(), [1, 0, 0], dead),
            ("well".to_owned(), [1, 0, 0], well),
        ];
        assert_eq!(counted(&traffic), expected);
    }

    #[test]
    fn what_never_became_a_connection_is_counted_by_its_reason() {
        let traffic = Traffic::default();
        let (sink, _queue) = log_queue();
        let mut telemetry = Telemetry::new(sink, traffic.shard());
        let nowhere = ([198, 18, 0, 1], 1).into();
        for outcome in [
            Outcome::RecursiveCall,
            Outcome::Malformed("expected method CONNECT, got GET".to_owned()),
            Outcome::RecursiveCall,
        ] {
            let account = Account::new(Direction::Inbound, clock::now(), nowhere, nowhere);
            telemetry.refuse(account, &outcome);
        }
        assert!(traffic.series().is_empty());
        let counted: Vec<_> = traffic.others().refused.into_iter().collect();
        let of = |why, count| ((Direction::Inbound, why), count);
        assert_eq!(counted, [of(Refusal::Recursive, 2), of(Refusal::Request, 1)]);
    }

    #[test]
    fn of_more_records_than_there_is_room_for_the_first_ones_are_kept() {
        let (sink, queue) = log_queue();
        sink.access(
            (0..=limits::LOG_ACCESS_LINES_QUEUED_MAX)
                .map(|_| record(None, None))
                .collect(),
        );
        let pieces = std::iter::from_fn(|| queue.next());
        let kept: usize = pieces
            .map(|item| match item {
                LogItem::Access(records) => records.len(),
                LogItem::Line(_) | LogItem::Flush(_) => 0,
            })
            .sum();
        let last_piece = (limits::LOG_ACCESS_LINES_QUEUED_MAX + 1) % limits::LOG_BATCH_LINES_MAX;
        assert_eq!(kept, limits::LOG_ACCESS_LINES_QUEUED_MAX + 1 - last_piece);
        assert_eq!(queue.take_dropped(), last_piece as u64);
    }
}
