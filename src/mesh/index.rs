//! All lookups of the mesh, and what they lead to: read by a snapshot's decisions, changed by the builder alone.
//!
//! Invariants: what leads to a workload or a service leads to its one place, and every lookup that should lead to it
//! does; no empty lists remain.

use std::borrow::{Borrow, Cow};
use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Locale;
use super::address::{NamespacedHostname, without_case};
use super::backing::{Backed, Workloads};
use super::few::Few;
use super::places::{Place, Places};
use super::policy::Policy;
use super::trie::TrieMap;
use super::workload::{Health, NetworkMode, Workload};
use crate::identity::Identity;

pub(super) type ByNetwork<K, V> = TrieMap<Arc<str>, TrieMap<K, V>>;

/// All lookups of a snapshot, in persistent maps: the builder's copy and a snapshot's share their structure. They lead
/// to places, so that a change of what is there leaves them as they are.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    pub locale: Locale,
    pub workloads: Workloads,
    /// In the order of insertion.
    pub workloads_by_address: ByNetwork<IpAddr, Few<Place<Workload>>>,
    /// How many owners addresses have beyond their first ones.
    pub owners_beyond_first: usize,
    /// Namespace, then host name.
    pub workloads_by_hostname: ByNetwork<Arc<str>, Few<Place<Workload>>>,
    /// Namespace, then name; only those of this node.
    pub own_workloads: ByNetwork<Arc<str>, Few<Place<Workload>>>,
    pub services: Places<Backed>,
    /// By host name without its case; one per namespace and spelling.
    pub services_by_hostname: TrieMap<Arc<str>, Few<Place<Backed>>>,
    /// Those of one namespace side by side, the latest last: it is the one that has the address.
    pub services_by_vip: ByNetwork<IpAddr, Few<Place<Backed>>>,
    /// By masked range. One probe per prefix length in use replaces a walk over the ranges.
    pub services_by_cidr: ByNetwork<IpNet, Few<Place<Backed>>>,
    /// How many ranges there are of each prefix length, IPv4 and IPv6 apart.
    pub cidr_lengths: Arc<BTreeMap<(bool, u8), usize>>,
    pub policies: TrieMap<Arc<str>, Arc<Policy>>,
    /// The global ones are under the empty namespace.
    pub policies_by_namespace: TrieMap<Arc<str>, PolicyList>,
    /// Grows when policies change, or the workloads of this node.
    pub policies_revision: u64,
    /// Grows when an address may have come to belong to another workload.
    pub addresses_revision: u64,
    /// Workloads whose service is not there, whatever their state.
    pub staged: TrieMap<NamespacedHostname, TrieMap<Place<Workload>, ()>>,
    pub nobody: Arc<[Identity]>,
}

/// The policies about all workloads of a namespace.
#[derive(Debug, Clone, Default)]
pub(super) struct PolicyList {
    /// Of the index, when the list changed last.
    pub revision: u64,
    /// Sorted by key, at least one.
    pub policies: Vec<Arc<Policy>>,
}

impl Index {
    pub fn workloads_at<'a>(
        &'a self,
        places: &'a [Place<Workload>],
    ) -> impl DoubleEndedIterator<Item = &'a Arc<Workload>> {
        places
            .iter()
            .filter_map(|place| self.workloads.by_place.get(*place))
    }

    pub fn services_at<'a>(
        &'a self,
        places: &'a [Place<Backed>],
    ) -> impl DoubleEndedIterator<Item = &'a Arc<Backed>> {
        places.iter().filter_map(|place| self.services.get(*place))
    }

    /// Of all namespaces, however they spell it.
    fn services_named(&self, hostname: &str) -> Option<&Few<Place<Backed>>> {
        self.services_by_hostname.get(&*without_case(hostname))
    }

    /// By its key, which is spelled as it is: it is a name that the control plane has given.
    pub fn service_place(&self, namespace: &str, hostname: &str) -> Option<Place<Backed>> {
        let places = self.services_named(hostname)?;
        let is_it = |place: &Place<Backed>| {
            self.services.get(*place).is_some_and(|backed| {
                let service = &backed.service;
                *service.namespace == *namespace && *service.hostname == *hostname
            })
        };
        places.iter().copied().find(is_it)
    }

    pub fn backed(&self, namespace: &str, hostname: &str) -> Option<&Arc<Backed>> {
        self.services.get(self.service_place(namespace, hostname)?)
    }

    /// The service that a client means by a host name: one that is spelled so goes before others.
    pub fn preferred_by_hostname(
        &self,
        hostname: &str,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Backed>> {
        let places = self.services_named(hostname)?;
        let named = || self.services_at(places);
        let is_spelled_so = |backed: &&Arc<Backed>| *backed.service.hostname == *hostname;
        preferred(|| named().filter(is_spelled_so), client_namespace)
            .or_else(|| preferred(named, client_namespace))
    }

    /// The service that a client means by an address, of those that have it.
    pub fn preferred_by_vip(
        &self,
        places: &[Place<Backed>],
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Backed>> {
        let namespace_at = |at: usize| Some(&self.services.get(*places.get(at)?)?.service.namespace);
        let latest = || {
            let all = places.iter().enumerate();
            let latest = all.filter(move |(at, _)| namespace_at(*at) != namespace_at(at + 1));
            latest.filter_map(|(_, place)| self.services.get(*place))
        };
        preferred(latest, client_namespace)
    }

    pub fn next_policies_revision(&mut self) -> u64 {
        self.policies_revision += 1;
        self.policies_revision
    }

    pub fn is_local(&self, workload: &Workload) -> bool {
        self.locale
            .node
            .as_ref()
            .is_none_or(|node| *node == workload.site.node)
    }

    /// Whether every lookup that leads to the one leads to the other, and is right to keep its order: those for whom
    /// the order counts are placed anew.
    pub fn is_found_alike(&self, before: &Workload, after: &Workload) -> bool {
        before.is_reached_as(after)
            && before.hostname.is_empty()
            && after.hostname.is_empty()
            && !self.is_local(before)
            && (Arc::ptr_eq(&before.site, &after.site) || !self.is_local(after))
            && (self.owners_beyond_first == 0
                || self
                    .owners_of(after)
                    .all(|owners| owners.is_none_or(|owners| owners.len() == 1)))
    }

    /// Whether an address of a workload that is not there any more belongs to somebody.
    pub fn is_owned(&self, workload: &Workload) -> bool {
        self.owners_of(workload).any(|owners| owners.is_some())
    }

    pub fn owners_of<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = Option<&'a Few<Place<Workload>>>> {
        let by_ip = self.workloads_by_address.get(&workload.network);
        workload.addresses.iter().map(move |ip| by_ip?.get(ip))
    }

    /// Adds a workload to every view.
    pub fn place_workload(&mut self, place: Place<Workload>, workload: &Arc<Workload>) {
        if workload.network_mode == NetworkMode::Standard {
            for ip in distinct_addresses(workload) {
                let is_first = push_nested(&mut self.workloads_by_address, &workload.network, ip, place);
                self.owners_beyond_first += usize::from(!is_first);
            }
        }
        if !workload.hostname.is_empty() {
            let hostname = workload.hostname.clone();
            push_nested(
                &mut self.workloads_by_hostname,
                &workload.namespace,
                hostname,
                place,
            );
        }
        if self.is_local(workload) {
            self.next_policies_revision();
            let name = Arc::from(&*workload.name);
            push_nested(&mut self.own_workloads, &workload.namespace, name, place);
        }
        self.workloads.by_place.set(place, workload.clone());
    }

    /// Takes a workload out of every view.
    pub fn take_workload(&mut self, place: Place<Workload>) -> Option<Arc<Workload>> {
        let old = self.workloads.by_place.take(place)?;
        if old.network_mode == NetworkMode::Standard {
            for ip in distinct_addresses(&old) {
                let was_last = remove_nested(&mut self.workloads_by_address, &old.network, &ip, place);
                self.owners_beyond_first -= usize::from(!was_last);
            }
        }
        if !old.hostname.is_empty() {
            remove_nested(
                &mut self.workloads_by_hostname,
                &old.namespace,
                &old.hostname,
                place,
            );
        }
        if self.is_local(&old) {
            self.next_policies_revision();
            remove_nested(&mut self.own_workloads, &old.namespace, &*old.name, place);
        }
        Some(old)
    }

    /// Makes a workload an endpoint, or none if the health policy keeps it out.
    pub fn admit(&self, backed: &mut Backed, place: Place<Workload>) {
        if let Some(workload) = self.workloads.by_place.get(place) {
            self.admit_as(backed, place, workload.status);
        }
    }

    /// The same of one that was last known in this state: of many workloads, none has to be looked at. It may have gone,
    /// or ceased to name the service: then that change follows.
    pub fn admit_as(&self, backed: &mut Backed, place: Place<Workload>, status: Health) {
        if backed.service.includes(status) {
            if !backed.given.is_empty()
                && let Some(workload) = self.workloads.by_place.get(place)
            {
                backed.given.remove(&workload.uid);
            }
            if !backed.members.contains_key(&place) {
                backed.members.insert(place, ());
            }
        } else {
            backed.members.remove(&place);
        }
    }

    /// Takes out whom the health policy does not let in, and gives those who were members.
    pub fn evict(&self, backed: &mut Backed) -> Vec<Place<Workload>> {
        let is_out = |place: &Place<Workload>| {
            let workload = self.workloads.by_place.get(*place);
            workload.is_some_and(|workload| !backed.service.includes(workload.status))
        };
        let members: Vec<_> = backed.members.keys().copied().filter(is_out).collect();
        for place in &members {
            backed.members.remove(place);
        }
        let given = backed.given.values();
        let given = given.filter(|endpoint| !backed.service.includes(endpoint.status));
        let given: Vec<_> = given.map(|endpoint| endpoint.workload_uid.clone()).collect();
        for uid in &given {
            backed.given.remove(uid);
        }
        members
    }

    /// Adds a service to every view. By address a namespace shows its latest one, and again the one before when that goes.
    pub fn place_service(&mut self, place: Place<Backed>, backed: Arc<Backed>) {
        let service = backed.service.clone();
        push(&mut self.services_by_hostname, key_of(&service.hostname), place);
        for vip in &service.vips {
            let by_ip = self
                .services_by_vip
                .get_or_insert_with(&vip.network, TrieMap::new);
            let services = &self.services;
            let is_namesake = |other: &Place<Backed>| {
                let other = services.get(*other);
                other.is_some_and(|other| other.service.namespace == service.namespace)
            };
            let known = by_ip.get_mut(&vip.ip);
            let behind = known.and_then(|list| Some((list.iter().rposition(is_namesake)? + 1, list)));
            if let Some((at, list)) = behind {
                list.insert(at, place);
            } else {
                push(by_ip, vip.ip, place);
            }
        }
        for vip in &service.cidr_vips {
            let range = vip.cidr.trunc();
            *Arc::make_mut(&mut self.cidr_lengths)
                .entry(length_key(range))
                .or_default() += 1;
            push_nested(&mut self.services_by_cidr, &vip.network, range, place);
        }
        self.services.set(place, backed);
    }

    /// Takes a service out of every view.
    pub fn take_service(&mut self, place: Place<Backed>) -> Option<Arc<Backed>> {
        let old = self.services.take(place)?;
        let service = &old.service;
        remove_from(&mut self.services_by_hostname, &key_of(&service.hostname), place);
        for vip in &service.vips {
            remove_nested(&mut self.services_by_vip, &vip.network, &vip.ip, place);
        }
        for vip in &service.cidr_vips {
            let range = vip.cidr.trunc();
            remove_nested(&mut self.services_by_cidr, &vip.network, &range, place);
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

/// Of those that the client can see: one of its namespace, else the last canonical one, else the first.
fn preferred<'a, Candidates>(
    candidates: impl Fn() -> Candidates,
    client_namespace: Option<&str>,
) -> Option<&'a Arc<Backed>>
where
    Candidates: DoubleEndedIterator<Item = &'a Arc<Backed>>,
{
    let visible = || candidates().filter(|backed| backed.service.is_visible_to(client_namespace));
    visible()
        .find(|backed| client_namespace == Some(&*backed.service.namespace))
        .or_else(|| visible().rfind(|backed| backed.service.canonical))
        .or_else(|| visible().next())
}

/// The name itself where it has no capitals, so that there is one copy of it.
fn key_of(hostname: &Arc<str>) -> Arc<str> {
    match without_case(hostname) {
        Cow::Borrowed(_) => hostname.clone(),
        Cow::Owned(key) => key.into(),
    }
}

fn length_key(range: IpNet) -> (bool, u8) {
    (range.addr().is_ipv6(), range.prefix_len())
}

/// Each once, in the order in which they were given.
fn distinct_addresses(workload: &Workload) -> impl Iterator<Item = IpAddr> {
    let addresses = &workload.addresses;
    let distinct = addresses.iter().enumerate();
    distinct
        .filter(|(at, ip)| !addresses[..*at].contains(ip))
        .map(|(_, ip)| *ip)
}

/// True for the first place of a key.
fn push<K, T>(map: &mut TrieMap<K, Few<Place<T>>>, key: K, place: Place<T>) -> bool
where
    K: Hash + Eq + Clone,
{
    let is_first = map.insert_new(&key, || Few::one(place)).is_none();
    if !is_first && let Some(list) = map.get_mut(&key) {
        list.push(place);
    }
    is_first
}

fn push_nested<K, T>(
    map: &mut ByNetwork<K, Few<Place<T>>>,
    outer: &Arc<str>,
    inner: K,
    place: Place<T>,
) -> bool
where
    K: Hash + Eq + Clone,
{
    push(map.get_or_insert_with(outer, TrieMap::new), inner, place)
}

/// True if nothing is left of the key's.
fn remove_from<K, Q, T>(map: &mut TrieMap<K, Few<Place<T>>>, key: &Q, place: Place<T>) -> bool
where
    K: Hash + Eq + Clone + Borrow<Q>,
    Q: Hash + Eq + ?Sized,
{
    let Some(list) = map.get_mut(key) else {
        return true;
    };
    let left = list.without(|other| *other == place);
    let is_last = left.is_none();
    match left {
        Some(left) => *list = left,
        None => drop(map.remove(key)),
    }
    is_last
}

fn remove_nested<K, Q, T>(
    map: &mut ByNetwork<K, Few<Place<T>>>,
    outer: &Arc<str>,
    inner: &Q,
    place: Place<T>,
) -> bool
where
    K: Hash + Eq + Clone + Borrow<Q>,
    Q: Hash + Eq + ?Sized,
{
    let Some(inner_map) = map.get_mut(outer) else {
        return true;
    };
    let is_last = remove_from(inner_map, inner, place);
    if inner_map.is_empty() {
        map.remove(outer);
    }
    is_last
}
