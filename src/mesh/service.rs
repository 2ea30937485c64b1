//! A service: a name with virtual addresses and ports. What is behind it, and changes far more often, is in `backing`.
//!
//! Plain values behind `Arc`, made by the builder's callers, never changed once inside a snapshot.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::address::{CidrVip, GatewayAddress, NamespacedHostname, NetworkAddress, PortMap};
use super::trie::TrieMap;
use super::workload::Health;
use crate::identity::Identity;

#[derive(Debug, Clone)]
pub struct Service {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
    pub vips: Vec<NetworkAddress>,
    pub cidr_vips: Vec<CidrVip>,
    pub ports: PortMap,
    /// Those that come with the service itself, by workload uid: only a local file has any. The builder takes them out;
    /// all endpoints of a service in a snapshot are `Snapshot::endpoints`.
    pub endpoints: TrieMap<Arc<str>, Endpoint>,
    /// Identities accepted besides the endpoint's own, as they were given; the unusable ones are skipped.
    pub subject_alt_names: Vec<Arc<str>>,
    pub waypoint: Option<Box<GatewayAddress>>,
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    pub load_balancer: Option<LoadBalancer>,
    pub ip_families: IpFamilies,
    /// Wins over its namesakes when the client's own namespace has none.
    pub canonical: bool,
    pub visibility: Visibility,
    /// The usable ones of `subject_alt_names`: who may answer for the service without being one of its endpoints.
    pub(super) names: Arc<[Identity]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub workload_uid: Arc<str>,
    /// Service port to the port of this endpoint; goes before the service's own mapping.
    pub ports: PortMap,
    pub status: Health,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedWaypoint {
    pub destination: GatewayAddress,
    pub weight: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadBalancer {
    pub routing_preferences: Vec<Scope>,
    pub mode: BalanceMode,
    pub health_policy: HealthPolicy,
}

/// What source and endpoint are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum BalanceMode {
    /// All endpoints alike.
    Standard,
    /// Only endpoints that match every preference.
    Strict,
    /// The endpoints that match the most leading preferences.
    Failover,
    /// No choice: the connection goes where the client sent it.
    Passthrough,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub enum HealthPolicy {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IpFamilies {
    /// No restriction.
    #[default]
    Automatic,
    V4,
    V6,
    Dual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub enum Visibility {
    #[default]
    Public,
    /// Only for clients of the service's own namespace.
    Namespace,
}

impl Service {
    /// A service with everything but its names left at the defaults.
    pub fn new(name: &str, namespace: &str, hostname: &str) -> Self {
        Self {
            name: name.into(),
            namespace: namespace.into(),
            hostname: hostname.into(),
            vips: Vec::new(),
            cidr_vips: Vec::new(),
            ports: PortMap::default(),
            endpoints: TrieMap::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancer: None,
            ip_families: IpFamilies::default(),
            canonical: false,
            visibility: Visibility::default(),
            names: Arc::default(),
        }
    }

    pub fn key(&self) -> NamespacedHostname {
        NamespacedHostname {
            namespace: self.namespace.clone(),
            hostname: self.hostname.clone(),
        }
    }

    pub fn is_passthrough(&self) -> bool {
        self.load_balancer
            .as_ref()
            .is_some_and(|balancer| balancer.mode == BalanceMode::Passthrough)
    }

    /// By how many preferences its endpoints are told apart that take over from one another.
    pub fn failover_scopes(&self) -> usize {
        match &self.load_balancer {
            Some(balancer) if balancer.mode == BalanceMode::Failover => balancer.routing_preferences.len(),
            Some(_) | None => 0,
        }
    }

    pub(super) fn health_policy(&self) -> HealthPolicy {
        self.load_balancer
            .as_ref()
            .map_or(HealthPolicy::default(), |it| it.health_policy)
    }

    /// Whether the health policy lets in who is in this state.
    pub(super) fn includes(&self, status: Health) -> bool {
        match self.health_policy() {
            HealthPolicy::AllowAll => true,
            HealthPolicy::OnlyHealthy => status == Health::Healthy,
        }
    }

    /// Visibility is only enforced against a known client namespace.
    pub(super) fn is_visible_to(&self, client_namespace: Option<&str>) -> bool {
        match self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => client_namespace.is_none_or(|client| client == &*self.namespace),
        }
    }

    /// Every waypoint that connections to the service may come through, also while their weights change.
    pub(super) fn waypoints(&self) -> impl Iterator<Item = &GatewayAddress> {
        let weighted = self.weighted_waypoints.iter().map(|it| &it.destination);
        weighted.chain(self.waypoint.as_deref())
    }

    /// The waypoint of one connection: by weight where weights are given, else the single one.
    pub(super) fn choose_waypoint(&self, random: &mut dyn FnMut() -> u64) -> Option<&GatewayAddress> {
        let total: u64 = self
            .weighted_waypoints
            .iter()
            .map(|it| u64::from(it.weight))
            .sum();
        if total == 0 {
            return self.waypoint.as_deref();
        }
        let mut at = random() % total;
        for choice in &self.weighted_waypoints {
            match at.checked_sub(u64::from(choice.weight)) {
                Some(rest) => at = rest,
                None => return Some(&choice.destination),
            }
        }
        self.waypoint.as_deref()
    }
}
