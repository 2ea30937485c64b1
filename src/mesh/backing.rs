//! A service with what is behind it at one moment: its endpoints, and the tables that picks are made from.
//!
//! Versions behind `Arc`: the builder makes another one whenever an endpoint comes, goes or changes, so that the tables
//! are a pure function of the version, from whichever snapshot that has it they are built. A node calls few of the
//! services of a mesh: tables are built when somebody picks for the first time, by the worker that does. From then on,
//! and for services so large that it would take a worker too long (`limits::BALANCE_LAZY_ENDPOINTS_MAX`), the builder
//! builds those of each next version before anybody sees it.

use std::sync::{Arc, OnceLock};

use super::address::PortMap;
use super::balance::Balance;
use super::fingerprint::{Fingerprint, Fingerprints};
use super::places::{Place, Places};
use super::service::{Endpoint, Service};
use super::trie::TrieMap;
use super::workload::Workload;
use crate::limits;

/// Workloads as tables are built of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Workloads {
    pub by_place: Places<Workload>,
    by_uid: TrieMap<Fingerprint, Place<Workload>>,
    fingerprints: Fingerprints,
}

#[derive(Debug)]
pub(super) struct Backed {
    pub service: Arc<Service>,
    /// Workloads that name the service, as far as its health policy lets them in.
    pub members: TrieMap<Place<Workload>, ()>,
    /// Endpoints that the service named itself, by workload uid; the workload need not be there. One that names the
    /// service goes before them.
    pub given: TrieMap<Arc<str>, Endpoint>,
    /// Behind a pointer: most services of a mesh never have any.
    tables: OnceLock<Box<Balance>>,
    /// Somebody picked from a version before this one.
    was_used: bool,
}

impl Workloads {
    pub fn get(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.find(uid).map(|(_, workload)| workload)
    }

    pub fn place(&self, uid: &str) -> Option<Place<Workload>> {
        self.find(uid).map(|(place, _)| place)
    }

    pub fn find(&self, uid: &str) -> Option<(Place<Workload>, &Arc<Workload>)> {
        let place = *self.by_uid.get(&self.fingerprint(uid))?;
        let found = self.by_place.get(place)?;
        (*found.uid == *uid).then_some((place, found))
    }

    /// What `get` gives for each uid, looked up side by side, and perhaps another workload where it gives none.
    pub fn foresee<const N: usize>(&self, uids: [Option<&str>; N]) -> [Option<&Arc<Workload>>; N] {
        let fingerprints = uids.map(|uid| Some(self.fingerprint(uid?)));
        let places = self.by_uid.get_each(&fingerprints);
        places.map(|place| self.by_place.foresee(*place?))
    }

    /// The place that the uid, or another one of its fingerprint, has; otherwise it leads from now on to the one that
    /// `make` makes.
    pub fn place_new(
        &mut self,
        uid: &str,
        make: impl FnOnce() -> Place<Workload>,
    ) -> Option<Place<Workload>> {
        self.by_uid.insert_new(&self.fingerprint(uid), make)
    }

    /// The place of a uid, which leads nowhere from now on.
    pub fn take_place(&mut self, uid: &str) -> Option<Place<Workload>> {
        self.place(uid)?;
        self.by_uid.remove(&self.fingerprint(uid))
    }

    /// As if the fingerprint of the uid were that of another one.
    #[cfg(test)]
    pub fn confuse(&mut self, uid: &str, other: &str) {
        let place = self.place(other).expect("there is another one");
        self.by_uid.insert(self.fingerprint(uid), place);
    }

    fn fingerprint(&self, uid: &str) -> Fingerprint {
        self.fingerprints.of(uid.as_bytes())
    }
}

impl Backed {
    pub fn new(service: Arc<Service>) -> Self {
        Self {
            service,
            members: TrieMap::new(),
            given: TrieMap::new(),
            tables: OnceLock::new(),
            was_used: false,
        }
    }

    /// The same, to be changed: without tables.
    pub fn next(&self) -> Self {
        Self {
            service: self.service.clone(),
            members: self.members.clone(),
            given: self.given.clone(),
            tables: OnceLock::new(),
            was_used: self.was_used || self.is_built(),
        }
    }

    pub fn is_built(&self) -> bool {
        self.tables.get().is_some()
    }

    /// Whether the tables have to be there before a worker looks.
    pub fn is_built_ahead(&self) -> bool {
        self.was_used || self.len() > limits::BALANCE_LAZY_ENDPOINTS_MAX
    }

    pub fn len(&self) -> usize {
        self.members.len() + self.given.len()
    }

    /// The tables, which are built if they are not there. Two threads that need them at the same moment both build,
    /// so that no worker waits for another one.
    pub fn tables(&self, workloads: &Workloads) -> &Balance {
        if let Some(tables) = self.tables.get() {
            return tables;
        }
        let built = Box::new(Balance::build(self, workloads));
        self.tables.get_or_init(|| built)
    }

    /// What an endpoint says about its ports.
    pub fn ports_of<'a>(&'a self, uid: &str, workloads: &'a Workloads) -> Option<&'a PortMap> {
        if let Some(endpoint) = self.given.get(uid) {
            return Some(&endpoint.ports);
        }
        let (place, workload) = workloads.find(uid)?;
        self.members.get(&place)?;
        self.ports_as_member(workload)
    }

    /// What a workload that names the service says about its ports.
    pub fn ports_as_member<'a>(&self, workload: &'a Workload) -> Option<&'a PortMap> {
        workload.ports_in(&self.service.namespace, &self.service.hostname)
    }

    /// In no particular order. Those whose workload is not there are among them.
    pub fn endpoints<'a>(&'a self, workloads: &'a Workloads) -> impl Iterator<Item = Endpoint> {
        let members = self.members.keys().filter_map(|place| {
            let workload = workloads.by_place.get(*place)?;
            Some(Endpoint {
                workload_uid: workload.uid.clone(),
                ports: self.ports_as_member(workload)?.clone(),
                status: workload.status,
            })
        });
        members.chain(self.given.values().cloned())
    }

    /// Workloads that take its connections, with their ports.
    pub fn workloads<'a>(
        &'a self,
        workloads: &'a Workloads,
    ) -> impl Iterator<Item = (&'a Arc<Workload>, &'a PortMap)> {
        let members = self.members.keys().filter_map(|place| {
            let workload = workloads.by_place.get(*place)?;
            Some((workload, self.ports_as_member(workload)?))
        });
        let given = self.given.values().filter_map(|endpoint| {
            let workload = workloads.get(&endpoint.workload_uid)?;
            Some((workload, &endpoint.ports))
        });
        members.chain(given)
    }
}

#[cfg(test)]
mod tests;
