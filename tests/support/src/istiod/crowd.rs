//! A mesh of any size, made cheaply: what a control plane of a large cluster sends, with its names and labels.
//!
//! Every resource follows from its number alone, so that one can be made again in another state. Addresses are those
//! of carrier networks (100.64.0.0/10); nothing is ever sent to them.

use prost::Message;

use super::Resource;
use super::messages::workload as wire;

/// How many workloads in how many services.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    pub workloads: u32,
    pub services: u32,
}

const NAMESPACES: u32 = 8;
const NODES: u32 = 1000;
/// 100.64.0.0, and the part of it for services.
const PODS_NETWORK: u32 = 0x6440_0000;
const SERVICES_NETWORK: u32 = 0x6470_0000;

impl Crowd {
    /// Services first, as a control plane sends them in no particular order.
    pub fn resources(self) -> Vec<Resource> {
        let services = (0..self.services).map(|number| self.service(number));
        let workloads = (0..self.workloads).map(|number| self.workload(number, true, 1));
        services.chain(workloads).collect()
    }

    /// Workload `number`, an endpoint of the service `number % services`.
    pub fn workload(self, number: u32, healthy: bool, version: u64) -> Resource {
        let service = number % self.services;
        let (app, namespace) = (app(service), namespace(service));
        let pod = pod_name(number, &app);
        let node = number % NODES;
        let status = if healthy {
            wire::WorkloadStatus::Healthy
        } else {
            wire::WorkloadStatus::Unhealthy
        };
        let ports = wire::PortList {
            ports: vec![port(80, 8080), port(9090, 9090)],
        };
        let policies = (number.is_multiple_of(10))
            .then(|| format!("{namespace}/converted_peer_authentication_{app}-strict"));
        let workload = wire::Workload {
            uid: self.uid(number),
            name: pod.clone(),
            namespace: namespace.clone(),
            addresses: vec![(PODS_NETWORK + number).to_be_bytes().to_vec()],
            tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
            service_account: app.clone(),
            node: format!(
                "ip-10-0-{}-{}.eu-central-1.compute.internal",
                node / 250,
                node % 250
            ),
            canonical_name: app.clone(),
            canonical_revision: "v1".to_owned(),
            workload_type: wire::WorkloadType::Deployment.into(),
            workload_name: app,
            authorization_policies: policies.into_iter().collect(),
            status: status.into(),
            cluster_id: "Kubernetes".to_owned(),
            services: [(self.hostname_key(service), ports)].into(),
            locality: Some(wire::Locality {
                region: "eu-central-1".to_owned(),
                zone: format!("eu-central-1{}", ["a", "b", "c"][(node % 3) as usize]),
                subzone: String::new(),
            }),
            ..wire::Workload::default()
        };
        let kind = wire::address::Type::Workload(workload);
        resource(self.uid(number), number, version, kind)
    }

    pub fn service(self, number: u32) -> Resource {
        let namespace = namespace(number);
        let service = wire::Service {
            name: app(number),
            namespace: namespace.clone(),
            hostname: hostname(number),
            addresses: vec![wire::NetworkAddress {
                network: String::new(),
                address: (SERVICES_NETWORK + number).to_be_bytes().to_vec(),
                length: None,
            }],
            ports: vec![port(80, 8080), port(9090, 9090)],
            ..wire::Service::default()
        };
        let kind = wire::address::Type::Service(service);
        resource(self.hostname_key(number), number, 1, kind)
    }

    /// The name of workload `number`.
    pub fn uid(self, number: u32) -> String {
        let service = number % self.services;
        format!(
            "Kubernetes//Pod/{}/{}",
            namespace(service),
            pod_name(number, &app(service))
        )
    }

    /// The name of service `number`.
    pub fn hostname_key(self, number: u32) -> String {
        format!("{}/{}", namespace(number), hostname(number))
    }
}

fn app(service: u32) -> String {
    format!("backend-{service}")
}

fn namespace(service: u32) -> String {
    format!("team-{}", service % NAMESPACES)
}

fn hostname(service: u32) -> String {
    format!("{}.{}.svc.cluster.local", app(service), namespace(service))
}

/// As a deployment names its pods.
fn pod_name(number: u32, app: &str) -> String {
    format!("{app}-6d8f9c7b5-{number:05x}")
}

fn port(service_port: u32, target_port: u32) -> wire::Port {
    wire::Port {
        service_port,
        target_port,
    }
}

/// The version is a hash of the contents in real life; here it only looks like one.
fn resource(name: String, number: u32, version: u64, kind: wire::address::Type) -> Resource {
    let address = wire::Address { r#type: Some(kind) };
    let mixed = (u64::from(number) << 32 | version).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Resource {
        name,
        version: format!("{mixed:016x}"),
        value: address.encode_to_vec(),
    }
}
