//! The live connections of all workers, asked for page by page.
//!
//! Runs on the thread that writes a dump, which waits; a worker answers each page at the end of a turn. A worker that
//! does not answer in time is left out, and the log says so.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, mpsc};

use crate::bridge::traffic::{LiveConnection, LiveCursor};
use crate::bridge::{Direction, Order, Orders, PodUid};
use crate::limits;

/// Who is asked. Clones share it. Before there are workers there are no connections.
#[derive(Clone, Default)]
pub struct Live(Arc<OnceLock<Orders>>);

/// The connections of one pod, in an order that does not depend on when they were found.
#[derive(Debug, Default)]
pub struct PodConnections {
    pub inbound: Vec<LiveConnection>,
    pub outbound: Vec<LiveConnection>,
}

impl Live {
    /// The workers have started.
    pub fn serve(&self, orders: Orders) {
        let _ = self.0.set(orders);
    }

    /// Asks every worker. Blocks.
    pub fn by_pod(&self) -> HashMap<PodUid, PodConnections> {
        let mut pods = HashMap::<PodUid, PodConnections>::new();
        for connection in self.all() {
            let of_pod = pods.entry(connection.pod.clone()).or_default();
            match connection.direction {
                Direction::Inbound => of_pod.inbound.push(connection),
                Direction::Outbound => of_pod.outbound.push(connection),
            }
        }
        for of_pod in pods.values_mut() {
            of_pod.inbound.sort_unstable();
            of_pod.outbound.sort_unstable();
        }
        pods
    }

    fn all(&self) -> Vec<LiveConnection> {
        let mut all = Vec::new();
        let Some(orders) = self.0.get() else {
            return all;
        };
        for worker in 0..orders.workers() {
            let mut next = Some(LiveCursor::default());
            while let Some(from) = next {
                let (answer, answered) = mpsc::channel();
                orders.send(worker, Order::ListConnections { from, answer });
                match answered.recv_timeout(limits::LIVE_PAGE_WAIT) {
                    Ok(page) => {
                        all.extend(page.connections);
                        next = page.next;
                    }
                    Err(error) => {
                        tracing::warn!(worker, %error, "a worker does not tell its connections");
                        next = None;
                    }
                }
            }
        }
        all
    }
}
