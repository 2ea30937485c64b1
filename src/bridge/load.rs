//! How loaded each worker is: written by its worker (and by whoever hands a connection to it), read by all
//! for placement.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::log::Direction;
use super::turns::{TurnCounters, TurnHistogram};

/// Load of every worker. A hint: readers may see values that are a turn old.
#[derive(Debug, Clone)]
pub struct LoadTable(Arc<[Arc<WorkerLoad>]>);

/// One connection's place in the table.
#[derive(Debug)]
pub struct LoadShare {
    load: Arc<WorkerLoad>,
    kind: Kind,
}

/// What a connection of a worker is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// An accepted socket: what is outbound for us was opened by its source.
    Socket(Direction),
    /// A stream of a session.
    Stream,
}

impl Drop for LoadShare {
    fn drop(&mut self) {
        self.load.count(self.kind).fetch_sub(1, Ordering::Relaxed);
    }
}

/// On cache lines of its own, so that workers do not disturb each other.
#[derive(Debug)]
#[repr(align(128))]
struct WorkerLoad {
    /// Connections whose final owner is this worker, counted when the decision is made.
    sockets: [AtomicU32; 2],
    streams: AtomicU32,
    /// Share of the last period in which the worker was busy, per mille.
    busy_per_mille: AtomicU32,
    turns: TurnCounters,
}

impl WorkerLoad {
    fn count(&self, kind: Kind) -> &AtomicU32 {
        match kind {
            Kind::Socket(direction) => &self.sockets[direction as usize],
            Kind::Stream => &self.streams,
        }
    }
}

impl LoadTable {
    pub fn new(workers: usize) -> Self {
        let load = || WorkerLoad {
            sockets: Default::default(),
            streams: AtomicU32::new(0),
            busy_per_mille: AtomicU32::new(0),
            turns: TurnCounters::default(),
        };
        Self((0..workers).map(|_| Arc::new(load())).collect())
    }

    pub fn workers(&self) -> usize {
        self.0.len()
    }

    /// Counts a stream for a worker until the share is dropped.
    pub fn share(&self, worker: usize) -> LoadShare {
        self.share_of(worker, Kind::Stream)
    }

    /// Likewise an accepted socket.
    pub fn share_socket(&self, worker: usize, direction: Direction) -> LoadShare {
        self.share_of(worker, Kind::Socket(direction))
    }

    fn share_of(&self, worker: usize, kind: Kind) -> LoadShare {
        let load = Arc::clone(&self.0[worker]);
        load.count(kind).fetch_add(1, Ordering::Relaxed);
        LoadShare { load, kind }
    }

    /// Accepted sockets of all workers.
    pub fn sockets_open(&self, direction: Direction) -> u64 {
        let open = |load: &Arc<WorkerLoad>| load.count(Kind::Socket(direction)).load(Ordering::Relaxed);
        self.0.iter().map(|load| u64::from(open(load))).sum()
    }

    pub fn connections(&self, worker: usize) -> u32 {
        let load = &self.0[worker];
        let sockets = load.sockets.iter().map(|count| count.load(Ordering::Relaxed));
        sockets.sum::<u32>() + load.streams.load(Ordering::Relaxed)
    }

    pub fn set_busy(&self, worker: usize, per_mille: u32) {
        self.0[worker].busy_per_mille.store(per_mille, Ordering::Relaxed);
    }

    pub fn busy_per_mille(&self, worker: usize) -> u32 {
        self.0[worker].busy_per_mille.load(Ordering::Relaxed)
    }

    /// By the worker itself, at the end of a turn.
    pub fn record_turn(&self, worker: usize, turn: Duration) {
        self.0[worker].turns.record(turn);
    }

    /// How long the turns of a worker took since it started.
    pub fn turns(&self, worker: usize) -> TurnHistogram {
        self.0[worker].turns.read()
    }

    /// Those of all workers.
    pub fn all_turns(&self) -> TurnHistogram {
        let mut all = TurnHistogram::default();
        for worker in 0..self.workers() {
            all.add(&self.turns(worker));
        }
        all
    }
}
