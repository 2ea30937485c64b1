//! What workers ask of the control thread.

use tokio::sync::mpsc;

use super::lookups::Question;
use super::orders::PodUid;
use crate::identity::Identity;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// A connection waits for this identity's certificate; answered by `Order::Certificate`.
    Certificate { worker: usize, identity: Identity },
    /// Connections of the pod wait for what is known of this; answered by `Order::Answer`.
    Lookup {
        worker: usize,
        pod: PodUid,
        question: Question,
    },
    /// A handshake under this identity failed for want of trust: its certificate and roots may be of yesterday. Sent once
    /// for each certificate, and answered by none but the next one.
    Doubt { identity: Identity },
    /// The last demand of a worker: it ended, after a drain or because of an error.
    Ended { worker: usize, error: Option<String> },
}

/// A worker's end: sending never blocks. A worker asks at most once for an identity, and for each question (for a host
/// name, once for each pod), until it is answered.
#[derive(Clone)]
pub struct Demands(mpsc::UnboundedSender<Demand>);

pub type DemandQueue = mpsc::UnboundedReceiver<Demand>;

pub fn channel() -> (Demands, DemandQueue) {
    let (sender, queue) = mpsc::unbounded_channel();
    (Demands(sender), queue)
}

impl Demands {
    /// `false` when the control thread has ended.
    pub fn send(&self, demand: Demand) -> bool {
        self.0.send(demand).is_ok()
    }
}
