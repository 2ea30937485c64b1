//! Mesh state from a file (`LOCAL_XDS_PATH`) or from text (`LOCAL_XDS`): the YAML shapes and what they become.
//!
//! Read once at start by the control thread. Invariant: an error names the resource and the field it is in.
//! Unknown keys are errors, because a misspelt key would otherwise silently mean its default.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;
use serde_path_to_error::Segment;

use super::address::{
    CidrVip, GatewayAddress, GatewayTarget, NamespacedHostname, NetworkAddress, PortMap, canonical_range,
};
use super::policy::{Policy, PolicyAction, PolicyScope, Rule};
use super::service::{
    BalanceMode, Endpoint, HealthPolicy, IpFamilies, LoadBalancer, Scope, Service, Visibility,
    WeightedWaypoint,
};
use super::tail::Tail;
use super::workload::{
    ApplicationProtocol, ApplicationTunnel, Health, Locality, NetworkMode, Role, Site, TunnelProtocol,
    Workload,
};
use crate::identity::Identity;

/// Everything a local file holds, in the order in which it is loaded.
#[derive(Debug, Default)]
pub struct LocalState {
    pub workloads: Vec<Workload>,
    pub policies: Vec<Policy>,
    pub services: Vec<Service>,
}

/// Why a local file is no mesh state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    #[error("invalid mesh state: {resource}{field}: {reason}")]
    Resource {
        resource: String,
        field: String,
        reason: String,
    },
    #[error("invalid mesh state: {0}")]
    Document(String),
    #[error("invalid mesh state: {0} is there twice")]
    Duplicate(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    workloads: Option<Vec<WorkloadShape>>,
    #[serde(default)]
    policies: Option<Vec<PolicyShape>>,
    #[serde(default)]
    services: Option<Vec<ServiceShape>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WorkloadShape {
    workload_ips: Vec<IpAddr>,
    namespace: Arc<str>,
    services: BTreeMap<NamespacedHostname, PortMap>,
    #[serde(default)]
    uid: Arc<str>,
    #[serde(default)]
    name: Arc<str>,
    #[serde(default)]
    service_account: Arc<str>,
    #[serde(default)]
    trust_domain: Arc<str>,
    #[serde(default)]
    network: Arc<str>,
    #[serde(default)]
    node: Arc<str>,
    #[serde(default)]
    hostname: Arc<str>,
    #[serde(default)]
    workload_name: Arc<str>,
    #[serde(default)]
    workload_type: Arc<str>,
    #[serde(default)]
    canonical_name: Arc<str>,
    #[serde(default)]
    canonical_revision: Arc<str>,
    #[serde(default)]
    cluster_id: Arc<str>,
    #[serde(default)]
    protocol: TunnelProtocol,
    #[serde(default)]
    network_mode: NetworkMode,
    #[serde(default)]
    status: Health,
    #[serde(default)]
    native_tunnel: bool,
    #[serde(default)]
    application_tunnel: Option<TunnelShape>,
    #[serde(default)]
    waypoint: Option<GatewayShape>,
    #[serde(default)]
    network_gateway: Option<GatewayShape>,
    #[serde(default)]
    authorization_policies: Arc<[Arc<str>]>,
    #[serde(default)]
    locality: Option<LocalityShape>,
    #[serde(default = "capacity_default")]
    capacity: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TunnelShape {
    protocol: ApplicationProtocol,
    #[serde(default)]
    port: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GatewayShape {
    destination: GatewayTarget,
    hbone_mtls_port: u16,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalityShape {
    region: Arc<str>,
    zone: Arc<str>,
    subzone: Arc<str>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PolicyShape {
    name: Arc<str>,
    namespace: Arc<str>,
    scope: PolicyScope,
    action: PolicyAction,
    dry_run: bool,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServiceShape {
    name: Arc<str>,
    namespace: Arc<str>,
    hostname: Arc<str>,
    vips: Vec<NetworkAddress>,
    ports: PortMap,
    #[serde(default)]
    cidr_vips: Vec<CidrShape>,
    #[serde(default)]
    endpoints: BTreeMap<Arc<str>, EndpointShape>,
    #[serde(default)]
    subject_alt_names: Vec<Arc<str>>,
    #[serde(default)]
    waypoint: Option<GatewayShape>,
    #[serde(default)]
    weighted_waypoints: Vec<WeightedShape>,
    #[serde(default)]
    load_balancer: Option<LoadBalancerShape>,
    #[serde(default)]
    ip_families: Option<FamiliesShape>,
    #[serde(default)]
    canonical: bool,
    #[serde(default)]
    visibility: Visibility,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CidrShape {
    network: Arc<str>,
    cidr: IpNet,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EndpointShape {
    workload_uid: Arc<str>,
    port: PortMap,
    #[serde(default)]
    status: Health,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightedShape {
    destination: GatewayShape,
    weight: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LoadBalancerShape {
    routing_preferences: Vec<Scope>,
    mode: BalanceMode,
    health_policy: HealthPolicy,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum FamiliesShape {
    IPv4,
    IPv6,
    Dual,
}

/// Just enough of a resource to call it by its name in an error.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    uid: String,
    name: String,
    namespace: String,
    hostname: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Outline {
    workloads: Vec<Named>,
    policies: Vec<Named>,
    services: Vec<Named>,
}

impl LocalState {
    /// Reads YAML (or JSON). String matches of policies may be tagged (`!Exact v`) or maps (`{Exact: v}`).
    pub fn parse(text: &str) -> Result<Self, LocalError> {
        let document = if text.trim().is_empty() {
            Document::default()
        } else {
            read(text)?
        };
        let state = Self {
            workloads: document
                .workloads
                .unwrap_or_default()
                .into_iter()
                .map(Workload::from)
                .collect(),
            policies: document
                .policies
                .unwrap_or_default()
                .into_iter()
                .map(Policy::from)
                .collect(),
            services: document
                .services
                .unwrap_or_default()
                .into_iter()
                .map(Service::from)
                .collect(),
        };
        state.check()?;
        Ok(state)
    }

    /// What the shapes alone cannot tell.
    fn check(&self) -> Result<(), LocalError> {
        let keys = self
            .workloads
            .iter()
            .map(|it| format!("workload {:?}", it.uid))
            .chain(self.policies.iter().map(|it| format!("policy {:?}", it.key)))
            .chain(self.services.iter().map(|it| format!("service \"{}\"", it.key())));
        let mut seen = std::collections::HashSet::new();
        for (key, index) in keys.zip(0..) {
            let without_uid = self.workloads.get(index).is_some_and(|it| it.uid.is_empty());
            if without_uid {
                return Err(LocalError::Resource {
                    resource: format!("workload {:?} (workloads[{index}])", self.workloads[index].name),
                    field: ".uid".to_owned(),
                    reason: "it is missing, and it is the key by which a workload is known: set it to \
                             any unique text, e.g. cluster1//Pod/NAMESPACE/NAME"
                        .to_owned(),
                });
            }
            if let Some(twice) = seen.replace(key) {
                return Err(LocalError::Duplicate(twice));
            }
        }
        Ok(())
    }
}

/// Without the library's budget for hostile documents: the file is the operator's own, and 10,000 workloads
/// are beyond that budget.
fn read(text: &str) -> Result<Document, LocalError> {
    let mut path = None;
    let options = serde_saphyr::options! { budget: None };
    let result = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        serde_path_to_error::deserialize::<_, Document>(deserializer).map_err(|error| {
            path = Some(error.path().clone());
            error.into_inner()
        })
    });
    result.map_err(|error| {
        // The library's advice is for programmers who call it.
        let reason = error.without_snippet().to_string();
        let reason = reason.replace(", set DuplicateKeyPolicy in Options if acceptable", "");
        let mut segments = path.iter().flat_map(|path| path.iter());
        let (Some(list), Some(Segment::Seq { index })) = (segments.next(), segments.next()) else {
            return LocalError::Document(reason);
        };
        let field = segments.map(|segment| match segment {
            Segment::Seq { index } => format!("[{index}]"),
            Segment::Map { key } => format!(".{key}"),
            Segment::Enum { variant } => format!(".{variant}"),
            Segment::Unknown => String::new(),
        });
        let resource = resource_name(text, &list.to_string(), *index);
        LocalError::Resource {
            resource,
            field: field.collect(),
            reason,
        }
    })
}

/// Reads the document once more, for names only.
fn resource_name(text: &str, list: &str, index: usize) -> String {
    let duplicate_keys = serde_saphyr::DuplicateKeyPolicy::FirstWins;
    let lenient = serde_saphyr::options! { budget: None, duplicate_keys: duplicate_keys };
    let outline: Outline = serde_saphyr::from_str_with_options(text, lenient).unwrap_or_default();
    let place = format!("{list}[{index}]");
    let (kind, named) = match list {
        "workloads" => ("workload", outline.workloads.get(index)),
        "policies" => ("policy", outline.policies.get(index)),
        _ => ("service", outline.services.get(index)),
    };
    let name = named.map_or(String::new(), |it| {
        if !it.uid.is_empty() {
            it.uid.clone()
        } else if !it.hostname.is_empty() && list == "services" {
            format!("{}/{}", it.namespace, it.hostname)
        } else if !it.name.is_empty() {
            format!("{}/{}", it.namespace, it.name)
        } else {
            String::new()
        }
    });
    if name.is_empty() {
        place
    } else {
        format!("{kind} {name:?} ({place})")
    }
}

fn capacity_default() -> u32 {
    1
}

impl From<WorkloadShape> for Workload {
    fn from(shape: WorkloadShape) -> Self {
        let identity = Identity::new(&shape.trust_domain, &shape.namespace, &shape.service_account);
        let role = Role {
            namespace: shape.namespace,
            trust_domain: shape.trust_domain,
            service_account: shape.service_account,
            accepted: Arc::new([identity.clone()]),
            identity,
            network: shape.network,
            protocol: shape.protocol,
            network_mode: shape.network_mode,
            waypoint: shape.waypoint.map(|it| Box::new(it.into())),
            network_gateway: shape.network_gateway.map(|it| Box::new(it.into())),
            services: shape.services.into_iter().collect(),
            authorization_policies: shape.authorization_policies,
            workload_name: shape.workload_name,
            workload_type: shape.workload_type,
            canonical_name: shape.canonical_name,
            canonical_revision: shape.canonical_revision,
            native_tunnel: shape.native_tunnel,
            application_tunnel: shape.application_tunnel.map(|it| ApplicationTunnel {
                protocol: it.protocol,
                port: it.port.filter(|port| *port != 0),
            }),
        };
        Self {
            name: Tail::of(&shape.uid, &shape.name),
            uid: shape.uid,
            addresses: shape.workload_ips.iter().map(IpAddr::to_canonical).collect(),
            hostname: shape.hostname,
            status: shape.status,
            capacity: shape.capacity,
            site: Arc::new(Site {
                node: shape.node,
                cluster_id: shape.cluster_id,
                locality: shape.locality.map_or_else(Locality::default, |it| Locality {
                    region: it.region,
                    zone: it.zone,
                    subzone: it.subzone,
                }),
            }),
            role: Arc::new(role),
        }
    }
}

impl From<GatewayShape> for GatewayAddress {
    fn from(shape: GatewayShape) -> Self {
        Self {
            target: shape.destination,
            hbone_mtls_port: shape.hbone_mtls_port,
        }
    }
}

impl From<PolicyShape> for Policy {
    fn from(shape: PolicyShape) -> Self {
        Self {
            key: format!("{}/{}", shape.namespace, shape.name).into(),
            name: shape.name,
            namespace: shape.namespace,
            scope: shape.scope,
            action: shape.action,
            dry_run: shape.dry_run,
            rules: shape.rules,
        }
    }
}

impl From<ServiceShape> for Service {
    fn from(shape: ServiceShape) -> Self {
        let endpoints = shape.endpoints.into_values().map(|it| {
            let uid = it.workload_uid;
            (
                uid.clone(),
                Endpoint {
                    workload_uid: uid,
                    ports: it.port,
                    status: it.status,
                },
            )
        });
        Self {
            vips: shape.vips,
            cidr_vips: shape
                .cidr_vips
                .into_iter()
                .map(|it| CidrVip {
                    network: it.network,
                    cidr: canonical_range(it.cidr),
                })
                .collect(),
            ports: shape.ports,
            endpoints: endpoints.collect(),
            subject_alt_names: shape.subject_alt_names,
            waypoint: shape.waypoint.map(|it| Box::new(it.into())),
            weighted_waypoints: shape
                .weighted_waypoints
                .into_iter()
                .map(|it| WeightedWaypoint {
                    destination: it.destination.into(),
                    weight: it.weight,
                })
                .collect(),
            load_balancer: shape.load_balancer.map(|it| LoadBalancer {
                routing_preferences: it.routing_preferences,
                mode: it.mode,
                health_policy: it.health_policy,
            }),
            ip_families: match shape.ip_families {
                None => IpFamilies::Automatic,
                Some(FamiliesShape::IPv4) => IpFamilies::V4,
                Some(FamiliesShape::IPv6) => IpFamilies::V6,
                Some(FamiliesShape::Dual) => IpFamilies::Dual,
            },
            canonical: shape.canonical,
            visibility: shape.visibility,
            ..Self::new(&shape.name, &shape.namespace, &shape.hostname)
        }
    }
}

#[cfg(test)]
mod tests;
