//! Pods outside the mesh: into it, out of it, and addresses that nobody knows.

use uztunnel_rig::addresses::nobody;
use uztunnel_rig::{Family, Membership, PodSpec, World, http};

use crate::setup::{BODY_BYTES, HTTP_PORT, plan, serve_http, start, two_nodes};

fn assert_plain_call(world: &World, client: &str, server: &str) {
    let _server = serve_http(world.pod(server));
    for family in Family::BOTH {
        let target = world.pod(server).address(family, HTTP_PORT);
        let response = world.pod(client).run(async move { http::get(target, "/").await });
        let response = response.unwrap_or_else(|error| panic!("{client} to {server}, {family:?}: {error}"));
        assert_eq!((response.status, response.body.len()), (200, BODY_BYTES));
        let seen: std::net::SocketAddr = response.source.parse().expect("an address");
        assert_eq!(
            seen.ip(),
            world.pod(client).addresses.of(family),
            "the server saw {seen}"
        );
    }
}

#[test]
fn a_pod_outside_the_mesh_reaches_a_pod_inside_in_plaintext() {
    let world = two_nodes();
    assert_plain_call(&world, "stranger", "server");
    let record = world.nodes[1]
        .proxy()
        .logs
        .wait_for_access("the plaintext connection", |record| {
            record.field("direction") == "inbound" && record.message == "connection complete"
        });
    let record = record.expect("a record");
    assert_eq!(record.field("src.identity"), "", "{record:?}");
    assert_eq!(record.field("dst.workload"), "server", "{record:?}");
}

#[test]
fn a_pod_inside_the_mesh_reaches_an_address_that_nobody_knows() {
    let world = two_nodes();
    assert_plain_call(&world, "client", "stranger");
    let record = world.nodes[0]
        .proxy()
        .logs
        .wait_for_access("the passthrough", |record| {
            record.field("direction") == "outbound" && record.message == "connection complete"
        });
    let record = record.expect("a record");
    assert_eq!(record.field("src.workload"), "client", "{record:?}");
    assert_eq!(record.field("dst.identity"), "", "{record:?}");
    assert_eq!(record.field("dst.hbone_addr"), "", "{record:?}");
}

#[test]
fn a_known_workload_without_a_proxy_is_called_in_plaintext() {
    let plain = PodSpec::new("plain", 1).membership(Membership::KnownPlain);
    let world = start(plan().pod(plain));
    assert_plain_call(&world, "client", "plain");
    assert_plain_call(&world, "plain", "server");
}

#[test]
fn an_address_without_a_route_fails_and_harms_nobody_else() {
    let world = two_nodes();
    for family in Family::BOTH {
        let target = std::net::SocketAddr::new(nobody().of(family), 80);
        let failed = world
            .pod("client")
            .run(async move { http::get(target, "/").await });
        assert!(failed.is_err(), "{failed:?}");
    }
    assert_plain_call(&world, "client", "server");
}
