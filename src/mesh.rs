//! Layer `mesh`: what is known about the mesh, and every decision made from it.
//!
//! The control thread changes the state through a [`Builder`]; each build yields a [`Snapshot`], which the
//! workers read. A snapshot is immutable, cheap to clone and consistent: all of its lookups agree with each
//! other. The layer is pure: no socket, clock, environment or source of randomness; they come in as arguments.
//!
//! The rules are those of ztunnel: lookups are keyed by network, a service is preferred within the client's
//! own namespace, and what is unknown is passed through.

mod address;
mod authorize;
mod backing;
mod balance;
mod builder;
mod few;
mod fingerprint;
mod gateway;
mod inbound;
mod index;
mod interner;
mod local;
mod missing;
mod places;
mod plan;
mod policy;
mod route;
mod service;
mod steady;
mod tail;
mod trie;
mod workload;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

pub use address::{
    CidrVip, GatewayAddress, GatewayTarget, InvalidName, NamespacedHostname, NetworkAddress, PortMap,
    canonical_range,
};
pub use authorize::{ConnectionFacts, Denial, Matched, Permit, PermitReason, PolicyEvent, PolicySet};
pub use builder::Builder;
pub use few::{Few, Gathered};
pub use fingerprint::{Fingerprint, Fingerprints};
pub use inbound::{Delivery, InboundError, Preamble};
pub use interner::{Interner, Memberships};
pub use local::{LocalError, LocalState};
pub use plan::{Decision, DoubleHop, Hop, Plan, TunnelAuthority, Unresolved, Way};
pub use policy::{Clause, Match, Policy, PolicyAction, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
pub use route::RouteError;
pub use service::{
    BalanceMode, Endpoint, HealthPolicy, IpFamilies, LoadBalancer, Scope, Service, Visibility,
    WeightedWaypoint,
};
pub use steady::SteadyMap;
pub use tail::Tail;
pub use trie::TrieMap;
pub use workload::{
    ApplicationProtocol, ApplicationTunnel, Health, Locality, NetworkMode, Role, Site, TunnelProtocol,
    Workload,
};

use backing::Backed;
use index::Index;

/// The port on which every node proxy takes HBONE within a pod.
pub const HBONE_PORT: u16 = 15008;

/// Where this process stands in the mesh.
#[derive(Debug, Clone, Default)]
pub struct Locale {
    /// `NETWORK`: the network whose addresses the node sees.
    pub network: Arc<str>,
    /// `NODE_NAME`; without it every workload counts as local.
    pub node: Option<Arc<str>>,
    /// The ports on which this process captures; it never connects to them on its own.
    pub captured_ports: Arc<[u16]>,
}

/// The state of the mesh at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    index: Index,
}

impl Snapshot {
    /// The state in which nothing is known.
    pub fn empty(locale: Locale) -> Self {
        Builder::new(locale).build()
    }

    /// The workload of a pod on this node, by what the CNI agent says about it.
    pub fn own_workload(&self, name: &str, namespace: &str, service_account: &str) -> Option<&Arc<Workload>> {
        let named = self.index.own_workloads.get(namespace)?.get(name)?;
        self.index
            .workloads_at(named)
            .rev()
            .find(|workload| &*workload.service_account == service_account)
    }

    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.index.workloads.get(uid)
    }

    /// The best of those that own the address: pods before others, HBONE before plain, the latest last.
    pub fn workload_by_address(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        let owners = self
            .index
            .workloads_by_address
            .get(network)?
            .get(&ip.to_canonical())?;
        self.index
            .workloads_at(owners)
            .max_by_key(|workload| workload.address_rank())
    }

    /// Whether an address of this node's network belongs to somebody, and not, or no longer, to this workload. One that
    /// has only a host name shares the addresses to which that leads with whoever owns them.
    pub fn is_taken_over(&self, ip: IpAddr, uid: &str) -> bool {
        let ip = ip.to_canonical();
        let owner = self.workload(uid);
        let has_name_only = |owner: &Workload| owner.addresses.is_empty() && !owner.hostname.is_empty();
        !owner.is_some_and(|owner| owner.addresses.contains(&ip) || has_name_only(owner))
            && self.workload_by_address(&self.locale().network, ip).is_some()
    }

    /// Exactly this service; visibility does not matter here.
    pub fn service(&self, namespace: &str, hostname: &str) -> Option<&Arc<Service>> {
        self.index
            .backed(namespace, hostname)
            .map(|backed| &backed.service)
    }

    /// The service a client means by an address: an exact address goes before a range.
    pub fn service_by_address(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        self.backed_by_address(network, ip, client_namespace)
            .map(|backed| &backed.service)
    }

    /// The service a client means by a host name, whatever its case: one that is spelled so goes before others.
    pub fn service_by_hostname(
        &self,
        hostname: &str,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        self.backed_by_hostname(hostname, client_namespace)
            .map(|backed| &backed.service)
    }

    /// The services a workload is an endpoint of, in its own order.
    pub fn services_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Service>> {
        self.backed_of(workload).map(|backed| &backed.service)
    }

    /// The endpoints of a service, as far as its health policy lets them in.
    pub fn endpoints(&self, service: &Service) -> impl Iterator<Item = Endpoint> {
        let backed = self.index.backed(&service.namespace, &service.hostname);
        backed
            .into_iter()
            .flat_map(|backed| backed.endpoints(&self.index.workloads))
    }

    /// True for the ports this process captures, to which it must never deliver.
    pub fn is_captured_port(&self, port: u16) -> bool {
        self.index.locale.captured_ports.contains(&port)
    }

    /// True when connecting to `target` from within a pod would come straight back to this process.
    pub fn is_recursive(&self, target: SocketAddr) -> bool {
        target.ip().to_canonical().is_loopback() && self.is_captured_port(target.port())
    }

    pub fn locale(&self) -> &Locale {
        &self.index.locale
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.index.workloads.by_place.values()
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.index.services.values().map(|backed| &backed.service)
    }

    /// Different whenever an address may have come to belong to another workload, and never smaller later.
    pub fn addresses_revision(&self) -> u64 {
        self.index.addresses_revision
    }

    /// Different whenever the policies about some workload of this node may have changed, and never smaller later.
    pub fn policies_revision(&self) -> u64 {
        self.index.policies_revision
    }

    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.index.policies.values()
    }

    /// Endpoints that wait for their service.
    pub fn staged(&self) -> impl Iterator<Item = (&NamespacedHostname, Vec<Endpoint>)> {
        let staged = self.index.staged.iter();
        staged.map(|(key, places)| {
            let waiting = places.keys().filter_map(|place| {
                let workload = self.index.workloads.by_place.get(*place)?;
                Some(Endpoint {
                    workload_uid: workload.uid.clone(),
                    ports: workload.ports_in(&key.namespace, &key.hostname)?.clone(),
                    status: workload.status,
                })
            });
            (key, waiting.collect())
        })
    }

    fn backed_by_address(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Backed>> {
        let ip = ip.to_canonical();
        let exact = self
            .index
            .services_by_vip
            .get(network)
            .and_then(|by_ip| by_ip.get(&ip));
        exact
            .and_then(|places| self.index.preferred_by_vip(places, client_namespace))
            .or_else(|| self.backed_by_range(network, ip, client_namespace))
    }

    fn backed_by_hostname(&self, hostname: &str, client_namespace: Option<&str>) -> Option<&Arc<Backed>> {
        self.index.preferred_by_hostname(hostname, client_namespace)
    }

    fn backed_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Backed>> {
        workload
            .services
            .iter()
            .filter_map(|(key, _)| self.index.backed(&key.namespace, &key.hostname))
    }

    fn backed_by_range(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Backed>> {
        let ranges = self.index.services_by_cidr.get(network)?;
        let lengths = self
            .index
            .cidr_lengths
            .range((ip.is_ipv6(), 0)..=(ip.is_ipv6(), u8::MAX));
        let matching = lengths.flat_map(|(&(_, length), _)| {
            let range = IpNet::new(ip, length).expect("invariant: lengths come from ranges of this family");
            let places = ranges.get(&range.trunc()).map_or(&[][..], |places| places);
            self.index.services_at(places).map(move |backed| {
                let service = &backed.service;
                let in_namespace = client_namespace == Some(&*service.namespace);
                ((in_namespace, length, service.canonical), backed)
            })
        });
        // The first of equals wins; equals are of one length, and so in one list.
        matching
            .filter(|(_, backed)| backed.service.is_visible_to(client_namespace))
            .reduce(|best, next| if next.0 > best.0 { next } else { best })
            .map(|(_, backed)| backed)
    }
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
