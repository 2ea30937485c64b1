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
mod balance;
mod builder;
mod few;
mod gateway;
mod inbound;
mod interner;
mod local;
mod missing;
mod plan;
mod policy;
mod route;
mod service;
mod trie;
mod workload;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

pub use address::{
    CidrVip, GatewayAddress, GatewayTarget, InvalidName, NamespacedHostname, NetworkAddress, PortMap,
};
pub use authorize::{ConnectionFacts, Denial, Matched, Permit, PermitReason, PolicyEvent, PolicySet};
pub use builder::Builder;
pub use inbound::{Delivery, InboundError, InboundTarget, Preamble};
pub use interner::{Interner, Memberships};
pub use local::{LocalError, LocalState};
pub use plan::{Decision, DoubleHop, Hop, Plan, TunnelAuthority, Unresolved, Way};
pub use policy::{Clause, Match, Policy, PolicyAction, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
pub use route::RouteError;
pub use service::{
    BalanceMode, Endpoint, HealthPolicy, IpFamilies, LoadBalancer, Scope, Service, Visibility,
    WeightedWaypoint,
};
pub use trie::TrieMap;
pub use workload::{
    ApplicationProtocol, ApplicationTunnel, Health, Locality, NetworkMode, Site, TunnelProtocol, Workload,
};

use crate::identity::Identity;
use few::Few;

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

type ByNetwork<K, V> = TrieMap<Arc<str>, TrieMap<K, V>>;

/// All lookups of a snapshot, in persistent maps: the builder's copy and a snapshot's share their structure.
#[derive(Debug, Clone, Default)]
struct Index {
    locale: Locale,
    workloads: TrieMap<Arc<str>, Arc<Workload>>,
    /// In the order of insertion.
    workloads_by_address: ByNetwork<IpAddr, Few<Arc<Workload>>>,
    /// Namespace, then host name.
    workloads_by_hostname: ByNetwork<Arc<str>, Few<Arc<Workload>>>,
    /// Namespace, then name; only those of this node.
    own_workloads: ByNetwork<Arc<str>, Few<Arc<Workload>>>,
    /// By host name, one per namespace.
    services: TrieMap<Arc<str>, Few<Arc<Service>>>,
    /// One per namespace.
    services_by_vip: ByNetwork<IpAddr, Few<Arc<Service>>>,
    /// By masked range. One probe per prefix length in use replaces a walk over the ranges.
    services_by_cidr: ByNetwork<IpNet, Few<Arc<Service>>>,
    /// How many ranges there are of each prefix length, IPv4 and IPv6 apart.
    cidr_lengths: Arc<BTreeMap<(bool, u8), usize>>,
    policies: TrieMap<Arc<str>, Arc<Policy>>,
    /// The global ones are under the empty namespace.
    policies_by_namespace: TrieMap<Arc<str>, PolicyList>,
    /// Grows when policies change, or the workloads of this node.
    policies_revision: u64,
    /// Grows when a workload gets or loses an address.
    addresses_revision: u64,
    /// Endpoints whose service is not there, unfiltered, by workload uid.
    staged: TrieMap<NamespacedHostname, TrieMap<Arc<str>, Endpoint>>,
    nobody: Arc<[Identity]>,
}

/// The policies about all workloads of a namespace.
#[derive(Debug, Clone, Default)]
struct PolicyList {
    /// Of the index, when the list changed last.
    revision: u64,
    /// Sorted by key, at least one.
    policies: Vec<Arc<Policy>>,
}

impl Snapshot {
    /// The state in which nothing is known.
    pub fn empty(locale: Locale) -> Self {
        Builder::new(locale).build()
    }

    /// The workload of a pod on this node, by what the CNI agent says about it.
    pub fn own_workload(&self, name: &str, namespace: &str, service_account: &str) -> Option<&Arc<Workload>> {
        let named = self.index.own_workloads.get(namespace)?.get(name)?;
        named
            .iter()
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
        owners.iter().max_by_key(|workload| workload.address_rank())
    }

    /// Whether an address of this node's network belongs to somebody, and not, or no longer, to this workload.
    pub fn is_taken_over(&self, ip: IpAddr, uid: &str) -> bool {
        let ip = ip.to_canonical();
        let owner = self.workload(uid);
        !owner.is_some_and(|owner| owner.addresses.contains(&ip))
            && self.workload_by_address(&self.locale().network, ip).is_some()
    }

    /// Exactly this service; visibility does not matter here.
    pub fn service(&self, namespace: &str, hostname: &str) -> Option<&Arc<Service>> {
        self.index
            .services
            .get(hostname)?
            .iter()
            .find(|service| &*service.namespace == namespace)
    }

    /// The service a client means by an address: an exact address goes before a range.
    pub fn service_by_address(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        let ip = ip.to_canonical();
        let exact = self
            .index
            .services_by_vip
            .get(network)
            .and_then(|by_ip| by_ip.get(&ip));
        exact
            .and_then(|services| preferred(services, client_namespace))
            .or_else(|| self.service_by_range(network, ip, client_namespace))
    }

    /// The service a client means by a host name.
    pub fn service_by_hostname(
        &self,
        hostname: &str,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        preferred(self.index.services.get(hostname)?, client_namespace)
    }

    /// The services a workload is an endpoint of, in its own order.
    pub fn services_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Service>> {
        workload
            .services
            .iter()
            .filter_map(|(key, _)| self.service(&key.namespace, &key.hostname))
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
        self.index.workloads.values()
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.index.services.values().flat_map(|list| list.iter())
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

    /// Endpoints that wait for their service, by workload uid.
    pub fn staged(&self) -> impl Iterator<Item = (&NamespacedHostname, &TrieMap<Arc<str>, Endpoint>)> {
        self.index.staged.iter()
    }

    fn service_by_range(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        let ranges = self.index.services_by_cidr.get(network)?;
        let lengths = self
            .index
            .cidr_lengths
            .range((ip.is_ipv6(), 0)..=(ip.is_ipv6(), u8::MAX));
        let matching = lengths.flat_map(|(&(_, length), _)| {
            let range = IpNet::new(ip, length).expect("invariant: lengths come from ranges of this family");
            let services = ranges
                .get(&range.trunc())
                .into_iter()
                .flat_map(|list| list.iter());
            services.map(move |service| {
                let in_namespace = client_namespace == Some(&*service.namespace);
                ((in_namespace, length, service.canonical), service)
            })
        });
        // The first of equals wins; equals are of one length, and so in one list.
        matching
            .filter(|(_, service)| service.is_visible_to(client_namespace))
            .reduce(|best, next| if next.0 > best.0 { next } else { best })
            .map(|(_, service)| service)
    }
}

/// In the client's namespace, else the last canonical one, else the first.
fn preferred<'a>(services: &'a [Arc<Service>], client_namespace: Option<&str>) -> Option<&'a Arc<Service>> {
    let visible = || {
        services
            .iter()
            .filter(|service| service.is_visible_to(client_namespace))
    };
    visible()
        .find(|service| client_namespace == Some(&*service.namespace))
        .or_else(|| visible().rfind(|service| service.canonical))
        .or_else(|| visible().next())
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
