//! A world as istiod's resources: the same mesh as in the mesh file.

use std::net::IpAddr;

use prost::Message;

use super::Resource;
use super::messages::security;
use super::messages::workload as wire;
use crate::addresses::{self, Addresses};
use crate::blueprint::{Membership, ServiceSpec};
use crate::hbone;
use crate::mesh_file::{node_name, workload_uid};
use crate::world::{Pod, World};

pub(super) fn resources(world: &World) -> Vec<Resource> {
    let pods = world.pods.iter().filter_map(|pod| workload(world, pod));
    let services = world.blueprint.services.iter().enumerate();
    pods.chain(services.map(|(index, spec)| service(world, index, spec)))
        .collect()
}

/// A policy under which no pod of the namespace is reached by anybody: `<namespace>/nobody`.
pub fn deny_namespace(namespace: &str) -> Resource {
    let policy = security::Authorization {
        name: "nobody".to_owned(),
        namespace: namespace.to_owned(),
        scope: security::Scope::Namespace.into(),
        action: security::Action::Deny.into(),
        rules: vec![security::Rule::default()],
        dry_run: false,
    };
    Resource {
        name: format!("{namespace}/nobody"),
        version: "1".to_owned(),
        value: policy.encode_to_vec(),
    }
}

impl Resource {
    /// The same workload, but for what `change` makes of it.
    pub fn changed(&self, change: impl FnOnce(&mut wire::Workload)) -> Self {
        let mut address = wire::Address::decode(&self.value[..]).expect("an address");
        match &mut address.r#type {
            Some(wire::address::Type::Workload(workload)) => change(workload),
            other => panic!("{} is no workload: {other:?}", self.name),
        }
        Self {
            name: self.name.clone(),
            version: format!("{}, changed", self.version),
            value: address.encode_to_vec(),
        }
    }
}

fn workload(world: &World, pod: &Pod) -> Option<Resource> {
    let spec = &pod.spec;
    let protocol = match spec.membership {
        Membership::Inside | Membership::Unredirected => wire::TunnelProtocol::Hbone,
        Membership::KnownPlain => wire::TunnelProtocol::None,
        Membership::Outside => return None,
    };
    let status = if world.blueprint.unhealthy.contains(&spec.name) {
        wire::WorkloadStatus::Unhealthy
    } else {
        wire::WorkloadStatus::Healthy
    };
    let memberships = world.blueprint.services.iter();
    let services = memberships
        .filter(|service| service.endpoints.contains(&spec.name))
        .map(|service| {
            (
                key(service),
                wire::PortList {
                    ports: ports(service),
                },
            )
        });
    let [region, zone, subzone] = spec.locality.clone();
    let uid = workload_uid(spec);
    let workload = wire::Workload {
        uid: uid.clone(),
        name: spec.name.clone(),
        namespace: spec.namespace.clone(),
        service_account: spec.service_account.clone(),
        addresses: bytes(pod.addresses).into(),
        node: node_name(spec.node),
        canonical_name: spec.service_account.clone(),
        canonical_revision: "latest".to_owned(),
        workload_name: spec.service_account.clone(),
        cluster_id: "Kubernetes".to_owned(),
        tunnel_protocol: protocol.into(),
        status: status.into(),
        services: services.collect(),
        waypoint: spec.waypoint.as_deref().map(|name| waypoint(world, name)),
        application_tunnel: spec.tunnel_port.map(|port| wire::ApplicationTunnel {
            protocol: wire::application_tunnel::Protocol::Proxy.into(),
            port: port.into(),
        }),
        locality: Some(wire::Locality {
            region,
            zone,
            subzone,
        }),
        ..wire::Workload::default()
    };
    Some(resource(uid, wire::address::Type::Workload(workload)))
}

fn service(world: &World, index: usize, spec: &ServiceSpec) -> Resource {
    let own = bytes(addresses::service(index)).map(|address| network_address(address, None));
    let ranges = spec.ranges.iter().map(|(address, bits)| {
        let address = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        network_address(address, Some(u32::from(*bits)))
    });
    let load_balancing = spec.balancing.as_ref().map(|balancing| wire::LoadBalancing {
        routing_preference: balancing.scopes.iter().map(|scope| i32::from(*scope)).collect(),
        mode: balancing.mode.into(),
        health_policy: balancing.health_policy.into(),
    });
    let weighted = spec.weighted_waypoints.iter();
    let weighted = weighted.map(|(name, weight)| wire::WeightedWaypoint {
        destination: Some(waypoint(world, name)),
        weight: *weight,
    });
    let service = wire::Service {
        name: spec.name.clone(),
        namespace: spec.namespace.clone(),
        hostname: spec.hostname(),
        addresses: own.into_iter().chain(ranges).collect(),
        ports: ports(spec),
        load_balancing,
        waypoint: spec.waypoint.as_deref().map(|name| waypoint(world, name)),
        weighted_waypoints: weighted.collect(),
        ..wire::Service::default()
    };
    resource(key(spec), wire::address::Type::Service(service))
}

fn waypoint(world: &World, name: &str) -> wire::GatewayAddress {
    let address = match world.blueprint.service_position(name) {
        Some(service) => addresses::service(service).v4,
        None => world.pod(name).addresses.v4,
    };
    let address = network_address(address.octets().to_vec(), None);
    wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Address(address)),
        hbone_mtls_port: hbone::PORT.into(),
    }
}

fn network_address(address: Vec<u8>, length: Option<u32>) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: String::new(),
        address,
        length,
    }
}

fn resource(name: String, kind: wire::address::Type) -> Resource {
    let address = wire::Address { r#type: Some(kind) };
    Resource {
        name,
        version: "1".to_owned(),
        value: address.encode_to_vec(),
    }
}

fn key(spec: &ServiceSpec) -> String {
    format!("{}/{}", spec.namespace, spec.hostname())
}

fn ports(spec: &ServiceSpec) -> Vec<wire::Port> {
    let port = |(service_port, target_port): &(u16, u16)| wire::Port {
        service_port: u32::from(*service_port),
        target_port: u32::from(*target_port),
    };
    spec.ports.iter().map(port).collect()
}

fn bytes(addresses: Addresses) -> [Vec<u8>; 2] {
    [addresses.v4.octets().to_vec(), addresses.v6.octets().to_vec()]
}
