//! Reading ahead: what the next changes will touch is read for several of them together.
//!
//! Of the builder, on the control thread. A change of a large mesh is mostly a wait for memory that no cache holds: some
//! twenty times, each for what the one before has led to. Those of different changes do not depend on each other, so the
//! processor waits for them at the same time if they are next to each other, each step for all changes. Nothing is changed
//! here, and nothing depends on it.

use std::hint::black_box;
use std::sync::Arc;

use super::Builder;
use crate::limits;
use crate::mesh::backing::Backed;

impl Builder {
    /// Those of these uids that are workloads will be replaced or removed. Of more than fit one slice, the first.
    pub fn foresee<'a>(&self, uids: impl Iterator<Item = &'a str>) {
        let mut named = [None; limits::XDS_SLICE];
        for (named, uid) in named.iter_mut().zip(uids) {
            *named = Some(uid);
        }
        let workloads = self.index.workloads.foresee(named);
        for workload in workloads.iter().flatten() {
            black_box((
                Arc::strong_count(workload),
                workload.capacity,
                workload.addresses.len(),
            ));
        }
        for workload in workloads.iter().flatten() {
            let uid = &workload.uid;
            black_box((Arc::strong_count(uid), uid.as_bytes().last().copied()));
            black_box(Arc::strong_count(&workload.role));
            self.pending.foresee(&workload.services);
        }
    }

    /// Other versions of the services that wait first will be made.
    pub(super) fn foresee_services(&self) {
        let places = self.pending.next_places::<{ limits::XDS_SERVICES_SLICE }>();
        let services: [Option<&Arc<Backed>>; _] = places.map(|place| self.index.services.foresee(place?));
        for backed in services.iter().flatten() {
            black_box((Arc::strong_count(backed), backed.len()));
        }
        for backed in services.iter().flatten() {
            black_box(Arc::strong_count(&backed.service));
            backed.members.foresee();
        }
    }
}
