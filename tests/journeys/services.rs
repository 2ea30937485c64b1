//! Which service an address belongs to where ranges of addresses overlap, and which endpoints of a service take its
//! connections: by scope, in either mode, and by health.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uztunnel_rig::applications::Server;
use uztunnel_rig::istiod::messages::workload::WorkloadStatus;
use uztunnel_rig::istiod::messages::workload::load_balancing::{HealthPolicy, Mode, Scope};
use uztunnel_rig::istiod::{ADDRESS, Resource};
use uztunnel_rig::{Blueprint, ControlPlane, Family, PodSpec, ServiceSpec, World, topology, wait_until};

use crate::setup::{HTTP_PORT, exchange, plan, start, wait_for_error, workload};

/// Connections that all have to go one way. Between two endpoints chance does that once in 2^16 runs.
const CALLS: usize = 16;

const PORTS: [(u16, u16); 1] = [(HTTP_PORT, HTTP_PORT)];

/// What istiod makes of `trafficDistribution: PreferSameZone`, and of `internalTrafficPolicy: Local`.
const SAME_ZONE: [Scope; 3] = [Scope::Network, Scope::Region, Scope::Zone];
const SAME_NODE: [Scope; 1] = [Scope::Node];

const HERE: [&str; 3] = ["north", "north-1", ""];
const NEAR: [&str; 3] = ["north", "north-2", ""];
const FAR: [&str; 3] = ["south", "south-1", ""];

/// Says where these pods are.
fn place(blueprint: &mut Blueprint, pods: &[(&str, [&str; 3])]) {
    for (pod, locality) in pods {
        let position = blueprint.position(pod);
        blueprint.pods[position].locality = locality.map(str::to_owned);
    }
}

/// Servers that say whose they are.
fn serve_names<const N: usize>(world: &World, pods: [&str; N]) -> [Server; N] {
    pods.map(|pod| {
        let name = pod.to_owned();
        world.pod(pod).serve(HTTP_PORT, move |mut stream, _| {
            let name = name.clone();
            async move {
                stream.read_to_end(&mut Vec::new()).await?;
                stream.write_all(name.as_bytes()).await
            }
        })
    })
}

/// The pod that answers a call of `client`; nobody's name where it is refused.
fn answerer(world: &World, target: SocketAddr) -> String {
    let (answer, _) = exchange(world.pod("client"), target);
    String::from_utf8(answer).expect("a name")
}

fn assert_all_answered_by(pod: &str, world: &World, target: SocketAddr) {
    for _ in 0..CALLS {
        assert_eq!(answerer(world, target), pod, "{target}");
    }
}

/// Waits until the calls that `before` answers are answered by `after`, and by nobody else on the way.
fn wait_for_change(world: &World, target: SocketAddr, before: &str, after: &str) {
    wait_until(&format!("{after:?} instead of {before:?}"), || {
        let pod = answerer(world, target);
        assert!(pod == before || pod == after, "{pod:?} answers");
        (pod == after).then_some(())
    });
    assert_all_answered_by(after, world, target);
}

/// Beside the usual pods two services with overlapping ranges of addresses, `wide` before `server` and `narrow` before
/// `cart`. The addresses around the ranges, and also those within, are the stranger's, whom the mesh does not know.
fn with_ranges(control_plane: ControlPlane) -> World {
    let wide = ServiceSpec::new("wide", &PORTS, &["server"])
        .range("198.18.2.144/28")
        .range("198.18.240.0/24")
        .range("fd00:198:18:2:8100::/80");
    let narrow = ServiceSpec::new("narrow", &PORTS, &["cart"])
        .range("198.18.2.152/30")
        .range("fd00:198:18:2:8100:ab::/96");
    let blueprint = plan().control_plane(control_plane);
    let world = start(blueprint.service(wide).service(narrow));
    let stranger = world.pod("stranger");
    let (v4, v6) = (stranger.addresses.v4, stranger.addresses.v6);
    let link = format!("pod{}", world.blueprint.position("stranger"));
    let to_stranger = format!(
        "route add 198.18.2.128/25 via {v4} dev {link}\n\
         -6 route add fd00:198:18:2:8000::/65 via {v6} dev {link}\n"
    );
    topology::batch(&world.nodes[1].namespace, &to_stranger).expect("routes");
    let all_its_own =
        "route add local 198.18.2.128/25 dev lo\n-6 route add local fd00:198:18:2:8000::/65 dev lo\n";
    topology::batch(&stranger.namespace, all_its_own).expect("routes");
    world
}

fn at(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), HTTP_PORT)
}

#[test]
fn a_service_has_every_address_of_its_range_but_those_that_another_service_has_more_exactly() {
    let world = with_ranges(plan().control_plane);
    let _servers = serve_names(&world, ["server", "cart", "stranger"]);
    for (ip, pod) in [
        ("198.18.2.143", "stranger"),
        ("198.18.2.144", "server"),
        ("198.18.2.151", "server"),
        ("198.18.2.152", "cart"),
        ("198.18.2.155", "cart"),
        ("198.18.2.156", "server"),
        ("198.18.2.159", "server"),
        ("198.18.2.160", "stranger"),
        ("fd00:198:18:2:80ff:ffff:ffff:ffff", "stranger"),
        ("fd00:198:18:2:8100::", "server"),
        ("fd00:198:18:2:8100:aa:ffff:ffff", "server"),
        ("fd00:198:18:2:8100:ab::", "cart"),
        ("fd00:198:18:2:8100:ab:ffff:ffff", "cart"),
        ("fd00:198:18:2:8100:ac::", "server"),
        ("fd00:198:18:2:8100:ffff:ffff:ffff", "server"),
        ("fd00:198:18:2:8101::", "stranger"),
        ("198.18.240.200", "server"),
    ] {
        assert_eq!(answerer(&world, at(ip)), pod, "{ip}");
    }
    // An address of its own, in the middle of the other's range.
    assert_eq!(
        answerer(&world, world.service("narrow", Family::V4, HTTP_PORT)),
        "cart"
    );
    let logs = &world.nodes[0].proxy().logs;
    for (service, pod) in [("wide", "server"), ("narrow", "cart"), ("", "")] {
        let hostname = match service {
            "" => String::new(),
            name => format!("{name}.shop.svc.cluster.local"),
        };
        logs.wait_for_access(service, |record| {
            record.message == "connection complete"
                && record.field("dst.service") == hostname
                && record.field("dst.workload") == pod
        })
        .expect("a record");
    }
}

#[test]
fn an_address_goes_to_the_next_wider_range_when_its_service_goes_and_at_last_where_it_says() {
    let world = with_ranges(ControlPlane::Istiod);
    let _servers = serve_names(&world, ["server", "cart", "stranger"]);
    let (istiod, target) = (world.istiod(), at("198.18.2.153"));
    assert_eq!(answerer(&world, target), "cart");
    let [narrow, wide] = ["narrow", "wide"].map(|name| format!("shop/{name}.shop.svc.cluster.local"));
    let removed = istiod.held(ADDRESS, &narrow).expect("the service");
    istiod.remove(ADDRESS, &[&narrow]);
    wait_for_change(&world, target, "cart", "server");
    istiod.remove(ADDRESS, &[&wide]);
    wait_for_change(&world, target, "server", "stranger");
    // With its endpoint, as istiod sends both.
    istiod.update(ADDRESS, vec![removed, workload(istiod, "cart")]);
    wait_for_change(&world, target, "stranger", "cart");
}

fn sick(resource: &Resource) -> Resource {
    resource.changed(|workload| workload.status = WorkloadStatus::Unhealthy.into())
}

#[test]
fn the_nearest_endpoints_take_all_connections_and_the_next_ones_while_those_are_away() {
    let service = ServiceSpec::new("bank", &PORTS, &["cart", "server", "far"]);
    let mut blueprint = plan()
        .control_plane(ControlPlane::Istiod)
        .pod(PodSpec::new("far", 0).locality(FAR))
        .service(service.balancing(Mode::Failover, &SAME_ZONE, HealthPolicy::OnlyHealthy));
    place(
        &mut blueprint,
        &[("client", HERE), ("cart", HERE), ("server", NEAR)],
    );
    let world = start(blueprint);
    let _servers = serve_names(&world, ["cart", "server", "far"]);
    let (istiod, target) = (world.istiod(), world.service("bank", Family::V4, HTTP_PORT));
    let [cart, server] = ["cart", "server"].map(|pod| workload(istiod, pod));
    assert_all_answered_by("cart", &world, target);
    istiod.update(ADDRESS, vec![sick(&cart)]);
    wait_for_change(&world, target, "cart", "server");
    // No longer an endpoint at all.
    let elsewhere = server.changed(|workload| workload.services.clear());
    istiod.update(ADDRESS, vec![elsewhere]);
    wait_for_change(&world, target, "server", "far");
    istiod.update(ADDRESS, vec![server]);
    wait_for_change(&world, target, "far", "server");
    istiod.update(ADDRESS, vec![cart]);
    wait_for_change(&world, target, "server", "cart");
}

#[test]
fn the_next_endpoints_take_what_the_nearest_refuse_before_the_mesh_knows_that_those_are_away() {
    let service = ServiceSpec::new("bank", &PORTS, &["cart", "server"]);
    let mut blueprint =
        plan().service(service.balancing(Mode::Failover, &SAME_ZONE, HealthPolicy::OnlyHealthy));
    place(
        &mut blueprint,
        &[("client", HERE), ("cart", HERE), ("server", FAR)],
    );
    let world = start(blueprint);
    // Nobody listens at the one in the same zone.
    let _servers = serve_names(&world, ["server"]);
    let target = world.service("bank", Family::V4, HTTP_PORT);
    assert_all_answered_by("server", &world, target);
    // Found out by those who call, without a word of the mesh.
    let _nearest = serve_names(&world, ["cart"]);
    wait_for_change(&world, target, "server", "cart");
}

#[test]
fn an_unhealthy_endpoint_that_is_nearest_takes_all_connections_if_the_service_wants_it() {
    let of = |name, health_policy| {
        ServiceSpec::new(name, &PORTS, &["sick", "server"]).balancing(
            Mode::Failover,
            &SAME_ZONE,
            health_policy,
        )
    };
    let mut blueprint = plan()
        .pod(PodSpec::new("sick", 1).locality(HERE))
        .service(of("any", HealthPolicy::AllowAll))
        .service(of("healthy", HealthPolicy::OnlyHealthy));
    place(&mut blueprint, &[("client", HERE)]);
    blueprint.unhealthy.push("sick".to_owned());
    let world = start(blueprint);
    let _servers = serve_names(&world, ["sick", "server"]);
    for (service, pod) in [("any", "sick"), ("healthy", "server")] {
        assert_all_answered_by(pod, &world, world.service(service, Family::V4, HTTP_PORT));
    }
}

/// A service before these pods, and none but those on the node of who calls it.
fn of_the_node(endpoints: &[&str]) -> ServiceSpec {
    ServiceSpec::new("local", &PORTS, endpoints).balancing(
        Mode::Strict,
        &SAME_NODE,
        HealthPolicy::OnlyHealthy,
    )
}

#[test]
fn a_service_of_the_own_node_refuses_the_clients_of_nodes_where_it_has_no_endpoint() {
    let world = start(
        plan()
            .pod(PodSpec::new("neighbour", 1))
            .service(of_the_node(&["server"])),
    );
    let [server] = serve_names(&world, ["server"]);
    let targets = Family::BOTH.map(|family| world.service("local", family, HTTP_PORT));
    for target in targets {
        assert_all_answered_by("", &world, target);
        wait_for_error(&world, &format!("no healthy upstream: {target}"));
    }
    assert!(server.peers().is_empty(), "it is on another node");
    for target in targets {
        let (answer, _) = exchange(world.pod("neighbour"), target);
        assert_eq!(answer, b"server");
    }
}

#[test]
fn a_service_of_the_own_node_is_refused_there_while_its_endpoint_is_away_whoever_is_well_elsewhere() {
    let blueprint = plan().control_plane(ControlPlane::Istiod);
    let world = start(blueprint.service(of_the_node(&["cart", "server"])));
    let [elsewhere] = serve_names(&world, ["server"]);
    let (istiod, target) = (world.istiod(), world.service("local", Family::V4, HTTP_PORT));
    // It is in the mesh, but does not listen yet: another endpoint would be tried.
    assert_all_answered_by("", &world, target);
    let _servers = serve_names(&world, ["cart"]);
    assert_all_answered_by("cart", &world, target);
    let cart = workload(istiod, "cart");
    istiod.update(ADDRESS, vec![sick(&cart)]);
    wait_for_change(&world, target, "cart", "");
    wait_for_error(&world, &format!("no healthy upstream: {target}"));
    istiod.update(ADDRESS, vec![cart]);
    wait_for_change(&world, target, "", "cart");
    assert!(elsewhere.peers().is_empty(), "it is on another node");
}
