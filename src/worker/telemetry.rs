//! What every connection leaves behind: its access record, handed to the log thread once a turn. Formatting is
//! done there, never on a worker.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::outcome::Outcome;
use crate::bridge::access::{AccessLog, AccessRecord, Direction, End};
use crate::clock;
use crate::identity::Identity;
use crate::mesh::service::Service;
use crate::mesh::workload::Workload;

/// Collects the records of one worker.
pub struct Telemetry {
    log: AccessLog,
    batch: Vec<AccessRecord>,
}

/// What is known of a connection while it lives.
#[derive(Debug, Clone)]
pub struct Account {
    pub direction: Direction,
    pub started: Instant,
    pub source_address: SocketAddr,
    pub source: Option<Arc<Workload>>,
    pub source_identity: Option<Identity>,
    pub destination_address: SocketAddr,
    pub hbone_authority: Option<String>,
    pub service: Option<Arc<Service>>,
    pub destination: Option<Arc<Workload>>,
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
            hbone_authority: None,
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

    fn into_record(self, end: End) -> AccessRecord {
        AccessRecord {
            ended: clock::wall(),
            direction: self.direction,
            source_address: self.source_address,
            source: self.source,
            source_identity: self.source_identity,
            destination_address: self.destination_address,
            hbone_authority: self.hbone_authority,
            service: self.service,
            destination: self.destination,
            destination_identity: self.destination_identity,
            end,
        }
    }
}

impl Telemetry {
    pub fn new(log: AccessLog) -> Self {
        Self { log, batch: Vec::new() }
    }

    /// A connection ended.
    pub fn record(&mut self, account: Account, now: Instant, outcome: &Outcome) {
        // The log counts from the pod's side: what it sent, what it received.
        let (sent, received) = match account.direction {
            Direction::Outbound => (account.client_to_server_bytes, account.server_to_client_bytes),
            Direction::Inbound => (account.server_to_client_bytes, account.client_to_server_bytes),
        };
        let end = End::Complete {
            bytes_sent: sent,
            bytes_received: received,
            duration: now.saturating_duration_since(account.started),
            error: outcome.error(),
        };
        self.batch.push(account.into_record(end));
    }

    /// A connection was refused before it became one.
    pub fn refuse(&mut self, account: Account, outcome: &Outcome) {
        let error = outcome.error().unwrap_or_default();
        self.batch.push(account.into_record(End::Refused { error }));
    }

    pub fn flush(&mut self) {
        if !self.batch.is_empty() {
            self.log.send(std::mem::take(&mut self.batch));
        }
    }
}
