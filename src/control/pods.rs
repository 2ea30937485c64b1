//! A pod's listening sockets: made inside the pod's network namespace, served by the pod's home worker.
//!
//! Control thread. All sockets of a pod are bound before the first one is handed over, so that a pod is served
//! on every port or on none. Specification: upstream's listeners and socket options.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::bridge::{Order, Orders, Pod, PodInfo, PodListeners, PodUid};
use crate::limits;
use crate::sys::netns::Namespace;
use crate::sys::socket::{self, ListenError, ListenSpec, Listening};

/// Traffic that leaves the pod is redirected here.
pub const OUTBOUND_PORT: u16 = 15001;
/// Plaintext traffic to the pod is redirected here.
pub const INBOUND_PLAINTEXT_PORT: u16 = 15006;
/// HBONE traffic to the pod arrives here.
pub const INBOUND_HBONE_PORT: u16 = 15008;

/// How pod sockets are made.
#[derive(Debug, Clone, Copy)]
pub struct ListenerSettings {
    /// `IPV6_ENABLED`: bind `[::]`, for both families.
    pub ipv6: bool,
    /// `PACKET_MARK`.
    pub mark: Option<u32>,
    /// `ENABLE_ORIG_SRC`.
    pub transparent: Option<bool>,
    /// `INPOD_PORT_REUSE`.
    pub reuse_port: bool,
}

/// What the ZDS client does with pods.
pub trait Pods {
    /// Serves the pod, or says what the node agent shall read.
    fn start(&mut self, uid: &PodUid, info: &PodInfo, namespace: &Arc<Namespace>) -> Result<(), String>;

    /// Stops serving it, at once.
    fn stop(&mut self, uid: &PodUid);
}

/// Pods served by the workers.
pub struct WorkerPods {
    settings: ListenerSettings,
    orders: Orders,
}

impl WorkerPods {
    pub fn new(settings: ListenerSettings, orders: Orders) -> Self {
        assert!(orders.workers() > 0, "there is at least one worker");
        Self { settings, orders }
    }

    fn listen(&self, namespace: &Arc<Namespace>, port: u16) -> Result<Listening, ListenError> {
        let spec = |ipv6| ListenSpec {
            namespace: Some(Arc::clone(namespace)),
            address: socket::any_address(ipv6, port),
            reuse_port: self.settings.reuse_port,
            mark: self.settings.mark,
            transparent: self.settings.transparent,
            backlog: limits::LISTEN_BACKLOG,
        };
        listen_on_any_family(self.settings.ipv6, spec)
    }

    /// All listeners of a pod, and whether both inbound ones may see and use foreign addresses.
    fn listeners(&self, namespace: &Arc<Namespace>) -> Result<(PodListeners, bool), ListenError> {
        let inbound_hbone = self.listen(namespace, INBOUND_HBONE_PORT)?;
        let inbound_plaintext = self.listen(namespace, INBOUND_PLAINTEXT_PORT)?;
        let outbound = self.listen(namespace, OUTBOUND_PORT)?;
        let preserve_source = inbound_hbone.transparent && inbound_plaintext.transparent;
        let listeners = PodListeners {
            outbound: outbound.fd,
            inbound_hbone: inbound_hbone.fd,
            inbound_plaintext: inbound_plaintext.fd,
        };
        Ok((listeners, preserve_source))
    }
}

impl Pods for WorkerPods {
    fn start(&mut self, uid: &PodUid, info: &PodInfo, namespace: &Arc<Namespace>) -> Result<(), String> {
        let (listeners, preserve_source) =
            self.listeners(namespace).map_err(|error| error.to_string())?;
        let pod = Arc::new(Pod {
            uid: uid.clone(),
            info: info.clone(),
            namespace: Arc::clone(namespace),
            preserve_source,
        });
        // Every worker knows every pod, since connections are handed over; home accepts them.
        let home = home_worker(uid, self.orders.workers());
        for worker in (0..self.orders.workers()).filter(|worker| *worker != home) {
            self.orders.send(worker, Order::AddPod { pod: Arc::clone(&pod), listeners: None });
        }
        self.orders.send(home, Order::AddPod { pod, listeners: Some(listeners) });
        Ok(())
    }

    /// Every worker is told: connections of the pod may have been handed to any of them.
    fn stop(&mut self, uid: &PodUid) {
        for worker in 0..self.orders.workers() {
            self.orders.send(worker, Order::RemovePod { uid: uid.clone() });
        }
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
