//! The way of a log line to standard output: workers and control put it into a queue, the log thread writes it.
//!
//! Any thread sends, none ever waits: a full queue drops the lines and counts them, and the log thread says so.
//! Invariant: at most `limits::LOG_LINES_QUEUED_MAX` lines are queued, and no access lines beyond
//! `limits::LOG_ACCESS_LINES_QUEUED_MAX`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::clock::SystemTime;
use crate::identity::Identity;
use crate::limits;
use crate::mesh::{Tail, TunnelAuthority};

/// The target of access lines, as in `RUST_LOG=access=off`.
pub const ACCESS_TARGET: &str = "access";

/// One connection for the access log. Fields that do not apply are `None` and left out of the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRecord {
    pub time: SystemTime,
    pub event: AccessEvent,
    pub source: Party,
    pub destination: Party,
    /// CONNECT authority.
    pub hbone_address: Option<TunnelAuthority>,
    /// Host name of the service that the client asked for.
    pub service: Option<Arc<str>>,
    pub direction: Direction,
    /// Why it ended, when not in the ordinary way.
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessEvent {
    /// The connection's context is known.
    Opened,
    /// Over. An error level line when the record carries an error.
    Complete {
        bytes_sent: u64,
        bytes_received: u64,
        duration: Duration,
    },
    /// Refused before a destination was chosen.
    Failed,
}

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    pub address: SocketAddr,
    /// Name of the pod.
    pub workload: Option<Tail>,
    pub namespace: Option<Arc<str>>,
    /// Only of mutual TLS.
    pub identity: Option<Identity>,
    pub cluster: Option<Arc<str>>,
}

impl Party {
    /// An end of which nothing is known but its address.
    pub fn unknown(address: SocketAddr) -> Self {
        Self {
            address,
            workload: None,
            namespace: None,
            identity: None,
            cluster: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Inbound,
    Outbound,
}

/// What the log thread takes from its queue.
#[derive(Debug)]
pub enum LogItem {
    Access(Vec<AccessRecord>),
    /// UTF-8, formatted, with its line end.
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(mpsc::SyncSender<()>),
}

/// The sending side of the log queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LogSink {
    items: mpsc::Sender<LogItem>,
    shared: Arc<Shared>,
}

/// The receiving side: the log thread's.
#[derive(Debug)]
pub struct LogQueue {
    items: mpsc::Receiver<LogItem>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Lines in the queue. It only bounds memory, so no ordering with the queue is needed.
    queued: AtomicUsize,
    dropped: AtomicU64,
}

/// Makes a log queue.
pub fn log_queue() -> (LogSink, LogQueue) {
    let (sender, receiver) = mpsc::channel();
    let shared = Arc::new(Shared::default());
    let sink = LogSink {
        items: sender,
        shared: Arc::clone(&shared),
    };
    (
        sink,
        LogQueue {
            items: receiver,
            shared,
        },
    )
}

impl LogSink {
    /// A worker's records of one turn. What the queue has no room for is dropped in pieces of
    /// `limits::LOG_BATCH_LINES_MAX`.
    pub fn access(&self, batch: Vec<AccessRecord>) {
        if batch.len() <= limits::LOG_BATCH_LINES_MAX {
            return self.send_records(batch);
        }
        let mut records = batch.into_iter();
        while records.len() > 0 {
            self.send_records(records.by_ref().take(limits::LOG_BATCH_LINES_MAX).collect());
        }
    }

    fn send_records(&self, batch: Vec<AccessRecord>) {
        let lines = batch.len();
        if lines > 0 {
            self.send(LogItem::Access(batch), lines, limits::LOG_ACCESS_LINES_QUEUED_MAX);
        }
    }

    pub fn line(&self, line: Vec<u8>) {
        self.send(LogItem::Line(line), 1, limits::LOG_LINES_QUEUED_MAX);
    }

    /// Waits until everything sent before is written, `patience` at most. False: it took longer.
    pub fn flush(&self, patience: Duration) -> bool {
        let (done, is_done) = mpsc::sync_channel(1);
        self.items.send(LogItem::Flush(done)).is_ok() && is_done.recv_timeout(patience).is_ok()
    }

    /// Unless more than `queued_max` lines would be queued.
    fn send(&self, item: LogItem, lines: usize, queued_max: usize) {
        let queued = self.shared.queued.fetch_add(lines, Ordering::Relaxed);
        let refused = queued + lines > queued_max || self.items.send(item).is_err();
        if refused {
            self.shared.queued.fetch_sub(lines, Ordering::Relaxed);
            self.shared.dropped.fetch_add(lines as u64, Ordering::Relaxed);
        }
    }
}

impl LogQueue {
    /// Waits for the next item. `None`: every sink is gone.
    pub fn wait(&self) -> Option<LogItem> {
        self.items.recv().ok().inspect(|item| self.took(item))
    }

    /// The next item if there is one already.
    pub fn next(&self) -> Option<LogItem> {
        self.items.try_recv().ok().inspect(|item| self.took(item))
    }

    /// Lines dropped since the last call.
    pub fn take_dropped(&self) -> u64 {
        self.shared.dropped.swap(0, Ordering::Relaxed)
    }

    fn took(&self, item: &LogItem) {
        let lines = match item {
            LogItem::Access(batch) => batch.len(),
            LogItem::Line(_) => 1,
            LogItem::Flush(_) => 0,
        };
        self.shared.queued.fetch_sub(lines, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_and_counts_instead_of_waiting() {
        let (sink, queue) = log_queue();
        for _ in 0..limits::LOG_LINES_QUEUED_MAX + 3 {
            sink.line(b"line\n".to_vec());
        }
        assert_eq!(queue.take_dropped(), 3);
        assert_eq!(queue.take_dropped(), 0);
        assert!(queue.next().is_some());
        sink.line(b"there is room again\n".to_vec());
        assert_eq!(queue.take_dropped(), 0);
    }

    #[test]
    fn a_flush_is_over_when_the_lines_before_it_were_taken() {
        let (sink, queue) = log_queue();
        sink.line(b"first\n".to_vec());
        assert!(!sink.flush(Duration::ZERO), "nobody reads the queue yet");
        let reader = std::thread::spawn(move || {
            let mut lines = Vec::new();
            while let Some(item) = queue.wait() {
                match item {
                    LogItem::Line(line) => lines.push(line),
                    LogItem::Flush(done) => drop(done.send(())),
                    LogItem::Access(_) => {}
                }
            }
            lines
        });
        assert!(sink.flush(Duration::from_secs(10)));
        drop(sink);
        assert_eq!(reader.join().expect("reader"), [b"first\n"]);
    }
}
