//! The published state of the mesh: written by the control thread, read by workers once per new connection.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::mesh::Snapshot;

/// The current snapshot. Clones share it.
#[derive(Clone)]
pub struct SnapshotCell(Arc<ArcSwap<Snapshot>>);

impl SnapshotCell {
    pub fn new(snapshot: Snapshot) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(snapshot)))
    }

    /// Gives the one before, which workers may still look at: whoever drops it last frees what is its alone.
    pub fn publish(&self, snapshot: Snapshot) -> Arc<Snapshot> {
        self.0.swap(Arc::new(snapshot))
    }

    /// One consistent view; hold it for one decision, not for a connection's life.
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }
}
