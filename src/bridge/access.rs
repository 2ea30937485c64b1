//! Access records: made by workers when a connection ends, formatted and written by the log thread.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use crate::identity::Identity;
use crate::mesh::service::Service;
use crate::mesh::workload::Workload;

/// Seen from the pod that the proxy serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Inbound,
    Outbound,
}

/// One line of the access log (observability.md section 4 of the contract).
#[derive(Debug, Clone)]
pub struct AccessRecord {
    pub ended: SystemTime,
    pub direction: Direction,
    pub source_address: SocketAddr,
    pub source: Option<Arc<Workload>>,
    /// Only for mutual TLS.
    pub source_identity: Option<Identity>,
    /// Outbound: the next hop. Inbound HBONE: the local address. Plaintext: the captured destination.
    pub destination_address: SocketAddr,
    /// The CONNECT authority.
    pub hbone_authority: Option<String>,
    pub service: Option<Arc<Service>>,
    pub destination: Option<Arc<Workload>>,
    /// Only for mutual TLS.
    pub destination_identity: Option<Identity>,
    pub end: End,
}

#[derive(Debug, Clone)]
pub enum End {
    /// Refused before it became a connection: `connection failed` at warn level.
    Refused { error: String },
    /// `connection complete` at info level, or at error level when there is an error.
    Complete { bytes_sent: u64, bytes_received: u64, duration: Duration, error: Option<String> },
}

/// The worker's end of the log queue.
#[derive(Clone)]
pub struct AccessLog {
    queue: mpsc::SyncSender<Vec<AccessRecord>>,
    dropped: Arc<AtomicU64>,
}

/// The log thread's end.
pub struct AccessQueue {
    queue: mpsc::Receiver<Vec<AccessRecord>>,
    dropped: Arc<AtomicU64>,
}

/// `batches_max` batches wait at most; a worker hands over one batch a turn.
pub fn channel(batches_max: usize) -> (AccessLog, AccessQueue) {
    let (sender, receiver) = mpsc::sync_channel(batches_max);
    let dropped = Arc::new(AtomicU64::new(0));
    (AccessLog { queue: sender, dropped: dropped.clone() }, AccessQueue { queue: receiver, dropped })
}

impl AccessLog {
    /// Never blocks: when the log thread is behind, the batch is dropped and counted.
    pub fn send(&self, batch: Vec<AccessRecord>) {
        let records = batch.len() as u64;
        if self.queue.try_send(batch).is_err() {
            self.dropped.fetch_add(records, Ordering::Relaxed);
        }
    }
}

impl AccessQueue {
    /// The next batch; `None` when every worker has ended.
    pub fn next(&self) -> Option<Vec<AccessRecord>> {
        self.queue.recv().ok()
    }

    /// Another batch that waits already.
    pub fn more(&self) -> Option<Vec<AccessRecord>> {
        self.queue.try_recv().ok()
    }

    /// Records dropped since the last call.
    pub fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_log_drops_and_counts_instead_of_blocking() {
        let record = AccessRecord {
            ended: SystemTime::UNIX_EPOCH,
            direction: Direction::Inbound,
            source_address: "198.18.0.1:1".parse().expect("address"),
            source: None,
            source_identity: None,
            destination_address: "198.18.0.2:2".parse().expect("address"),
            hbone_authority: None,
            service: None,
            destination: None,
            destination_identity: None,
            end: End::Refused { error: "x".to_owned() },
        };
        let (log, queue) = channel(1);
        log.send(vec![record.clone()]);
        log.send(vec![record.clone(), record]);
        assert_eq!(queue.next().map(|batch| batch.len()), Some(1));
        assert!(queue.more().is_none());
        assert_eq!(queue.take_dropped(), 2);
        assert_eq!(queue.take_dropped(), 0);
    }
}
