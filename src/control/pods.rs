//! A pod's listening sockets: made inside the pod's network namespace, served by the pod's home worker.
//!
//! Control thread. All sockets of a pod are bound before the first one is handed over, so that a pod is served
//! on every port or on none. Specification: upstream's listeners and socket options.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::bridge::{Order, Orders, Pod, PodInfo, PodListeners, PodUid};
use crate::config::{OriginalSource, Ports, Sockets};
use crate::limits;
use crate::sys::netns::Namespace;
use crate::sys::socket::{self, ListenError, ListenSpec, Listening};

/// What the ZDS client does with pods.
pub trait Pods {
    /// Serves the pod, or says what the node agent shall read.
    fn start(&mut self, uid: &PodUid, info: &PodInfo, namespace: &Arc<Namespace>) -> Result<(), String>;

    /// Stops serving it, at once.
    fn stop(&mut self, uid: &PodUid);
}

/// What `control::demands` hears of pods.
#[derive(Debug)]
pub enum PodChange {
    /// Sent before any worker is told.
    Started { uid: PodUid, info: PodInfo },
    /// Sent after all of them were told.
    Stopped { uid: PodUid },
    /// Another snapshot was published: it may know pods that were unknown before.
    MeshChanged,
}

pub type PodChanges = mpsc::UnboundedReceiver<PodChange>;

/// Both ends are on the control thread; bounded by the node agent, which waits for an answer to each request, and by
/// how often snapshots are published.
pub fn changes() -> (mpsc::UnboundedSender<PodChange>, PodChanges) {
    mpsc::unbounded_channel()
}

/// Pods served by the workers.
pub struct WorkerPods {
    ports: Ports,
    sockets: Sockets,
    orders: Orders,
    changes: mpsc::UnboundedSender<PodChange>,
}

impl WorkerPods {
    pub fn new(
        ports: Ports,
        sockets: Sockets,
        orders: Orders,
        changes: mpsc::UnboundedSender<PodChange>,
    ) -> Self {
        assert!(orders.workers() > 0, "there is at least one worker");
        Self {
            ports,
            sockets,
            orders,
            changes,
        }
    }

    fn report(&self, change: PodChange) {
        // Nobody listens when the process is on its way out.
        let _ = self.changes.send(change);
    }

    fn listen(&self, namespace: &Arc<Namespace>, port: u16) -> Result<Listening, ListenError> {
        listen_on_any_family(self.sockets.ipv6, |ipv6| ListenSpec {
            namespace: Some(Arc::clone(namespace)),
            address: socket::any_address(ipv6, port),
            reuse_port: self.sockets.port_reuse,
            mark: self.sockets.packet_mark,
            transparent: match self.sockets.original_source {
                OriginalSource::Required => Some(true),
                OriginalSource::Never => Some(false),
                OriginalSource::BestEffort => None,
            },
            backlog: limits::LISTEN_BACKLOG,
        })
    }
}

impl Pods for WorkerPods {
    /// Every worker is told, since connections may be handed to any of them; the home worker also accepts.
    fn start(&mut self, uid: &PodUid, info: &PodInfo, namespace: &Arc<Namespace>) -> Result<(), String> {
        let listen = |port| self.listen(namespace, port).map_err(|error| error.to_string());
        let inbound_hbone = listen(self.ports.inbound_hbone)?;
        let inbound_plaintext = listen(self.ports.inbound_plaintext)?;
        let outbound = listen(self.ports.outbound)?;
        self.report(PodChange::Started {
            uid: uid.clone(),
            info: info.clone(),
        });
        let pod = Arc::new(Pod {
            uid: uid.clone(),
            info: info.clone(),
            namespace: Arc::clone(namespace),
            preserve_source: inbound_hbone.transparent && inbound_plaintext.transparent,
        });
        let listeners = PodListeners {
            outbound: outbound.fd.into(),
            inbound_plaintext: inbound_plaintext.fd.into(),
            inbound_hbone: inbound_hbone.fd.into(),
        };
        let workers = self.orders.workers();
        let home = home_worker(uid, workers);
        // Home last: when it hands its first connection over, the others know the pod.
        for worker in (0..workers).filter(|worker| *worker != home) {
            self.orders.send(
                worker,
                Order::AddPod {
                    pod: Arc::clone(&pod),
                    listeners: None,
                },
            );
        }
        self.orders.send(
            home,
            Order::AddPod {
                pod,
                listeners: Some(listeners),
            },
        );
        Ok(())
    }

    fn stop(&mut self, uid: &PodUid) {
        self.orders.send_all(|| Order::RemovePod { uid: uid.clone() });
        self.report(PodChange::Stopped { uid: uid.clone() });
    }
}

/// Listens on both families when `ipv6`, on IPv4 alone when the kernel has no IPv6 at all.
pub fn listen_on_any_family(ipv6: bool, spec: impl Fn(bool) -> ListenSpec) -> Result<Listening, ListenError> {
    match socket::listen(&spec(ipv6)) {
        Err(ListenError::Create { address, source })
            if ipv6 && source.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
        {
            tracing::debug!(%address, "no IPv6 in this kernel: listening on IPv4 only");
            socket::listen(&spec(false))
        }
        outcome => outcome,
    }
}

/// The worker that accepts for the pod: the highest of one hash per worker, so that the choice depends on the pod
/// alone, and a different number of workers moves as few pods as possible.
fn home_worker(uid: &PodUid, workers: usize) -> usize {
    let score = |worker: &usize| {
        // Fixed keys: every start of the program chooses alike.
        let mut hasher = DefaultHasher::new();
        (uid.as_str(), *worker).hash(&mut hasher);
        hasher.finish()
    };
    (0..workers)
        .max_by_key(score)
        .expect("invariant: there is at least one worker")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_spread_over_the_workers_and_an_added_worker_takes_only_its_share() {
        let uids: Vec<PodUid> = (0..1000)
            .map(|index| PodUid::new(&format!("pod-{index}")))
            .collect();
        let mut counts = [0; 4];
        for uid in &uids {
            counts[home_worker(uid, 4)] += 1;
        }
        assert!(
            counts.iter().all(|count| (150..350).contains(count)),
            "{counts:?}"
        );
        let moved = uids
            .iter()
            .filter(|uid| home_worker(uid, 4) != home_worker(uid, 5))
            .collect::<Vec<_>>();
        assert!(
            moved.iter().all(|uid| home_worker(uid, 5) == 4),
            "no pod moves between old workers"
        );
        assert!((100..300).contains(&moved.len()), "{}", moved.len());
    }
}
