//! A workload: something with an identity that sends or receives connections, usually a pod.
//!
//! Plain values behind `Arc`, made by the builder's callers, never changed once inside a snapshot.

use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::address::{GatewayAddress, NamespacedHostname, PortMap};
use super::few::Few;
use super::interner::Memberships;
use super::tail::Tail;
use crate::identity::Identity;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The primary key, e.g. `cluster1//Pod/shop/cart-0`.
    pub uid: Arc<str>,
    pub name: Tail,
    pub addresses: Few<IpAddr>,
    /// A name to resolve when there is no address; empty when there is none.
    pub hostname: Arc<str>,
    pub status: Health,
    /// Weight among the endpoints of a service; 0 is never chosen.
    pub capacity: u32,
    pub site: Arc<Site>,
    pub role: Arc<Role>,
}

/// What a workload has in common with the other replicas of its deployment, so that there is one copy of it. A workload's
/// role reads as if it were its own, and what is changed is changed for this workload alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    pub namespace: Arc<str>,
    pub trust_domain: Arc<str>,
    pub service_account: Arc<str>,
    /// Made of the three fields above; the builder replaces it by the one copy all workloads of it share.
    pub identity: Identity,
    /// `identity` as the set a peer is checked against. Kept here so that no connection allocates one.
    pub accepted: Arc<[Identity]>,
    pub network: Arc<str>,
    pub protocol: TunnelProtocol,
    pub network_mode: NetworkMode,
    pub waypoint: Option<Box<GatewayAddress>>,
    pub network_gateway: Option<Box<GatewayAddress>>,
    /// The services its workloads are endpoints of, with their own port mapping.
    pub services: Memberships,
    /// Names of the selector-scoped policies, `namespace/name`.
    pub authorization_policies: Arc<[Arc<str>]>,
    pub workload_name: Arc<str>,
    pub workload_type: Arc<str>,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub native_tunnel: bool,
    pub application_tunnel: Option<ApplicationTunnel>,
}

// With the counts in front of it 120 bytes, of which the allocator makes 128.
const _: () = assert!(size_of::<Workload>() == 104);

/// How a workload is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub enum TunnelProtocol {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "HBONE")]
    Hbone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub enum NetworkMode {
    #[default]
    Standard,
    /// Shares its node's addresses, so no address leads to it.
    HostNetwork,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub enum Health {
    #[default]
    Healthy,
    Unhealthy,
}

/// What a workload that ends tunnels itself wants in front of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApplicationTunnel {
    pub protocol: ApplicationProtocol,
    /// Where it listens, when that is not the port of the request.
    pub port: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum ApplicationProtocol {
    #[serde(rename = "NONE")]
    None,
    #[serde(rename = "PROXY")]
    Proxy,
}

/// Where a workload runs: what it has in common with the others of its node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Site {
    pub node: Arc<str>,
    pub cluster_id: Arc<str>,
    pub locality: Locality,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}

impl Deref for Workload {
    type Target = Role;

    fn deref(&self) -> &Role {
        &self.role
    }
}

impl DerefMut for Workload {
    fn deref_mut(&mut self) -> &mut Role {
        Arc::make_mut(&mut self.role)
    }
}

impl Role {
    /// With everything but the identity left at the defaults.
    pub fn new(identity: Identity) -> Self {
        Self {
            namespace: identity.namespace().into(),
            trust_domain: identity.trust_domain().into(),
            service_account: identity.service_account().into(),
            accepted: Arc::new([identity.clone()]),
            identity,
            network: Arc::default(),
            protocol: TunnelProtocol::default(),
            network_mode: NetworkMode::default(),
            waypoint: None,
            network_gateway: None,
            services: Memberships::default(),
            authorization_policies: Arc::default(),
            workload_name: Arc::default(),
            workload_type: Arc::default(),
            canonical_name: Arc::default(),
            canonical_revision: Arc::default(),
            native_tunnel: false,
            application_tunnel: None,
        }
    }
}

impl Workload {
    /// A workload with everything but its names and identity left at the defaults.
    pub fn new(uid: &str, name: &str, identity: Identity) -> Self {
        let uid = uid.into();
        Self {
            name: Tail::of(&uid, name),
            uid,
            addresses: Few::default(),
            hostname: Arc::default(),
            status: Health::default(),
            capacity: 1,
            site: Arc::default(),
            role: Arc::new(Role::new(identity)),
        }
    }

    /// On another node.
    pub fn on_node(mut self, node: &str) -> Self {
        Arc::make_mut(&mut self.site).node = node.into();
        self
    }

    /// Makes it an endpoint of one more service.
    pub fn join(&mut self, service: NamespacedHostname, ports: PortMap) {
        let more = [(service, ports)];
        self.services = self.services.iter().cloned().chain(more).collect();
    }

    /// Its own port mapping in a service that it names. Named twice, the last one counts.
    pub(super) fn ports_in(&self, namespace: &str, hostname: &str) -> Option<&PortMap> {
        let names = |key: &NamespacedHostname| *key.hostname == *hostname && *key.namespace == *namespace;
        let (_, ports) = self.services.iter().rev().find(|(key, _)| names(key))?;
        Some(ports)
    }

    /// Who wins when several workloads own one address: pods before others, and of those HBONE before plain.
    pub(super) fn address_rank(&self) -> u8 {
        let pod = self.uid.contains("//Pod/");
        match (pod, self.protocol) {
            (true, TunnelProtocol::Hbone) => 3,
            (true, TunnelProtocol::Tcp) => 2,
            (false, TunnelProtocol::Hbone) => 1,
            (false, TunnelProtocol::Tcp) => 0,
        }
    }

    /// Whether both have the one copy of a role: equal ones nearly always do. Texts of the role need not be compared then,
    /// which are in memory that no cache holds.
    pub(super) fn shares_role(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.role, &other.role)
    }

    /// Whether the same addresses lead to both.
    pub(super) fn is_reached_as(&self, other: &Self) -> bool {
        self.addresses == other.addresses
            && (self.shares_role(other)
                || (self.network == other.network && self.network_mode == other.network_mode))
    }

    /// True when neither an address nor a name leads to it; only its network's gateway could.
    pub(super) fn is_unaddressed(&self) -> bool {
        self.addresses.is_empty() && self.hostname.is_empty()
    }
}
