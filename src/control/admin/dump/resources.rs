//! Workloads, services and policies in the shapes of the dump: those of a local file, with keys sorted.
//!
//! Borrowed views, made one at a time while they are written. Specification: sections 5.1 to 5.3 of the admin
//! contract.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::mesh::{
    ApplicationProtocol, BalanceMode, CidrVip, Endpoint, GatewayAddress, GatewayTarget, Health, HealthPolicy,
    IpFamilies, LoadBalancer, Match, NamespacedHostname, NetworkAddress, NetworkMode, Policy, PolicyAction,
    PolicyScope, PortMap, Rule, Scope, Service, ServiceAccountMatch, Snapshot, StringMatch, TunnelProtocol,
    Visibility, WeightedWaypoint, Workload,
};

/// A list whose items are shaped as they are written.
pub fn each<'a, T, S: Serialize>(list: &'a [T], shape: impl Fn(&'a T) -> S) -> impl Serialize {
    Each(list, shape)
}

struct Each<'a, T, F>(&'a [T], F);

impl<'a, T, F, S> Serialize for Each<'a, T, F>
where
    F: Fn(&'a T) -> S,
    S: Serialize,
{
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        serializer.collect_seq(self.0.iter().map(&self.1))
    }
}

/// A value by its text.
struct Text<T>(T);

impl<T: Display> Serialize for Text<T> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        serializer.collect_str(&self.0)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadShape<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    application_tunnel: Option<TunnelShape>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    authorization_policies: &'a [Arc<str>],
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_revision: &'a str,
    capacity: u32,
    cluster_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    hostname: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<LocalityShape<'a>>,
    name: &'a str,
    namespace: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    native_tunnel: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    network: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_gateway: Option<GatewayShape<'a>>,
    network_mode: NetworkMode,
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    protocol: TunnelProtocol,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account: &'a str,
    #[serde(skip_serializing_if = "Memberships::is_left_out")]
    services: Memberships<'a>,
    status: Health,
    #[serde(skip_serializing_if = "str::is_empty")]
    trust_domain: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayShape<'a>>,
    workload_ips: &'a [IpAddr],
    #[serde(skip_serializing_if = "str::is_empty")]
    workload_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    workload_type: &'a str,
}

impl<'a> WorkloadShape<'a> {
    pub fn new(workload: &'a Workload) -> Self {
        let locality = &workload.site.locality;
        let parts = [&locality.region, &locality.zone, &locality.subzone];
        Self {
            application_tunnel: workload.application_tunnel.map(|tunnel| TunnelShape {
                port: tunnel.port,
                protocol: tunnel.protocol,
            }),
            authorization_policies: &workload.authorization_policies,
            canonical_name: &workload.canonical_name,
            canonical_revision: &workload.canonical_revision,
            capacity: workload.capacity,
            cluster_id: &workload.site.cluster_id,
            hostname: &workload.hostname,
            locality: parts
                .iter()
                .any(|part| !part.is_empty())
                .then_some(LocalityShape {
                    region: &locality.region,
                    subzone: &locality.subzone,
                    zone: &locality.zone,
                }),
            name: &workload.name,
            namespace: &workload.namespace,
            native_tunnel: workload.native_tunnel,
            network: &workload.network,
            network_gateway: workload.network_gateway.as_deref().map(GatewayShape::new),
            network_mode: workload.network_mode,
            node: &workload.site.node,
            protocol: workload.protocol,
            service_account: &workload.service_account,
            services: Memberships::Names(&workload.services),
            status: workload.status,
            trust_domain: &workload.trust_domain,
            uid: &workload.uid,
            waypoint: workload.waypoint.as_deref().map(GatewayShape::new),
            workload_ips: &workload.addresses,
            workload_name: &workload.workload_name,
            workload_type: &workload.workload_type,
        }
    }

    /// As a local file has it: with the ports of each service.
    pub fn of_file(workload: &'a Workload) -> Self {
        Self {
            services: Memberships::Ports(&workload.services),
            ..Self::new(workload)
        }
    }
}

/// The services of a workload.
enum Memberships<'a> {
    Names(&'a [(NamespacedHostname, PortMap)]),
    Ports(&'a [(NamespacedHostname, PortMap)]),
}

impl Memberships<'_> {
    fn is_left_out(&self) -> bool {
        match self {
            Self::Names(services) => services.is_empty(),
            Self::Ports(_) => false,
        }
    }
}

impl Serialize for Memberships<'_> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        match self {
            Self::Names(services) => serializer.collect_seq(services.iter().map(|(key, _)| Text(key))),
            Self::Ports(services) => {
                serializer.collect_map(services.iter().map(|(key, ports)| (Text(key), PortsShape(ports))))
            }
        }
    }
}

#[derive(Serialize)]
struct TunnelShape {
    port: Option<u16>,
    protocol: ApplicationProtocol,
}

#[derive(Serialize)]
struct LocalityShape<'a> {
    region: &'a str,
    subzone: &'a str,
    zone: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayShape<'a> {
    destination: Text<&'a GatewayTarget>,
    hbone_mtls_port: u16,
}

impl<'a> GatewayShape<'a> {
    fn new(gateway: &'a GatewayAddress) -> Self {
        Self {
            destination: Text(&gateway.target),
            hbone_mtls_port: gateway.hbone_mtls_port,
        }
    }
}

/// Sorted as texts, like every other map.
struct PortsShape<'a>(&'a PortMap);

impl Serialize for PortsShape<'_> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        let sorted: BTreeMap<String, u16> = self
            .0
            .iter()
            .map(|(port, target)| (port.to_string(), target))
            .collect();
        serializer.collect_map(sorted)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointShape<'a> {
    port: PortsShape<'a>,
    status: Health,
    workload_uid: &'a str,
}

impl<'a> EndpointShape<'a> {
    fn new(endpoint: &'a Endpoint) -> Self {
        Self {
            port: PortsShape(&endpoint.ports),
            status: endpoint.status,
            workload_uid: &endpoint.workload_uid,
        }
    }
}

/// Endpoints by the uid of their workload.
pub struct Endpoints(BTreeMap<Arc<str>, Endpoint>);

impl Endpoints {
    pub fn new(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let by_uid = endpoints.into_iter().map(|it| (it.workload_uid.clone(), it));
        Self(by_uid.collect())
    }
}

impl Serialize for Endpoints {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        let shapes = self.0.iter();
        serializer.collect_map(shapes.map(|(uid, endpoint)| (&**uid, EndpointShape::new(endpoint))))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceShape<'a> {
    canonical: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr_vips: Vec<CidrShape<'a>>,
    endpoints: Endpoints,
    hostname: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_families: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<LoadBalancerShape<'a>>,
    name: &'a str,
    namespace: &'a str,
    ports: PortsShape<'a>,
    subject_alt_names: &'a [Arc<str>],
    vips: Vec<Text<&'a NetworkAddress>>,
    visibility: Visibility,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayShape<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weighted_waypoints: Vec<WeightedShape<'a>>,
}

impl<'a> ServiceShape<'a> {
    pub fn in_force(service: &'a Service, snapshot: &Snapshot) -> Self {
        Self::new(service, Endpoints::new(snapshot.endpoints(service)))
    }

    pub fn of_file(service: &'a Service) -> Self {
        Self::new(service, Endpoints::new(service.endpoints.values().cloned()))
    }

    fn new(service: &'a Service, endpoints: Endpoints) -> Self {
        Self {
            canonical: service.canonical,
            cidr_vips: service.cidr_vips.iter().map(CidrShape::new).collect(),
            endpoints,
            hostname: &service.hostname,
            ip_families: match service.ip_families {
                IpFamilies::Automatic => None,
                IpFamilies::V4 => Some("IPv4"),
                IpFamilies::V6 => Some("IPv6"),
                IpFamilies::Dual => Some("Dual"),
            },
            load_balancer: service.load_balancer.as_ref().map(LoadBalancerShape::new),
            name: &service.name,
            namespace: &service.namespace,
            ports: PortsShape(&service.ports),
            subject_alt_names: &service.subject_alt_names,
            vips: service.vips.iter().map(Text).collect(),
            visibility: service.visibility,
            waypoint: service.waypoint.as_deref().map(GatewayShape::new),
            weighted_waypoints: service
                .weighted_waypoints
                .iter()
                .map(WeightedShape::new)
                .collect(),
        }
    }
}

#[derive(Serialize)]
struct CidrShape<'a> {
    cidr: IpNet,
    network: &'a str,
}

impl<'a> CidrShape<'a> {
    fn new(vip: &'a CidrVip) -> Self {
        Self {
            cidr: vip.cidr,
            network: &vip.network,
        }
    }
}

#[derive(Serialize)]
struct WeightedShape<'a> {
    destination: GatewayShape<'a>,
    weight: u32,
}

impl<'a> WeightedShape<'a> {
    fn new(waypoint: &'a WeightedWaypoint) -> Self {
        Self {
            destination: GatewayShape::new(&waypoint.destination),
            weight: waypoint.weight,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LoadBalancerShape<'a> {
    health_policy: HealthPolicy,
    mode: BalanceMode,
    routing_preferences: &'a [Scope],
}

impl<'a> LoadBalancerShape<'a> {
    fn new(balancer: &'a LoadBalancer) -> Self {
        Self {
            health_policy: balancer.health_policy,
            mode: balancer.mode,
            routing_preferences: &balancer.routing_preferences,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyShape<'a> {
    action: PolicyAction,
    dry_run: bool,
    name: &'a str,
    namespace: &'a str,
    rules: Vec<Vec<Vec<MatchShape<'a>>>>,
    scope: PolicyScope,
}

impl<'a> PolicyShape<'a> {
    pub fn new(policy: &'a Policy) -> Self {
        let rule = |rule: &'a Rule| {
            let clauses = rule.clauses.iter();
            clauses
                .map(|clause| clause.matches.iter().map(MatchShape::new).collect())
                .collect()
        };
        Self {
            action: policy.action,
            dry_run: policy.dry_run,
            name: &policy.name,
            namespace: &policy.namespace,
            rules: policy.rules.iter().map(rule).collect(),
            scope: policy.scope,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MatchShape<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    destination_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    destination_ports: &'a [u16],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<StringShape<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_destination_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_destination_ports: &'a [u16],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_namespaces: Vec<StringShape<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_principals: Vec<StringShape<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_service_accounts: Vec<AccountShape<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_source_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principals: Vec<StringShape<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service_accounts: Vec<AccountShape<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    source_ips: &'a [IpNet],
}

impl<'a> MatchShape<'a> {
    fn new(from: &'a Match) -> Self {
        let strings = |list: &'a [StringMatch]| list.iter().map(StringShape::new).collect();
        let accounts = |list: &'a [ServiceAccountMatch]| list.iter().map(AccountShape::new).collect();
        Self {
            destination_ips: &from.destination_ips,
            destination_ports: &from.destination_ports,
            namespaces: strings(&from.namespaces),
            not_destination_ips: &from.not_destination_ips,
            not_destination_ports: &from.not_destination_ports,
            not_namespaces: strings(&from.not_namespaces),
            not_principals: strings(&from.not_principals),
            not_service_accounts: accounts(&from.not_service_accounts),
            not_source_ips: &from.not_source_ips,
            principals: strings(&from.principals),
            service_accounts: accounts(&from.service_accounts),
            source_ips: &from.source_ips,
        }
    }
}

/// An object of one key.
#[derive(Serialize)]
enum StringShape<'a> {
    Exact(&'a str),
    Prefix(&'a str),
    Suffix(&'a str),
    /// Carries an empty list.
    Presence([(); 0]),
}

impl<'a> StringShape<'a> {
    fn new(from: &'a StringMatch) -> Self {
        match from {
            StringMatch::Exact(text) => Self::Exact(text),
            StringMatch::Prefix(text) => Self::Prefix(text),
            StringMatch::Suffix(text) => Self::Suffix(text),
            StringMatch::Presence => Self::Presence([]),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountShape<'a> {
    namespace: &'a str,
    service_account: &'a str,
}

impl<'a> AccountShape<'a> {
    fn new(from: &'a ServiceAccountMatch) -> Self {
        Self {
            namespace: &from.namespace,
            service_account: &from.service_account,
        }
    }
}
