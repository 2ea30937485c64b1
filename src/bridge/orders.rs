//! What the control thread tells workers, and what workers hand to each other.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;

use super::load::LoadShare;
use super::log::Direction;
use super::lookups::{LookupAnswer, Question};
use super::traffic::{LiveCursor, LivePage};
use crate::identity::Identity;
use crate::planted::{Bug, is_planted};
use crate::sys::descriptor::Descriptor;
use crate::sys::driver::{Counters, InUse, Wake};
use crate::sys::netns::Namespace;
use crate::tls::CertifiedIdentity;
use crate::wire::zds;

/// The uid of a pod as the CNI agent announces it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    pub fn new(uid: &str) -> Self {
        Self(uid.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a pod is, as the CNI agent announces it (ZDS `WorkloadInfo`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInfo {
    pub name: String,
    pub namespace: String,
    pub service_account: String,
}

impl From<zds::Info> for PodInfo {
    fn from(info: zds::Info) -> Self {
        Self {
            name: info.name,
            namespace: info.namespace,
            service_account: info.service_account,
        }
    }
}

/// A pod that the node's workers serve.
#[derive(Debug)]
pub struct Pod {
    pub uid: PodUid,
    pub info: PodInfo,
    /// In which every socket of this pod is made.
    pub namespace: Arc<Namespace>,
    /// Whether connections to the application keep the client's address as their source (`ENABLE_ORIG_SRC`).
    pub preserve_source: bool,
}

/// The capture ports of a pod, bound and listening inside its namespace.
#[derive(Debug)]
pub struct PodListeners {
    /// 15001
    pub outbound: Descriptor,
    /// 15006
    pub inbound_plaintext: Descriptor,
    /// 15008
    pub inbound_hbone: Descriptor,
}

/// Which journey a captured connection takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    Outbound,
    InboundPlaintext,
    InboundHbone,
}

impl Capture {
    pub fn direction(self) -> Direction {
        match self {
            Self::Outbound => Direction::Outbound,
            Self::InboundPlaintext | Self::InboundHbone => Direction::Inbound,
        }
    }
}

/// Why no certificate could be had for an identity. The text follows `identity error: `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CertificateError(pub Arc<str>);

impl CertificateError {
    /// What waiting connections hear of a pod that left.
    pub fn no_longer_needed() -> Self {
        Self("the identity is no longer needed".into())
    }
}

#[derive(Debug)]
pub enum Order {
    /// Every worker learns of every pod; its home worker also gets the listeners.
    AddPod {
        pod: Arc<Pod>,
        listeners: Option<PodListeners>,
    },
    /// Closes the pod's listeners and connections at once.
    RemovePod { uid: PodUid },
    /// The answer to a demand, or a renewed certificate.
    Certificate {
        identity: Identity,
        result: Result<Arc<CertifiedIdentity>, CertificateError>,
    },
    /// The answer to a lookup.
    Answer {
        question: Question,
        answer: LookupAnswer,
    },
    /// The last pod of the identity is gone.
    ForgetCertificate { identity: Identity },
    /// A captured connection that another worker accepted.
    HandOver {
        pod: PodUid,
        capture: Capture,
        fd: Descriptor,
        peer: SocketAddr,
        share: LoadShare,
    },
    /// A snapshot was published with other policies, other workloads of this node, or addresses that may have changed
    /// hands: tasks that wait for a workload look again, connections and sessions are looked at.
    Snapshot,
    /// Other lists of revoked certificates are in force: sessions are compared with them.
    Revocations,
    /// Stop accepting, let connections finish until the deadline, then end.
    Drain { deadline: std::time::Duration },
    /// Answered at the end of the turn that takes it in.
    Report(mpsc::Sender<WorkerReport>),
    /// Answered likewise, by the connections in the next `limits::LIVE_SLOTS_PAGE_MAX` slots: who wants all of them asks
    /// again.
    ListConnections {
        from: LiveCursor,
        answer: mpsc::Sender<LivePage>,
    },
}

/// What a worker holds and has done, as of the end of one turn.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct WorkerReport {
    /// Of the worker's driver, since it was made.
    pub counters: Counters,
    /// Of the worker's driver: sockets, operations and lent receive buffers.
    pub in_use: InUse,
    pub sessions: usize,
    /// CONNECT streams of all sessions, those being set up included.
    pub streams: usize,
    pub tunnels: usize,
    pub pipes: usize,
    /// Waits of tasks that set connections up.
    pub waits: usize,
    /// Connections that take room, those being set up included.
    pub places: usize,
    pub listeners: usize,
    /// Destinations with a session, a dial or a remembered failure.
    pub pooled: usize,
    /// Memory that sessions and tunnels own.
    pub buffered_bytes: usize,
    /// Chunks of opened plaintext that something still refers to.
    pub chunks_pinned: usize,
    /// Connections closed, and streams refused, at once because the worker had no room for them.
    pub shed: u64,
}

/// Sends orders to one worker from any thread.
#[derive(Clone)]
pub struct WorkerHandle {
    orders: mpsc::Sender<Order>,
    waker: Arc<dyn Wake>,
}

/// The ways in to all workers.
#[derive(Clone)]
pub struct Orders(Arc<[WorkerHandle]>);

impl Orders {
    pub fn new(workers: Vec<WorkerHandle>) -> Self {
        Self(workers.into())
    }

    pub fn workers(&self) -> usize {
        self.0.len()
    }

    /// A worker that is gone takes no orders: the process is on its way out.
    pub fn send(&self, worker: usize, order: Order) {
        self.0[worker].send(order);
    }

    pub fn send_all(&self, make: impl Fn() -> Order) {
        for worker in &*self.0 {
            worker.send(make());
        }
    }
}

/// The worker's end.
pub struct Inbox(mpsc::Receiver<Order>);

/// The two ends of a worker's order queue.
///
/// The queue itself has no bound: what enters it is bounded by the pods of the node, by single-flight
/// certificate demands, and by accepted descriptors (RLIMIT_NOFILE).
pub fn channel(waker: Arc<dyn Wake>) -> (WorkerHandle, Inbox) {
    let (orders, inbox) = mpsc::channel();
    (WorkerHandle { orders, waker }, Inbox(inbox))
}

impl WorkerHandle {
    /// `false` when the worker has ended; the order is dropped then.
    pub fn send(&self, order: Order) -> bool {
        let is_lost = is_planted(Bug::WakeLost) && matches!(order, Order::HandOver { .. });
        let sent = self.orders.send(order).is_ok();
        if !is_lost {
            self.waker.wake();
        }
        sent
    }
}

impl Inbox {
    pub fn next(&self) -> Option<Order> {
        self.0.try_recv().ok()
    }
}
