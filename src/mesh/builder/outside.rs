//! Workloads that name a service which is there, and are not its members: its health policy keeps them out, or it names
//! them itself.
//!
//! Of the builder, for the moment when the service goes: then they wait for it as its members do. Invariant: once all
//! changes are applied, a workload that names a service which is there is either its member or here.

use super::pending::Change;
use crate::mesh::TrieMap;
use crate::mesh::backing::Backed;
use crate::mesh::few::Gathered;
use crate::mesh::places::Place;
use crate::mesh::service::Service;
use crate::mesh::workload::Workload;

/// By the number of the service's place: most services have nobody outside, which one look has to tell.
#[derive(Debug, Default)]
pub(super) struct Outside(Vec<TrieMap<Place<Workload>, ()>>);

impl Outside {
    pub fn insert(&mut self, service: Place<Backed>, workload: Place<Workload>) {
        let services = &mut self.0;
        if services.len() <= service.index() {
            services.resize_with(service.index() + 1, TrieMap::new);
        }
        services[service.index()].insert(workload, ());
    }

    /// Follows what is applied to the service in this place.
    pub fn apply(
        &mut self,
        place: Place<Backed>,
        service: &Service,
        changes: &Gathered<(Place<Workload>, Change)>,
    ) {
        for (workload, change) in changes.iter() {
            match change {
                Change::Joined(status) if !service.includes(*status) => self.insert(place, *workload),
                Change::Joined(_) | Change::Left => self.remove(place, workload),
            }
        }
    }

    /// The service is gone: whom it kept out.
    pub fn take(&mut self, service: Place<Backed>) -> TrieMap<Place<Workload>, ()> {
        self.0
            .get_mut(service.index())
            .map(std::mem::take)
            .unwrap_or_default()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(TrieMap::is_empty)
    }

    fn remove(&mut self, service: Place<Backed>, workload: &Place<Workload>) {
        if let Some(workloads) = self.0.get_mut(service.index())
            && !workloads.is_empty()
        {
            workloads.remove(workload);
        }
    }
}
