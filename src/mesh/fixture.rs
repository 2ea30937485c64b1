//! What the tests of this layer build meshes from. Everything is on network `net1` unless it says otherwise.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::*;
use crate::identity::Identity;

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn socket(text: &str) -> SocketAddr {
    text.parse().expect("a socket address")
}

pub fn ports(list: &[(u16, u16)]) -> PortMap {
    list.iter().copied().collect()
}

pub fn locale() -> Locale {
    Locale {
        network: "net1".into(),
        node: Some("node-a".into()),
        captured_ports: Arc::new([15001, 15006, 15008]),
    }
}

/// An HBONE pod of namespace `shop` on `node-a`, with its name as service account.
pub fn pod(name: &str, address: &str) -> Workload {
    pod_in("shop", name, address)
}

pub fn pod_in(namespace: &str, name: &str, address: &str) -> Workload {
    let identity = Identity::new("cluster.local", namespace, name);
    with(
        Workload::new(&format!("c1//Pod/{namespace}/{name}"), name, identity).on_node("node-a"),
        |it| {
            it.addresses = [ip(address)].into();
            it.network = "net1".into();
            it.protocol = TunnelProtocol::Hbone;
        },
    )
}

/// The workload with something changed.
pub fn with(mut workload: Workload, change: impl FnOnce(&mut Workload)) -> Workload {
    change(&mut workload);
    workload
}

/// The workload as an endpoint of `shop/<service>.shop`.
pub fn behind(mut workload: Workload, service: &str, map: &[(u16, u16)]) -> Workload {
    workload.join(NamespacedHostname::new("shop", &host(service)), ports(map));
    workload
}

pub fn host(service: &str) -> String {
    format!("{service}.shop")
}

/// `shop/<name>.shop` with port 80 to 8080.
pub fn service(name: &str, vip: &str) -> Service {
    Service {
        vips: vec![NetworkAddress::new("net1", ip(vip))],
        ports: ports(&[(80, 8080)]),
        ..Service::new(name, "shop", &host(name))
    }
}

pub fn balancer(mode: BalanceMode, routing_preferences: &[Scope]) -> Option<LoadBalancer> {
    Some(LoadBalancer {
        mode,
        routing_preferences: routing_preferences.to_vec(),
        health_policy: HealthPolicy::OnlyHealthy,
    })
}

pub fn waypoint(target: &str, port: u16) -> Option<Box<GatewayAddress>> {
    Some(Box::new(GatewayAddress {
        target: target.parse().expect("a target"),
        hbone_mtls_port: port,
    }))
}

pub fn mesh(workloads: Vec<Workload>, services: Vec<Service>, policies: Vec<Policy>) -> Snapshot {
    let mut builder = Builder::new(locale());
    builder.load(LocalState {
        workloads,
        services,
        policies,
    });
    builder.build()
}

/// Counts upwards, so that draws visit every entry in turn.
pub fn counting() -> impl FnMut() -> u64 {
    let mut next = 0;
    move || {
        next += 1;
        next - 1
    }
}
