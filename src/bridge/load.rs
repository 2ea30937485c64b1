//! How loaded each worker is: written by its worker (and by whoever hands a connection to it), read by all
//! for placement.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::log::Direction;
use super::turns::{TurnCounters, TurnHistogram};

/// Load of every worker. A hint: readers may see values that are a turn old.
#[derive(Debug, Clone)]
pub struct LoadTable(Arc<[WorkerLoad]>);

/// One connection's place in the table.
#[derive(Debug)]
pub struct LoadShare {
    table: LoadTable,
    worker: usize,
    /// Of an accepted socket: its direction.
    socket: Option<Direction>,
}

impl Drop for LoadShare {
    fn drop(&mut self) {
        self.table.remove_connection(self.worker);
        if let Some(direction) = self.socket {
            self.table
                .sockets(self.worker, direction)
                .fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// On a cache line of its own, so that workers do not disturb each other.
#[derive(Debug)]
#[repr(align(128))]
struct WorkerLoad {
    /// Connections whose final owner is this worker, counted when the decision is made.
    connections: AtomicU32,
    /// Accepted sockets of them, by direction: what is outbound for us was opened by its source.
    sockets: [AtomicU32; 2],
    /// Share of the last period in which the worker was busy, per mille.
    busy_per_mille: AtomicU32,
    turns: TurnCounters,
}

impl LoadTable {
    pub fn new(workers: usize) -> Self {
        let load = || WorkerLoad {
            connections: AtomicU32::new(0),
            sockets: Default::default(),
            busy_per_mille: AtomicU32::new(0),
            turns: TurnCounters::new(),
        };
        Self((0..workers).map(|_| load()).collect())
    }

    pub fn workers(&self) -> usize {
        self.0.len()
    }

    /// Counts a connection for a worker until the share is dropped.
    pub fn share(&self, worker: usize) -> LoadShare {
        self.add_connection(worker);
        LoadShare {
            table: self.clone(),
            worker,
            socket: None,
        }
    }

    /// Likewise, for a connection that is an accepted socket.
    pub fn share_socket(&self, worker: usize, direction: Direction) -> LoadShare {
        self.sockets(worker, direction).fetch_add(1, Ordering::Relaxed);
        let mut share = self.share(worker);
        share.socket = Some(direction);
        share
    }

    /// Accepted sockets of all workers.
    pub fn sockets_open(&self, direction: Direction) -> u64 {
        let open = |worker| self.sockets(worker, direction).load(Ordering::Relaxed);
        (0..self.workers()).map(|worker| u64::from(open(worker))).sum()
    }

    fn sockets(&self, worker: usize, direction: Direction) -> &AtomicU32 {
        &self.0[worker].sockets[direction as usize]
    }

    fn add_connection(&self, worker: usize) {
        self.0[worker].connections.fetch_add(1, Ordering::Relaxed);
    }

    fn remove_connection(&self, worker: usize) {
        self.0[worker].connections.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn connections(&self, worker: usize) -> u32 {
        self.0[worker].connections.load(Ordering::Relaxed)
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
