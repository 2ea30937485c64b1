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

    pub fn publish(&self, snapshot: Snapshot) {
        self.0.store(Arc::new(snapshot));
    }

    /// One consistent view; hold it for one decision, not for a connection's life.
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }
}
