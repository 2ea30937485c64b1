//! What the control plane said, applied to the mesh and published to the workers.
//!
//! Control thread. Invariants: a response is published as a whole or not yet; a resource that is refused leaves what
//! was there before it, and everything else, as it is. Long work is cut into slices, so that certificates and pods
//! do not wait behind a hundred thousand workloads.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::yield_now;

use super::decode::{self, Address, DecodeError};
use super::messages::discovery::Resource;
use super::protocol::{Kind, Verdict};
use crate::bridge::{Order, Orders, SnapshotCell};
use crate::clock::{self, Instant};
use crate::control::pods::PodChange;
use crate::limits;
use crate::mesh::Builder;

/// The one writer of the mesh state.
pub struct State {
    builder: Builder,
    snapshots: SnapshotCell,
    orders: Orders,
    changes: mpsc::UnboundedSender<PodChange>,
    /// When changes that nobody has seen yet are published.
    publish_at: Option<Instant>,
    published_at: Option<Instant>,
}

impl State {
    /// `builder` has what `snapshots` shows.
    pub fn new(
        builder: Builder,
        snapshots: SnapshotCell,
        orders: Orders,
        changes: mpsc::UnboundedSender<PodChange>,
    ) -> Self {
        Self {
            builder,
            snapshots,
            orders,
            changes,
            publish_at: None,
            published_at: None,
        }
    }

    /// Applies one response: resources in their order, then removals.
    pub async fn apply(&mut self, kind: Kind, resources: Vec<Resource>, removed: Vec<String>) -> Verdict {
        let mut verdict = Verdict {
            removed,
            ..Verdict::default()
        };
        for (at, resource) in resources.into_iter().enumerate() {
            if at % limits::XDS_SLICE == limits::XDS_SLICE - 1 {
                yield_now().await;
            }
            let name: Arc<str> = resource.name.as_str().into();
            match self.insert(kind, &resource) {
                Ok(()) => verdict.accepted.push((name, resource.version.into())),
                Err(error) => verdict.rejected.push((name, error.to_string())),
            }
        }
        for (at, name) in verdict.removed.iter().enumerate() {
            if at % limits::XDS_SLICE == limits::XDS_SLICE - 1 {
                yield_now().await;
            }
            self.remove(kind, name);
        }
        self.changed();
        verdict
    }

    /// Takes out what is no more.
    pub fn remove(&mut self, kind: Kind, name: &str) {
        match kind {
            Kind::Address => self.builder.remove(name),
            Kind::Authorization => {
                if !self.builder.remove_policy(name) {
                    tracing::debug!("cannot remove policy {name:?}: it is not there");
                }
            }
        }
        self.changed();
    }

    pub fn publish_at(&self) -> Option<Instant> {
        self.publish_at
    }

    /// Shows the workers what has changed, if anything has.
    pub async fn publish(&mut self) {
        if self.publish_at.is_none() {
            return;
        }
        while self.builder.settle(limits::XDS_SLICE) {
            yield_now().await;
        }
        self.publish_at = None;
        self.published_at = Some(clock::now());
        self.snapshots.publish(self.builder.build());
        self.orders.send_all(|| Order::Snapshot);
        // Nobody listens when the process is on its way out.
        let _ = self.changes.send(PodChange::MeshChanged);
        let warnings = self.builder.take_warnings();
        for warning in warnings.iter().take(limits::XDS_WARNINGS_MAX) {
            tracing::warn!("{warning}");
        }
        if let Some(more @ 1..) = warnings.len().checked_sub(limits::XDS_WARNINGS_MAX) {
            tracing::warn!("and {more} more warnings about the state of the mesh");
        }
    }

    fn insert(&mut self, kind: Kind, resource: &Resource) -> Result<(), DecodeError> {
        let payload = resource.resource.as_ref().ok_or(DecodeError::NoPayload)?;
        match kind {
            Kind::Address => match decode::address(&payload.value)? {
                Address::Workload(workload) => self.builder.insert_workload(*workload),
                Address::Service(service) => self.builder.insert_service(*service),
            },
            Kind::Authorization => {
                let policy = decode::policy(&resource.name, &payload.value)?;
                self.builder.insert_policy(policy);
            }
        }
        Ok(())
    }

    fn changed(&mut self) {
        let now = clock::now();
        let earliest = self
            .published_at
            .map_or(now, |at| now.max(at + limits::SNAPSHOT_INTERVAL));
        self.publish_at.get_or_insert(earliest);
    }
}
