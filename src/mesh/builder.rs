//! The one writer of the mesh state: applies inserts and removals, and builds snapshots.
//!
//! Owned by the control thread. Invariants: all views of a service (by name, address, range) hold the same
//! object; no empty lists remain; however many endpoints of a service change between two builds, its tables
//! are rebuilt once. Endpoints may arrive before their service: they are staged until it comes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::address::NamespacedHostname;
use super::balance::Balance;
use super::few::Few;
use super::interner::Interner;
use super::local::LocalState;
use super::policy::{Policy, PolicyScope};
use super::service::{Endpoint, Service};
use super::workload::{NetworkMode, Workload};
use super::{ByNetwork, Index, Locale, PolicyList, Snapshot, TrieMap};
use crate::identity::Identity;

#[derive(Debug, Default)]
pub struct Builder {
    index: Index,
    /// Workloads that joined or left a service since the last build, in this order. Endpoints are made of them when
    /// they are applied: until then a hundred thousand of them would take memory, and leave holes in what comes after.
    pending: HashMap<NamespacedHostname, Vec<(Arc<str>, Change)>>,
    /// Services whose tables no longer fit the state.
    stale: BTreeSet<NamespacedHostname>,
    /// Which services name an endpoint themselves, whether its workload is there or not. The services that their
    /// workloads name are not in it.
    referring: HashMap<Arc<str>, BTreeSet<NamespacedHostname>>,
    interner: Interner,
    warnings: Vec<String>,
    rebuilds: usize,
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Joined,
    Left,
}

/// What became of a service's endpoints: removals are applied before insertions.
#[derive(Debug, Default)]
struct Pending {
    removed: BTreeSet<Arc<str>>,
    inserted: BTreeMap<Arc<str>, Endpoint>,
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
    pub fn insert_workload(&mut self, mut workload: Workload) {
        for ip in &mut workload.addresses {
            *ip = ip.to_canonical();
        }
        let before = self.index.workloads.get(&workload.uid);
        if before.is_none_or(|before| before.addresses != workload.addresses) {
            self.index.addresses_revision += 1;
        }
        self.forget_workload(&workload.uid.clone());
        if workload.trust_domain.is_empty() {
            self.warnings.push(format!(
                "workload {:?} has no trust domain, so no certificate can be issued for it or be accepted \
                 from it: set its trustDomain, e.g. to cluster.local",
                workload.uid
            ));
        }
        self.intern(&mut workload);
        let workload = Arc::new(workload);
        let index = &mut self.index;
        if workload.network_mode == NetworkMode::Standard {
            for ip in distinct_addresses(&workload) {
                push_nested(
                    &mut index.workloads_by_address,
                    &workload.network,
                    ip,
                    workload.clone(),
                );
            }
        }
        if !workload.hostname.is_empty() {
            push_nested(
                &mut index.workloads_by_hostname,
                &workload.namespace,
                workload.hostname.clone(),
                workload.clone(),
            );
        }
        if index.is_local(&workload) {
            index.next_policies_revision();
            push_nested(
                &mut index.own_workloads,
                &workload.namespace,
                workload.name.clone(),
                workload.clone(),
            );
        }
        for (key, _) in workload.services.iter() {
            let pending = self.pending.entry(key.clone()).or_default();
            pending.push((workload.uid.clone(), Change::Joined));
        }
        index.workloads.insert(workload.uid.clone(), workload.clone());
        self.mark_referring(&workload.uid);
    }

    /// Removes a resource by its name: a workload's uid, or a service's `namespace/hostname`.
    pub fn remove(&mut self, name: &str) {
        if self.forget_workload(name) {
            self.index.addresses_revision += 1;
            return;
        }
        match name.split_once('/') {
            None => self
                .warnings
                .push(format!("cannot remove {name:?}: no workload has this uid")),
            // Looks like the uid of a workload that was never there.
            Some((_, hostname)) if hostname.contains('/') => {}
            Some((namespace, hostname)) => {
                if !self.remove_service(&NamespacedHostname::new(namespace, hostname)) {
                    self.warnings
                        .push(format!("cannot remove service {name:?}: it is not there"));
                }
            }
        }
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
        // As control planes rely on: what the old health policy kept out does not come back by itself.
        let before = self
            .index
            .service(&key)
            .map(|old| old.endpoints.clone())
            .unwrap_or_default();
        let staged = self.index.staged.remove(&key).unwrap_or_default();
        let given = std::mem::take(&mut service.endpoints);
        // Nearly all of them stay, so that the old map is a start that costs nothing.
        let mut endpoints = before;
        let kept_out: Vec<_> = endpoints
            .values()
            .filter(|endpoint| !service.includes(endpoint))
            .map(|endpoint| endpoint.workload_uid.clone())
            .collect();
        for uid in &kept_out {
            endpoints.remove(uid);
        }
        for endpoint in staged.values().chain(given.values()) {
            if service.includes(endpoint) {
                endpoints.insert(endpoint.workload_uid.clone(), endpoint.clone());
            }
        }
        service.endpoints = endpoints;
        for uid in given.keys() {
            self.referring.entry(uid.clone()).or_default().insert(key.clone());
        }
        self.index.take_service(&key);
        self.index.place_service(&Arc::new(service));
        self.stale.insert(key);
    }

    /// Removes a service with all its endpoints; false if it was not there.
    pub fn remove_service(&mut self, key: &NamespacedHostname) -> bool {
        self.index.staged.remove(key);
        self.pending.remove(key);
        self.stale.remove(key);
        let Some(old) = self.index.take_service(key) else {
            return false;
        };
        self.unrefer(key, old.endpoints.keys());
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

    /// Applies the endpoint changes, rebuilds what they made stale and returns the state as of now.
    pub fn build(&mut self) -> Snapshot {
        while self.settle(usize::MAX) {}
        Snapshot {
            index: self.index.clone(),
        }
    }

    /// A part of what `build` has to do before it can return, for at most `services_max` services; true while more
    /// is left.
    pub fn settle(&mut self, services_max: usize) -> bool {
        let keys: Vec<_> = self.pending.keys().take(services_max).cloned().collect();
        let rest = services_max - keys.len();
        for key in keys {
            if let Some(changes) = self.pending.remove(&key) {
                let pending = self.index.last_words(&key, changes);
                self.apply(key, pending);
            }
        }
        if self.pending.is_empty() {
            // After a large response there is room for all services.
            self.pending.shrink_to_fit();
        }
        for _ in 0..rest {
            let Some(key) = self.stale.pop_first() else { break };
            let Some(service) = self.index.service(&key) else {
                continue;
            };
            let service = Service::clone(service);
            self.rebuild(service);
        }
        !(self.pending.is_empty() && self.stale.is_empty())
    }

    /// What was odd in the input since the last call, one sentence each.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Services that are missing although endpoints wait for them.
    pub fn staged_services(&self) -> usize {
        self.index.staged.len()
    }

    /// How often the tables of a service were built.
    pub fn rebuilds(&self) -> usize {
        self.rebuilds
    }

    fn apply(&mut self, key: NamespacedHostname, pending: Pending) {
        let Some(service) = self.index.service(&key) else {
            let staged = self.index.staged.get_or_insert_with(&key, TrieMap::new);
            for uid in &pending.removed {
                staged.remove(uid);
            }
            for (uid, endpoint) in pending.inserted {
                staged.insert(uid, endpoint);
            }
            if staged.is_empty() {
                self.index.staged.remove(&key);
            }
            return;
        };
        let mut service = Service::clone(service);
        for uid in &pending.removed {
            service.endpoints.remove(uid);
        }
        self.unrefer(&key, pending.removed.iter());
        for (uid, endpoint) in pending.inserted {
            if service.includes(&endpoint) {
                service.endpoints.insert(uid, endpoint);
            }
        }
        self.stale.remove(&key);
        self.rebuild(service);
    }

    /// The workloads are all there when this is called, so that tables are built once for a push.
    fn rebuild(&mut self, mut service: Service) {
        service.balance = Arc::new(Balance::build(&service, &self.index.workloads));
        self.rebuilds += 1;
        self.index.exchange_service(&Arc::new(service));
    }

    fn forget_workload(&mut self, uid: &str) -> bool {
        let Some(old) = self.index.workloads.remove(uid) else {
            return false;
        };
        let index = &mut self.index;
        let same = |workload: &Arc<Workload>| &*workload.uid == uid;
        if old.network_mode == NetworkMode::Standard {
            for ip in distinct_addresses(&old) {
                remove_nested(&mut index.workloads_by_address, &old.network, &ip, same);
            }
        }
        if !old.hostname.is_empty() {
            remove_nested(
                &mut index.workloads_by_hostname,
                &old.namespace,
                &old.hostname,
                same,
            );
        }
        if index.is_local(&old) {
            index.next_policies_revision();
            remove_nested(&mut index.own_workloads, &old.namespace, &old.name, same);
        }
        for (key, _) in old.services.iter() {
            let pending = self.pending.entry(key.clone()).or_default();
            pending.push((old.uid.clone(), Change::Left));
        }
        self.mark_referring(uid);
        true
    }

    fn mark_referring(&mut self, uid: &str) {
        self.stale
            .extend(self.referring.get(uid).into_iter().flatten().cloned());
    }

    fn unrefer<'a>(&mut self, key: &NamespacedHostname, uids: impl Iterator<Item = &'a Arc<str>>) {
        for uid in uids {
            if let Some(services) = self.referring.get_mut(uid) {
                services.remove(key);
                if services.is_empty() {
                    self.referring.remove(uid);
                }
            }
        }
    }

    /// All workloads of an identity share one copy.
    fn intern(&mut self, workload: &mut Workload) {
        if Arc::strong_count(&workload.accepted) > 1 {
            // As decoders have it from the interner.
            return;
        }
        let identity = &workload.identity;
        if *identity.trust_domain() != *workload.trust_domain
            || *identity.namespace() != *workload.namespace
            || *identity.service_account() != *workload.service_account
        {
            return;
        }
        let accepted = self.interner.identity(
            &workload.trust_domain,
            &workload.namespace,
            &workload.service_account,
        );
        workload.identity = accepted[0].clone();
        workload.accepted = accepted;
    }
}

impl Index {
    fn next_policies_revision(&mut self) -> u64 {
        self.policies_revision += 1;
        self.policies_revision
    }

    /// The last change of each workload counts; one that joined is there.
    fn last_words(&self, key: &NamespacedHostname, changes: Vec<(Arc<str>, Change)>) -> Pending {
        let mut pending = Pending::default();
        for (uid, change) in changes {
            match change {
                Change::Left => {
                    pending.inserted.remove(&uid);
                    pending.removed.insert(uid);
                }
                Change::Joined => {
                    let Some(endpoint) = self.endpoint(key, &uid) else {
                        continue;
                    };
                    pending.inserted.insert(uid, endpoint);
                }
            }
        }
        pending
    }

    /// A workload as an endpoint of a service that it names.
    fn endpoint(&self, key: &NamespacedHostname, uid: &str) -> Option<Endpoint> {
        let workload = self.workloads.get(uid)?;
        let (_, ports) = workload.services.iter().rev().find(|(it, _)| it == key)?;
        Some(Endpoint {
            workload_uid: workload.uid.clone(),
            ports: ports.clone(),
            status: workload.status,
        })
    }

    fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services
            .get(&key.hostname)?
            .iter()
            .find(|service| service.namespace == key.namespace)
    }

    fn is_local(&self, workload: &Workload) -> bool {
        self.locale
            .node
            .as_ref()
            .is_none_or(|node| *node == workload.site.node)
    }

    /// Adds a service to every view. By address there is one service per namespace: the latest.
    fn place_service(&mut self, service: &Arc<Service>) {
        push(&mut self.services, service.hostname.clone(), service.clone());
        for vip in &service.vips {
            let by_ip = self
                .services_by_vip
                .get_or_insert_with(&vip.network, TrieMap::new);
            let known = by_ip
                .get_mut(&vip.ip)
                .and_then(|list| list.iter_mut().find(|other| other.namespace == service.namespace));
            if let Some(slot) = known {
                *slot = service.clone();
            } else {
                push(by_ip, vip.ip, service.clone());
            }
        }
        for vip in &service.cidr_vips {
            let range = vip.cidr.trunc();
            *Arc::make_mut(&mut self.cidr_lengths)
                .entry(length_key(range))
                .or_default() += 1;
            push_nested(&mut self.services_by_cidr, &vip.network, range, service.clone());
        }
    }

    /// Puts a newer object of the same service where the older one is, in every view.
    fn exchange_service(&mut self, service: &Arc<Service>) {
        let exchange = |list: Option<&mut Few<Arc<Service>>>| {
            for slot in list.into_iter().flat_map(Few::iter_mut) {
                if is_same(slot, service) {
                    *slot = service.clone();
                }
            }
        };
        exchange(self.services.get_mut(&service.hostname));
        for vip in &service.vips {
            exchange(
                self.services_by_vip
                    .get_mut(&vip.network)
                    .and_then(|it| it.get_mut(&vip.ip)),
            );
        }
        for vip in &service.cidr_vips {
            let range = vip.cidr.trunc();
            exchange(
                self.services_by_cidr
                    .get_mut(&vip.network)
                    .and_then(|it| it.get_mut(&range)),
            );
        }
    }

    /// Takes a service out of every view.
    fn take_service(&mut self, key: &NamespacedHostname) -> Option<Arc<Service>> {
        let old = self.service(key)?.clone();
        let same = |other: &Arc<Service>| is_same(other, &old);
        remove_where(&mut self.services, &old.hostname, same);
        for vip in &old.vips {
            remove_nested(&mut self.services_by_vip, &vip.network, &vip.ip, same);
        }
        for vip in &old.cidr_vips {
            let range = vip.cidr.trunc();
            remove_nested(&mut self.services_by_cidr, &vip.network, &range, same);
            let length = length_key(range);
            let lengths = Arc::make_mut(&mut self.cidr_lengths);
            if let Some(count) = lengths.get_mut(&length) {
                *count -= 1;
                if *count == 0 {
                    lengths.remove(&length);
                }
            }
        }
        Some(old)
    }
}

fn is_same(a: &Service, b: &Service) -> bool {
    a.hostname == b.hostname && a.namespace == b.namespace
}

fn length_key(range: IpNet) -> (bool, u8) {
    (range.addr().is_ipv6(), range.prefix_len())
}

fn distinct_addresses(workload: &Workload) -> BTreeSet<IpAddr> {
    workload.addresses.iter().copied().collect()
}

/// The set a policy belongs to; selector-scoped ones are only named by their workloads.
fn policy_namespace(policy: &Policy) -> Option<Arc<str>> {
    match policy.scope {
        PolicyScope::Global => Some(Arc::default()),
        PolicyScope::Namespace => Some(policy.namespace.clone()),
        PolicyScope::WorkloadSelector => None,
    }
}

fn push<K, V>(map: &mut TrieMap<K, Few<V>>, key: K, value: V)
where
    K: Hash + Eq + Clone,
    V: Clone,
{
    match map.get_mut(&key) {
        Some(list) => list.push(value),
        None => drop(map.insert(key, Few::one(value))),
    }
}

fn push_nested<K, V>(map: &mut ByNetwork<K, Few<V>>, outer: &Arc<str>, inner: K, value: V)
where
    K: Hash + Eq + Clone,
    V: Clone,
{
    push(map.get_or_insert_with(outer, TrieMap::new), inner, value);
}

fn remove_where<K, V>(map: &mut TrieMap<K, Few<V>>, key: &K, condition: impl Fn(&V) -> bool)
where
    K: Hash + Eq + Clone,
    V: Clone,
{
    if let Some(list) = map.get_mut(key) {
        match list.without(condition) {
            Some(left) => *list = left,
            None => drop(map.remove(key)),
        }
    }
}

fn remove_nested<K, V>(
    map: &mut ByNetwork<K, Few<V>>,
    outer: &Arc<str>,
    inner: &K,
    condition: impl Fn(&V) -> bool,
) where
    K: Hash + Eq + Clone,
    V: Clone,
{
    if let Some(inner_map) = map.get_mut(outer) {
        remove_where(inner_map, inner, condition);
        if inner_map.is_empty() {
            map.remove(outer);
        }
    }
}

#[cfg(test)]
mod tests;
