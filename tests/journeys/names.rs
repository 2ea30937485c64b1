//! Workloads that have only a host name: looked up by the node's name servers.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use prost::Message;
use uztunnel_rig::istiod::messages::workload as wire;
use uztunnel_rig::istiod::{ADDRESS, Resource};
use uztunnel_rig::name_server::NameServer;
use uztunnel_rig::{Blueprint, ControlPlane, Family, Membership, PodSpec, ServiceSpec, World, wait_until};

use crate::setup::{self, BODY_BYTES, HTTP_PORT, options, serve_http, wait_for_error};
use crate::telemetry::sample;

const HOST: &str = "legacy.example";

/// Two nodes, the first of which has a name server, and a service whose only endpoint is `HOST`.
fn world() -> (World, NameServer) {
    let plan = Blueprint::two_nodes()
        .control_plane(ControlPlane::Istiod)
        .pod(PodSpec::new("closed", 1).membership(Membership::Outside))
        .service(ServiceSpec::new("legacy", &[(80, HTTP_PORT)], &[]));
    let mut world = World::build(plan).expect("a world");
    let server = NameServer::start(&world.nodes[0].namespace).expect("a name server");
    let resolv_conf = world.scratch().join("resolv.conf");
    std::fs::write(&resolv_conf, NameServer::resolv_conf()).expect("written");
    world.istiod().update(ADDRESS, vec![endpoint()]);
    let [mut first, second] = options();
    // In place of the machine's, for this process alone. An empty file says what a missing one does.
    let script = format!(
        "{{ test -e /etc/resolv.conf || : > /etc/resolv.conf; }} && mount --bind {} /etc/resolv.conf && \
         exec \"$0\" \"$@\"",
        resolv_conf.display()
    );
    first.wrapper = ["unshare", "--mount", "sh", "-c", &script]
        .map(str::to_owned)
        .into();
    world.start_proxies(&[first, second]).expect("ready proxies");
    (world, server)
}

fn endpoint() -> Resource {
    let workload = wire::Workload {
        uid: "Kubernetes/networking.istio.io/ServiceEntry/shop/legacy".to_owned(),
        name: "legacy".to_owned(),
        namespace: "shop".to_owned(),
        hostname: HOST.to_owned(),
        services: [(
            "shop/legacy.shop.svc.cluster.local".to_owned(),
            wire::PortList {
                ports: vec![wire::Port {
                    service_port: 80,
                    target_port: u32::from(HTTP_PORT),
                }],
            },
        )]
        .into(),
        ..wire::Workload::default()
    };
    let address = wire::Address {
        r#type: Some(wire::address::Type::Workload(workload.clone())),
    };
    Resource {
        name: workload.uid,
        version: "1".to_owned(),
        value: address.encode_to_vec(),
    }
}

fn fetch(world: &World) -> io::Result<usize> {
    setup::fetch(world, world.service("legacy", Family::V4, 80))
}

#[test]
fn an_endpoint_that_has_only_a_name_is_looked_up_and_the_answer_is_kept_for_its_time() {
    let (world, server) = world();
    let _application = serve_http(world.pod("stranger"));
    let address: IpAddr = world.pod("stranger").address(Family::V4, HTTP_PORT).ip();
    server.tell(HOST, &[address], Duration::from_secs(3600));
    for _ in 0..3 {
        assert_eq!(fetch(&world).expect("a response"), BODY_BYTES);
    }
    assert_eq!(server.asked(HOST), 1, "the first answer is good for all of them");
    // From memory or not.
    let labels = [
        "{source_workload=\"client\",",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
        "hostname=\"legacy.example\"}",
    ];
    assert_eq!(sample(&world, 0, "istio_on_demand_dns_total", &labels), 3);
    let record = world.nodes[0].proxy().logs.wait_for_access("a record", |record| {
        record.field("dst.service") == "legacy.shop.svc.cluster.local" && record.field("error").is_empty()
    });
    record.expect("a connection that names the service");
}

#[test]
fn a_name_that_nobody_knows_refuses_the_connection_with_the_reason_until_somebody_does() {
    let (world, server) = world();
    let _application = serve_http(world.pod("stranger"));
    fetch(&world).expect_err("nobody knows the name");
    let error = wait_for_error(
        &world,
        "no ip addresses were resolved for workload: Kubernetes/networking.istio.io",
    );
    assert!(error.contains(&format!("looking up {HOST}: ")), "{error}");
    let of_host = ["hostname=\"legacy.example\""];
    assert_eq!(
        sample(&world, 0, "istio_on_demand_dns_total", &of_host),
        1,
        "once for all draws"
    );
    let address = world.pod("stranger").address(Family::V4, HTTP_PORT).ip();
    server.tell(HOST, &[address], Duration::from_secs(3600));
    wait_until("the name is looked up again", || fetch(&world).ok());
}

#[test]
fn of_the_addresses_of_a_name_one_that_refuses_is_given_up_for_another() {
    let (world, server) = world();
    let _application = serve_http(world.pod("stranger"));
    let addresses = ["closed", "stranger"].map(|pod| world.pod(pod).address(Family::V4, HTTP_PORT).ip());
    server.tell(HOST, &addresses, Duration::from_secs(3600));
    for _ in 0..64 {
        assert_eq!(fetch(&world).expect("a response"), BODY_BYTES);
    }
}

#[test]
fn a_name_server_that_swallows_questions_for_ipv6_delays_but_prevents_no_connection() {
    let (world, server) = world();
    let _application = serve_http(world.pod("stranger"));
    let address = world.pod("stranger").address(Family::V4, HTTP_PORT).ip();
    server.ignore_ipv6();
    server.tell(HOST, &[address], Duration::from_secs(3600));
    assert_eq!(fetch(&world).expect("a response"), BODY_BYTES);
}
