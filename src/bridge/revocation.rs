//! The lists of revoked certificates in force: written by the control thread, read by workers once per handshake.
//! Beside them what is counted about them, for whoever shows metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;

use super::log::Direction;
use crate::tls::RevocationLists;

/// Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Revocations(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    lists: ArcSwapOption<RevocationLists>,
    /// Connections refused or ended because the peer's certificate is revoked, by who we were.
    rejected_inbound: AtomicU64,
    rejected_outbound: AtomicU64,
    loads_failed: AtomicU64,
}

impl Revocations {
    /// Control alone publishes; workers are told by an order.
    pub fn publish(&self, lists: Arc<RevocationLists>) {
        self.0.lists.store(Some(lists));
    }

    /// `None` when revocation is not asked for (`CRL_PATH`), so that nothing needs to be kept of peers.
    pub fn load(&self) -> Option<Arc<RevocationLists>> {
        self.0.lists.load_full()
    }

    /// A peer was refused, or its session ended.
    pub fn count_rejection(&self, direction: Direction) {
        self.rejected(direction).fetch_add(1, Ordering::Relaxed);
    }

    /// `istio_crl_policy_rejections_total`: inbound is reported by the destination, outbound by the source.
    pub fn rejections(&self, direction: Direction) -> u64 {
        self.rejected(direction).load(Ordering::Relaxed)
    }

    /// The file could not be used.
    pub fn count_failed_load(&self) {
        self.0.loads_failed.fetch_add(1, Ordering::Relaxed);
    }

    pub fn failed_loads(&self) -> u64 {
        self.0.loads_failed.load(Ordering::Relaxed)
    }

    fn rejected(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::Inbound => &self.0.rejected_inbound,
            Direction::Outbound => &self.0.rejected_outbound,
        }
    }
}
