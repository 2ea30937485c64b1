//! What every connection leaves behind: its access record, handed to the log thread once a turn. Formatting is
//! done there, never on a worker.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::outcome::Outcome;
use crate::bridge::log::{AccessEvent, AccessRecord, Direction, LogSink, Party};
use crate::clock;
use crate::identity::Identity;
use crate::mesh::{Service, Workload};

/// Collects the records of one worker.
pub struct Telemetry {
    log: LogSink,
    batch: Vec<AccessRecord>,
}

/// What is known of a connection while it lives.
#[derive(Debug, Clone)]
pub struct Account {
    pub direction: Direction,
    pub started: Instant,
    pub source_address: SocketAddr,
    pub source: Option<Arc<Workload>>,
    /// Only with mutual TLS.
    pub source_identity: Option<Identity>,
    /// Outbound: the next hop. Inbound HBONE: the local address. Plaintext: the captured destination.
    pub destination_address: SocketAddr,
    /// The CONNECT authority, when it is an address.
    pub hbone_address: Option<SocketAddr>,
    pub service: Option<Arc<Service>>,
    pub destination: Option<Arc<Workload>>,
    /// Only with mutual TLS.
    pub destination_identity: Option<Identity>,
    client_to_server_bytes: u64,
    server_to_client_bytes: u64,
}

impl Account {
    pub fn new(
        direction: Direction,
        started: Instant,
        source_address: SocketAddr,
        destination_address: SocketAddr,
    ) -> Self {
        Self {
            direction,
            started,
            source_address,
            source: None,
            source_identity: None,
            destination_address,
            hbone_address: None,
            service: None,
            destination: None,
            destination_identity: None,
            client_to_server_bytes: 0,
            server_to_client_bytes: 0,
        }
    }

    pub fn from_client(&mut self, bytes: usize) {
        self.client_to_server_bytes += bytes as u64;
    }

    pub fn to_client(&mut self, bytes: usize) {
        self.server_to_client_bytes += bytes as u64;
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
        AccessRecord {
            time: clock::wall(),
            event,
            source: party(self.source_address, self.source.as_deref(), self.source_identity),
            destination: party(
                self.destination_address,
                self.destination.as_deref(),
                self.destination_identity,
            ),
            hbone_address: self.hbone_address,
            service: self.service.map(|service| service.hostname.clone()),
            direction: self.direction,
            error,
        }
    }
}

fn party(address: SocketAddr, workload: Option<&Workload>, identity: Option<Identity>) -> Party {
    let text = |of: fn(&Workload) -> &Arc<str>| workload.map(of).filter(|text| !text.is_empty()).cloned();
    Party {
        address,
        workload: text(|workload| &workload.name).or_else(|| text(|workload| &workload.canonical_name)),
        namespace: text(|workload| &workload.namespace),
        identity,
        cluster: text(|workload| &workload.cluster_id),
    }
}

impl Telemetry {
    pub fn new(log: LogSink) -> Self {
        Self {
            log,
            batch: Vec::new(),
        }
    }

    /// A connection ended.
    pub fn record(&mut self, account: Account, now: Instant, outcome: &Outcome) {
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

    /// A connection was refused before it became one.
    pub fn refuse(&mut self, account: Account, outcome: &Outcome) {
        self.batch
            .push(account.into_record(AccessEvent::Failed, outcome.error()));
    }

    pub fn flush(&mut self) {
        if !self.batch.is_empty() {
            self.log.access(std::mem::take(&mut self.batch));
        }
    }
}
