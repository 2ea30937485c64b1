//! The one writer of the mesh state: applies inserts and removals, and builds snapshots.
//!
//! Owned by the control thread. Invariants: whatever leads to a workload or a service leads to its one place; no empty
//! lists remain; however many endpoints of a service change between two builds, another version of it is made once, and
//! before anybody sees that a workload is another one, so are all versions that it is in. Endpoints may arrive before
//! their service, or outlive it: they are staged until it comes, or comes again.

use std::collections::BTreeSet;
use std::sync::Arc;

use foldhash::HashMap;

use self::outside::Outside;
use self::pending::{Change, Pending, Taken};
use super::address::NamespacedHostname;
use super::backing::Backed;
use super::few::Gathered;
use super::index::{Index, PolicyList};
use super::interner::Interner;
use super::local::LocalState;
use super::places::{Numbers, Place};
use super::policy::{Policy, PolicyScope};
use super::service::Service;
use super::workload::{Role, Workload};
use super::{Locale, Snapshot, TrieMap};
use crate::identity::Identity;
use crate::limits;

mod foresight;
mod outside;
mod pending;

#[derive(Debug, Default)]
pub struct Builder {
    index: Index,
    workload_numbers: Numbers<Workload>,
    service_numbers: Numbers<Backed>,
    pending: Pending,
    outside: Outside,
    /// Services of which another version is needed, for whatever other reason.
    stale: BTreeSet<NamespacedHostname>,
    /// Which services name an endpoint themselves, whether its workload is there or not. The services that their
    /// workloads name are not in it.
    referring: HashMap<Arc<str>, BTreeSet<NamespacedHostname>>,
    interner: Interner,
    warnings: Vec<String>,
    rebuilds: usize,
    tables_built: usize,
}

impl Builder {
    pub fn new(locale: Locale) -> Self {
        Self {
            index: Index {
                locale,
                ..Index::default()
            },
            ..Self::default()
        }
    }

    /// Replaces everything by what a local file holds: workloads, then policies, then services.
    pub fn load(&mut self, local: LocalState) {
        let revision = self.index.policies_revision;
        *self = Self::new(self.index.locale.clone());
        self.index.policies_revision = revision + 1;
        for workload in local.workloads {
            self.insert_workload(workload);
        }
        for policy in local.policies {
            self.insert_policy(policy);
        }
        for service in local.services {
            self.insert_service(service);
        }
    }

    /// For those who make what is inserted.
    pub fn interner(&mut self) -> &mut Interner {
        &mut self.interner
    }

    /// Adds a workload, or replaces the one of the same uid.
    pub fn insert_workload(&mut self, workload: impl Into<Arc<Workload>>) {
        let mut workload = workload.into();
        if workload.addresses.iter().any(|ip| *ip != ip.to_canonical()) {
            for ip in Arc::make_mut(&mut workload).addresses.iter_mut() {
                *ip = ip.to_canonical();
            }
        }
        if workload.trust_domain.is_empty() {
            self.warnings.push(format!(
                "workload {:?} has no trust domain, so no certificate can be issued for it or be accepted \
                 from it: set its trustDomain, e.g. to cluster.local",
                workload.uid
            ));
        }
        self.intern(&mut workload);
        let Index { workloads, .. } = &mut self.index;
        let mut number = None;
        let known = workloads.place_new(&workload.uid, || *number.insert(self.workload_numbers.next()));
        let before = known.and_then(|place| workloads.by_place.get(place).cloned());
        let place = match (known, before) {
            (Some(_), Some(before)) if before.uid != workload.uid => {
                self.warnings.push(format!(
                    "workload {:?} is left out: by chance it has the fingerprint of {:?}, until uztunnel is started anew",
                    workload.uid, before.uid
                ));
                return;
            }
            (Some(place), Some(before)) => {
                self.replace_workload(place, &before, &workload);
                place
            }
            (known, _) => {
                let place = known
                    .or(number)
                    .expect("invariant: it is known or has got a number");
                self.index.addresses_revision += 1;
                self.index.place_workload(place, &workload);
                place
            }
        };
        let change = Change::Joined(workload.status);
        self.pending.push(&workload.services, place, change);
        self.mark_referring(&workload.uid);
    }

    /// Removes a resource by its name: a workload's uid, or a service's `namespace/hostname`.
    pub fn remove(&mut self, name: &str) {
        if self.forget(name) {
            return;
        }
        match name.split_once('/') {
            None => self
                .warnings
                .push(format!("cannot remove {name:?}: no workload has this uid")),
            // Looks like the uid of a workload that was never there.
            Some((_, hostname)) if hostname.contains('/') => {}
            Some(_) => self
                .warnings
                .push(format!("cannot remove service {name:?}: it is not there")),
        }
    }

    /// Likewise of what may as well not be there. Whether it was.
    pub fn forget(&mut self, name: &str) -> bool {
        if self.forget_workload(name) {
            return true;
        }
        let service = name
            .split_once('/')
            .filter(|(_, hostname)| !hostname.contains('/'));
        service.is_some_and(|(namespace, hostname)| {
            self.remove_service(&NamespacedHostname::new(namespace, hostname))
        })
    }

    /// Adds a service, or replaces the one of the same namespace and host name. The endpoints it had before
    /// stay, those that were staged for it join, as far as the new health policy lets them in.
    pub fn insert_service(&mut self, mut service: Service) {
        let key = service.key();
        for name in &service.subject_alt_names {
            if let Err(error) = name.parse::<Identity>() {
                self.warnings.push(format!(
                    "service {key}: skipping a subject alternative name: {error}"
                ));
            }
        }
        let names = service
            .subject_alt_names
            .iter()
            .filter_map(|name| name.parse().ok());
        service.names = names.collect();
        let given = std::mem::take(&mut service.endpoints);
        let service = Arc::new(service);
        let known = self.index.service_place(&key.namespace, &key.hostname);
        let before = known.and_then(|place| self.index.take_service(place));
        let place = known.unwrap_or_else(|| {
            self.pending.places_changed();
            self.service_numbers.next()
        });
        let mut backed = Backed::new(service.clone());
        let mut waiting = self.index.staged.remove(&key).unwrap_or_default();
        if let Some(before) = before {
            let policy = before.service.health_policy();
            // All endpoints stay, as far as the new health policy lets them in, and whom the old one kept out it may let
            // in as well.
            backed = before.next();
            backed.service = service.clone();
            if policy != service.health_policy() {
                waiting = self.outside.take(place);
                for workload in self.index.evict(&mut backed) {
                    self.outside.insert(place, workload);
                }
            }
        }
        for workload in waiting.keys() {
            self.index.admit(&mut backed, *workload);
            if !backed.members.contains_key(workload) {
                self.outside.insert(place, *workload);
            }
        }
        for (uid, endpoint) in given.iter().filter(|(_, it)| service.includes(it.status)) {
            if let Some(workload) = self.index.workloads.place(uid)
                && backed.members.remove(&workload).is_some()
            {
                self.outside.insert(place, workload);
            }
            backed.given.insert(uid.clone(), endpoint.clone());
        }
        for uid in given.keys() {
            self.referring.entry(uid.clone()).or_default().insert(key.clone());
        }
        self.index.place_service(place, Arc::new(backed));
        self.stale.insert(key);
    }

    /// Removes a service with the endpoints that it named itself; false if it was not there. Workloads that name it do so
    /// all the same: they are staged, so that it has them at once when it comes again. What waits to be applied follows
    /// them there.
    pub fn remove_service(&mut self, key: &NamespacedHostname) -> bool {
        let place = self.index.service_place(&key.namespace, &key.hostname);
        let old = place.and_then(|place| Some((place, self.index.take_service(place)?)));
        let Some((place, old)) = old else {
            return false;
        };
        self.stale.remove(key);
        self.service_numbers.take_back(place);
        self.pending.places_changed();
        let mut waiting = old.members.clone();
        for workload in self.outside.take(place).keys() {
            waiting.insert(*workload, ());
        }
        if !waiting.is_empty() {
            self.index.staged.insert(key.clone(), waiting);
        }
        for uid in old.given.keys() {
            self.unrefer(key, uid);
        }
        true
    }

    /// Adds a policy, or replaces the one of the same key. One that says the same again is no change: control
    /// planes repeat all of them when a connection begins anew.
    pub fn insert_policy(&mut self, policy: Policy) {
        if self
            .index
            .policies
            .get(&policy.key)
            .is_some_and(|known| **known == policy)
        {
            return;
        }
        self.remove_policy(&policy.key.clone());
        let policy = Arc::new(policy);
        let revision = self.index.next_policies_revision();
        if let Some(namespace) = policy_namespace(&policy) {
            let lists = &mut self.index.policies_by_namespace;
            let list = lists.get_or_insert_with(&namespace, PolicyList::default);
            let at = list.policies.partition_point(|other| other.key < policy.key);
            list.policies.insert(at, policy.clone());
            list.revision = revision;
        }
        self.index.policies.insert(policy.key.clone(), policy);
    }

    /// Removes a policy by `namespace/name`; false if it was not there.
    pub fn remove_policy(&mut self, key: &str) -> bool {
        let Some(old) = self.index.policies.remove(key) else {
            return false;
        };
        let revision = self.index.next_policies_revision();
        if let Some(namespace) = policy_namespace(&old)
            && let Some(list) = self.index.policies_by_namespace.get_mut(&namespace)
        {
            list.policies.retain(|policy| &*policy.key != key);
            list.revision = revision;
            if list.policies.is_empty() {
                self.index.policies_by_namespace.remove(&namespace);
            }
        }
        true
    }

    /// Applies the endpoint changes, renews what they made stale and returns the state as of now.
    pub fn build(&mut self) -> Snapshot {
        while self.settle(limits::XDS_SERVICES_SLICE) {}
        self.workload_numbers.rested();
        self.service_numbers.rested();
        self.pending.rested();
        Snapshot {
            index: self.index.clone(),
        }
    }

    /// Lets go of what was replaced, as soon as the last snapshot but one is gone.
    pub fn let_go(&mut self) {
        self.index.workloads.by_place.let_go();
        self.index.services.let_go();
    }

    /// A part of what `build` has to do before it can return, for at most `services_max` services; true while more
    /// is left.
    pub fn settle(&mut self, services_max: usize) -> bool {
        let mut rest = services_max;
        self.foresee_services();
        while rest > 0
            && let Some(taken) = self.pending.take()
        {
            self.apply(&taken);
            rest -= 1;
        }
        for _ in 0..rest {
            let Some(key) = self.stale.pop_first() else { break };
            self.renew_named(&key, |_, _| {});
        }
        !(self.pending.is_empty() && self.stale.is_empty())
    }

    /// As of now, `Snapshot::policies_revision` of what `build` would give.
    pub fn policies_revision(&self) -> u64 {
        self.index.policies_revision
    }

    /// What was odd in the input since the last call, one sentence each.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Services that are missing although endpoints wait for them.
    pub fn staged_services(&self) -> usize {
        self.index.staged.len()
    }

    /// How often another version of a service was made, because of its endpoints or itself.
    pub fn rebuilds(&self) -> usize {
        self.rebuilds
    }

    /// For how many of them the tables were built.
    pub fn tables_built(&self) -> usize {
        self.tables_built
    }

    /// The last change of each workload counts.
    fn apply(&mut self, taken: &Taken) {
        let index = &self.index;
        let place = self
            .pending
            .place_of(taken, |key| index.service_place(&key.namespace, &key.hostname));
        let Some(place) = place else {
            self.stage(taken);
            return;
        };
        let changes = &taken.changes;
        if let Some(backed) = self.index.services.get(place) {
            self.outside.apply(place, &backed.service, changes);
        }
        self.renew(place, |index, backed| {
            if backed.len() == 0 {
                backed.members = joined(&backed.service, changes);
                return;
            }
            for (place, change) in changes.iter() {
                match change {
                    Change::Joined(status) => index.admit_as(backed, *place, *status),
                    Change::Left => drop(backed.members.remove(place)),
                }
            }
        });
        if !self.stale.is_empty() {
            self.stale.remove(self.pending.service_of(taken));
        }
    }

    /// Keeps endpoints for a service that is not there.
    fn stage(&mut self, taken: &Taken) {
        let key = self.pending.service_of(taken);
        let staged = self.index.staged.get_or_insert_with(key, TrieMap::new);
        for (place, change) in taken.changes.iter() {
            match change {
                Change::Joined(_) => drop(staged.insert(*place, ())),
                Change::Left => drop(staged.remove(place)),
            }
        }
        if staged.is_empty() {
            self.index.staged.remove(key);
        }
    }

    /// Another version of a service, if there is such a service.
    fn renew_named(&mut self, key: &NamespacedHostname, change: impl FnOnce(&Index, &mut Backed)) {
        if let Some(place) = self.index.service_place(&key.namespace, &key.hostname) {
            self.renew(place, change);
        }
    }

    /// Another version of a service. The workloads are all there when this is called, so that tables are built once for a
    /// push.
    fn renew(&mut self, place: Place<Backed>, change: impl FnOnce(&Index, &mut Backed)) {
        let Some(before) = self.index.services.get(place) else {
            return;
        };
        let mut backed = before.next();
        change(&self.index, &mut backed);
        if backed.is_built_ahead() {
            backed.tables(&self.index.workloads);
            self.tables_built += 1;
        }
        self.rebuilds += 1;
        self.index.services.set(place, Arc::new(backed));
    }

    fn replace_workload(&mut self, place: Place<Workload>, before: &Workload, workload: &Arc<Workload>) {
        if !before.is_reached_as(workload) {
            self.index.addresses_revision += 1;
        }
        if self.index.is_found_alike(before, workload) {
            self.index.workloads.by_place.set(place, workload.clone());
        } else {
            self.index.take_workload(place);
            self.index.place_workload(place, workload);
        }
        let stays = before.shares_role(workload) || before.services == workload.services;
        for (key, _) in before.services.iter() {
            self.forget_given(key, &workload.uid);
        }
        if !stays {
            self.pending.push(&before.services, place, Change::Left);
        }
    }

    fn forget_workload(&mut self, uid: &str) -> bool {
        let Some(place) = self.index.workloads.take_place(uid) else {
            return false;
        };
        let Some(old) = self.index.take_workload(place) else {
            return false;
        };
        self.workload_numbers.take_back(place);
        if self.index.is_owned(&old) {
            self.index.addresses_revision += 1;
        }
        for (key, _) in old.services.iter() {
            self.forget_given(key, uid);
        }
        self.pending.push(&old.services, place, Change::Left);
        self.mark_referring(uid);
        true
    }

    /// A workload that names a service and changes or leaves is no endpoint any more that the service names.
    fn forget_given(&mut self, key: &NamespacedHostname, uid: &str) {
        let is_given = |services: &BTreeSet<NamespacedHostname>| services.contains(key);
        if self.referring.get(uid).is_some_and(is_given) {
            self.renew_named(key, |_, backed| drop(backed.given.remove(uid)));
            self.unrefer(key, uid);
        }
    }

    fn mark_referring(&mut self, uid: &str) {
        self.stale
            .extend(self.referring.get(uid).into_iter().flatten().cloned());
    }

    fn unrefer(&mut self, key: &NamespacedHostname, uid: &str) {
        if let Some(services) = self.referring.get_mut(uid) {
            services.remove(key);
            if services.is_empty() {
                self.referring.remove(uid);
            }
        }
    }

    /// All workloads of an identity share one copy.
    fn intern(&mut self, workload: &mut Arc<Workload>) {
        if Arc::strong_count(&workload.role) > 1 {
            // As decoders have it from the interner.
            return;
        }
        let Role {
            trust_domain,
            namespace,
            service_account,
            identity,
            ..
        } = &*workload.role;
        if *identity.trust_domain() != **trust_domain
            || *identity.namespace() != **namespace
            || *identity.service_account() != **service_account
        {
            return;
        }
        let accepted = self.interner.identity(trust_domain, namespace, service_account);
        let workload = Arc::make_mut(workload);
        workload.identity = accepted[0].clone();
        workload.accepted = accepted;
    }
}

/// The endpoints of a service that had none before these changes. The last change of each workload counts.
fn joined(service: &Service, changes: &Gathered<(Place<Workload>, Change)>) -> TrieMap<Place<Workload>, ()> {
    let mut changes: Vec<_> = changes.iter().copied().collect();
    changes.sort_by_key(|(place, _)| *place);
    let of_each = changes.chunk_by(|(one, _), (other, _)| one == other);
    let joined: Vec<_> = of_each
        .filter_map(|changes| match changes.last()? {
            (place, Change::Joined(status)) if service.includes(*status) => Some((*place, ())),
            (_, Change::Joined(_) | Change::Left) => None,
        })
        .collect();
    joined.into_iter().collect()
}

/// The set a policy belongs to; selector-scoped ones are only named by their workloads.
fn policy_namespace(policy: &Policy) -> Option<Arc<str>> {
    match policy.scope {
        PolicyScope::Global => Some(Arc::default()),
        PolicyScope::Namespace => Some(policy.namespace.clone()),
        PolicyScope::WorkloadSelector => None,
    }
}

#[cfg(test)]
mod tests;
