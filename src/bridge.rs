<<<<<<< HEAD
//! Everything that crosses threads, each with one writer: the snapshot (control), orders (control to worker),
//! demands (worker to control), access records (worker to log), hand-overs and load (worker to worker).
//!
//! Workers never wait for another thread: they read the snapshot pointer, and everything else arrives as an
//! order together with a wake.


pub mod demands;
pub mod load;
pub mod log;
pub mod orders;
pub mod snapshot;
=======
//! What crosses threads: orders from control to the workers, demands of the workers, lines for the log thread.
//!
//! Layer `bridge`. Every type here has one writer; nothing is shared mutably but counters.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use arc_swap::ArcSwap;

use crate::identity::Identity;
use crate::mesh::Snapshot;
use crate::sys::driver::Wake;
use crate::sys::netns::Namespace;
use crate::tls::keys::CertifiedIdentity;
use crate::wire::zds;

pub mod log;

pub use log::{AccessEvent, AccessRecord, Direction, LogItem, LogQueue, LogSink, Party};

/// The mesh as the workers see it: read once per new connection, replaced as a whole by control.
pub type SnapshotCell = ArcSwap<Snapshot>;

/// Kubernetes' uid of a pod, as the node agent names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    pub fn new(uid: &str) -> Self {
        Self(uid.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which pod, in Kubernetes' words. The identity comes from here, the trust domain from the mesh.
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

/// A pod's listening sockets, bound inside its namespace, not accepting yet.
#[derive(Debug)]
pub struct PodListeners {
    pub uid: PodUid,
    pub info: PodInfo,
    pub namespace: Arc<Namespace>,
    pub outbound: OwnedFd,
    pub inbound_hbone: OwnedFd,
    pub inbound_plaintext: OwnedFd,
    /// Deliver with the client's own address as the source.
    pub preserve_source: bool,
}

/// Why there is no certificate. The text follows `identity error: `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CertificateError(pub Arc<str>);

/// Control to worker.
pub enum Order {
    AddPod(PodListeners),
    RemovePod {
        uid: PodUid,
    },
    Certificate {
        identity: Identity,
        result: Result<Arc<CertifiedIdentity>, CertificateError>,
    },
    Shutdown,
}

/// Worker to control.
#[derive(Debug, Clone)]
pub enum Demand {
    Certificate { worker: usize, identity: Identity },
}

pub type DemandSender = tokio::sync::mpsc::Sender<Demand>;
pub type DemandReceiver = tokio::sync::mpsc::Receiver<Demand>;

/// A running worker: its way in, and its thread.
pub struct WorkerHandle {
    pub orders: mpsc::Sender<Order>,
    pub waker: Arc<dyn Wake>,
    pub thread: JoinHandle<()>,
}

/// The ways in to all workers.
#[derive(Clone)]
pub struct Orders(Arc<[(mpsc::Sender<Order>, Arc<dyn Wake>)]>);

impl Orders {
    pub fn new(workers: Vec<(mpsc::Sender<Order>, Arc<dyn Wake>)>) -> Self {
        Self(workers.into())
    }

    pub fn workers(&self) -> usize {
        self.0.len()
    }

    /// A worker that is gone takes no orders: the process is on its way out.
    pub fn send(&self, worker: usize, order: Order) {
        let (sender, waker) = &self.0[worker];
        if sender.send(order).is_ok() {
            waker.wake();
        }
    }
}
>>>>>>> control
