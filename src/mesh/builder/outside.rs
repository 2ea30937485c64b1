//! Workloads that name a service which is there, and are not its members: its health policy keeps them out, or it names
//! them itself.
//!
//! Of the builder, for the moment when the service goes: then they wait for it as its members do. Invariant: once all
//! changes are applied, a workload that names a service which is there is either its member or here; no empty sets
//! remain.

use super::pending::Change;
use crate::mesh::TrieMap;
use crate::mesh::backing::Backed;
use crate::mesh::places::Place;
use crate::mesh::service::Service;
use crate::mesh::workload::Workload;

#[derive(Debug, Default)]
pub(super) struct Outside(TrieMap<Place<Backed>, TrieMap<Place<Workload>, ()>>);

impl Outside {
    pub fn insert(&mut self, service: Place<Backed>, workload: Place<Workload>) {
        let workloads = self.0.get_or_insert_with(&service, TrieMap::new);
        workloads.insert(workload, ());
    }

    /// Follows what is applied to the service in this place.
    pub fn apply(&mut self, place: Place<Backed>, service: &Service, changes: &[(Place<Workload>, Change)]) {
        for (workload, change) in changes {
            match change {
                Change::Joined(status) if !service.includes(*status) => self.insert(place, *workload),
                Change::Joined(_) | Change::Left => self.remove(place, workload),
            }
        }
    }

    /// The service is gone: whom it kept out.
    pub fn take(&mut self, service: Place<Backed>) -> TrieMap<Place<Workload>, ()> {
        self.0.remove(&service).unwrap_or_default()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn remove(&mut self, service: Place<Backed>, workload: &Place<Workload>) {
        if let Some(workloads) = self.0.get_mut(&service) {
            workloads.remove(workload);
            if workloads.is_empty() {
                self.0.remove(&service);
            }
        }
    }
}
