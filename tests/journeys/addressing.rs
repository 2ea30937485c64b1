//! Where a connection goes: pod addresses, services, oneself, nobody; and as whom it arrives.

use uztunnel_rig::{Family, PodSpec, Redirect, ServiceSpec, World, http};

use crate::setup::{BODY_BYTES, HTTP_PORT, plan, serve_http, start, two_nodes, wait_for_error};
use crate::telemetry::sample;

/// Asks `server` from `client` by pod address on both families; the server must see the client's own address.
fn assert_reached_as_oneself(world: &World, client: &str, server: &str) {
    let _server = serve_http(world.pod(server));
    for family in Family::BOTH {
        let target = world.pod(server).address(family, HTTP_PORT);
        let response = world.pod(client).run(async move { http::get(target, "/").await });
        let response = response.unwrap_or_else(|error| panic!("{client} to {server}, {family:?}: {error}"));
        assert_eq!((response.status, response.body.len()), (200, BODY_BYTES));
        assert_source(world, client, family, &response.source);
    }
}

fn assert_source(world: &World, client: &str, family: Family, source: &str) {
    let seen: std::net::SocketAddr = source.parse().expect("an address");
    assert_eq!(
        seen.ip(),
        world.pod(client).addresses.of(family),
        "the server saw {source}"
    );
}

#[test]
fn http_of_1_kib_crosses_nodes_on_both_families_and_the_server_sees_the_clients_address() {
    assert_reached_as_oneself(&two_nodes(), "client", "server");
}

#[test]
fn http_of_1_kib_reaches_a_pod_of_the_same_node() {
    assert_reached_as_oneself(&two_nodes(), "client", "cart");
}

#[test]
fn http_crosses_nodes_under_the_iptables_rules_as_well() {
    assert_reached_as_oneself(&start(plan().redirect(Redirect::Iptables)), "client", "server");
}

#[test]
fn both_proxies_log_the_connection_with_both_identities() {
    let world = two_nodes();
    assert_reached_as_oneself(&world, "client", "server");
    for (node, direction) in [(0, "outbound"), (1, "inbound")] {
        for family in Family::BOTH {
            let record = world.nodes[node]
                .proxy()
                .logs
                .wait_for_access("the connection", |record| {
                    record.message == "connection complete"
                        && record.field("direction") == direction
                        && record
                            .field("src.addr")
                            .parse()
                            .is_ok_and(|source: std::net::SocketAddr| {
                                source.ip() == world.pod("client").addresses.of(family)
                            })
                });
            let record = record.expect("an access-log record");
            assert_eq!(record.level, "info", "{record:?}");
            assert_eq!(
                record.field("src.identity"),
                world.pod("client").identity(),
                "{record:?}"
            );
            assert_eq!(
                record.field("dst.identity"),
                world.pod("server").identity(),
                "{record:?}"
            );
            let tunnel = world.pod("server").address(family, 15008).to_string();
            assert_eq!(record.field("dst.addr"), tunnel, "{record:?}");
            let target = world.pod("server").address(family, HTTP_PORT).to_string();
            assert_eq!(record.field("dst.hbone_addr"), target, "{record:?}");
            assert_eq!(record.field("error"), "", "{record:?}");
        }
    }
}

#[test]
fn a_service_address_leads_to_its_endpoint_and_target_port() {
    let world = two_nodes();
    let server = serve_http(world.pod("server"));
    for family in Family::BOTH {
        let target = world.service("shop", family, 80);
        let response = world
            .pod("client")
            .run(async move { http::get(target, "/").await })
            .expect("a response");
        assert_eq!((response.status, response.body.len()), (200, BODY_BYTES));
        assert_source(&world, "client", family, &response.source);
    }
    assert_eq!(server.peers().len(), 2);
    let record = world.nodes[0]
        .proxy()
        .logs
        .wait_for_access("the service", |record| {
            record.field("dst.service") == "shop.shop.svc.cluster.local"
        });
    assert_eq!(record.expect("a record").field("dst.workload"), "server");
}

#[test]
fn a_service_spreads_over_its_healthy_endpoints_and_spares_the_unhealthy_one() {
    let mut blueprint = plan().pod(PodSpec::new("sick", 1)).service(ServiceSpec::new(
        "trio",
        &[(80, HTTP_PORT)],
        &["server", "cart", "sick"],
    ));
    blueprint.unhealthy.push("sick".to_owned());
    let world = start(blueprint);
    let servers = ["server", "cart", "sick"].map(|name| serve_http(world.pod(name)));
    let target = world.service("trio", Family::V4, 80);
    world.pod("client").run(async move {
        for _ in 0..64 {
            http::get(target, "/").await.expect("a response");
        }
    });
    let [server, cart, sick] = servers.map(|server| server.peers().len());
    assert_eq!(sick, 0);
    // 64 fair coins: fewer than 10 heads happens once in 10^9 runs.
    assert!(
        server >= 10 && cart >= 10 && server + cart == 64,
        "server {server}, cart {cart}"
    );
}

#[test]
fn a_pod_can_call_itself_by_address_and_through_its_service() {
    let world = two_nodes();
    assert_reached_as_oneself(&world, "server", "server");
    let _server = serve_http(world.pod("server"));
    for family in Family::BOTH {
        let target = world.service("shop", family, 80);
        let response = world
            .pod("server")
            .run(async move { http::get(target, "/").await });
        assert_eq!(response.expect("a response").body.len(), BODY_BYTES, "{family:?}");
    }
}

#[test]
fn a_port_where_nobody_listens_ends_the_connection_and_leaves_an_error_in_the_log() {
    let world = two_nodes();
    let target = world.pod("server").address(Family::V4, 9);
    let failed = world
        .pod("client")
        .run(async move { http::get(target, "/").await });
    assert!(failed.is_err(), "{failed:?}");
    let record = world.nodes[0]
        .proxy()
        .logs
        .wait_for_access("the failure", |record| record.level == "error");
    let record = record.expect("a record");
    assert!(record.field("error").contains("503"), "{record:?}");
}

#[test]
fn the_proxys_own_ports_are_no_way_into_a_loop() {
    let world = two_nodes();
    let _server = serve_http(world.pod("server"));
    for port in [15001, 15006] {
        for family in Family::BOTH {
            for client in ["client", "stranger", "server"] {
                let target = world.pod("server").address(family, port);
                let outcome = world.pod(client).run(async move {
                    let request = http::get(target, "/");
                    tokio::time::timeout(std::time::Duration::from_secs(15), request).await
                });
                let outcome = outcome.expect("an end within 15 s, not a loop");
                assert!(
                    outcome.is_err(),
                    "{client} to port {port} of {family:?}: {outcome:?}"
                );
            }
        }
    }
    let cpu_before_ns = world.proxies_cpu_ns().expect("readable");
    assert_reached_as_oneself_after_loops(&world);
    let spent_ms = (world.proxies_cpu_ns().expect("readable") - cpu_before_ns) / 1_000_000;
    assert!(
        spent_ms < 1_000,
        "the proxies burned {spent_ms} ms for two requests: something circles"
    );
}

/// An address that the mesh does not know: nobody but the listener itself can tell that the call is for it.
#[test]
fn a_pod_that_calls_the_proxys_listener_at_an_address_of_its_own_makes_no_loop() {
    const OWN: &str = "198.18.255.77";
    let world = two_nodes();
    let client = world.pod("client");
    let add = ["addr", "add", &format!("{OWN}/32"), "dev", "lo"];
    client.namespace.run_program("ip", &add, "").expect("an address");
    let descriptors = || world.nodes[0].proxy().descriptors().expect("readable");
    let before = descriptors();
    let target = format!("{OWN}:15001").parse().expect("an address");
    let outcome = client.run(async move {
        let request = http::get(target, "/");
        tokio::time::timeout(std::time::Duration::from_secs(15), request).await
    });
    outcome.expect("an end, not a loop").expect_err("nobody is there");
    assert!(descriptors() < before + 50, "{before}, and now {}", descriptors());
    wait_for_error(&world, "recursive call");
    let labels = ["reporter=\"source\"", "reason=\"recursive\""];
    assert_eq!(
        sample(&world, 0, "uztunnel_connections_refused_total", &labels),
        1
    );
}

fn assert_reached_as_oneself_after_loops(world: &World) {
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    for _ in 0..2 {
        world
            .pod("client")
            .run(async move { http::get(target, "/").await })
            .expect("a response");
    }
}
