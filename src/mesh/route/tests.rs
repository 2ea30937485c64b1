//! The outbound decision step by step. Each step of the contract (data-plane.md sections 6 to 8) and its tests, here
//! and in the files below:
//!
//! | step | tests |
//! |---|---|
//! | 5.2 captured ports on loopback | `captured_ports_on_loopback_...` |
//! | 6.1 workload first, then service | `an_address_that_is_workload_and_service_...`, `a_service_that_only_its_own_namespace_...` |
//! | 6.2 a: waypoint unknown | `an_unknown_waypoint_...`, `a_waypoint_whose_service_is_passthrough_...` |
//! | 6.2 b: waypoint of another network | `networks` |
//! | 6.2 c: through the waypoint | `a_service_with_a_waypoint_...`, `weighted_waypoints_...`, `weights_of_zero_...` |
//! | 6.3 service first, then workload | `a_service_address_leads_...`, `the_ports_of_an_endpoint_...`, `a_named_port_...` |
//! | 6.4 a: no healthy upstream | `a_service_without_a_usable_endpoint_...`, `a_port_the_service_does_not_have_...`, `strict_locality_...` |
//! | 6.4 b: passed through | `an_unknown_address_...`, `a_passthrough_service_...`, `the_address_of_a_node_...` |
//! | 6.5 another network | `a_workload_of_the_nodes_network_that_...`, `networks` |
//! | 6.6 from the waypoint | `a_connection_from_the_waypoint_...`, `the_identity_of_a_waypoint_alone_...`, `loops` |
//! | 6.7 waypoint of a workload | `a_waypoint_may_be_a_workload_...`, `a_service_call_ignores_the_waypoint_...` |
//! | 6.8 direct | `an_hbone_pod_...`, `a_plain_workload_...`, `a_workload_that_takes_tunnels_by_itself_...`, `a_pod_reaches_itself_...` |
//! | 6.9 gateways | `networks` |
//! | 7.3 endpoints | `balance/tests.rs` |
//! | 7.5 address | `the_address_family_follows_...` |
//! | 7.6 names | `names` |
//! | 8 references | `a_waypoint_port_that_its_service_lacks_...`, `networks` |

use super::*;
use crate::identity::Identity;
use crate::mesh::fixture::*;
use crate::mesh::{
    BalanceMode, Builder, DoubleHop, Hop, NetworkMode, Scope, TunnelProtocol, WeightedWaypoint, Workload,
};

mod captured;
mod loops;
mod names;
mod networks;

const CLIENT: &str = "10.0.0.1";

fn client() -> Workload {
    pod("client", CLIENT)
}

fn route(snapshot: &Snapshot, target: &str) -> Result<Plan, RouteError> {
    route_from(snapshot, "client", CLIENT, target)
}

fn route_from(snapshot: &Snapshot, name: &str, downstream: &str, target: &str) -> Result<Plan, RouteError> {
    let source = own(snapshot, name);
    let decision = snapshot.route(&source, ip(downstream), socket(target), &mut counting());
    decision.map(plan)
}

fn own(snapshot: &Snapshot, name: &str) -> Arc<Workload> {
    let found = snapshot.own_workload(name, "shop", name);
    found.expect("the source is local").clone()
}

fn plan(decision: Decision) -> Plan {
    match decision {
        Decision::Go(plan) => plan,
        Decision::Resolve(unresolved) => panic!("{} has to be resolved", unresolved.hostname),
    }
}

fn unresolved(snapshot: &Snapshot, target: &str) -> Unresolved {
    let decision = snapshot.route(
        &own(snapshot, "client"),
        ip(CLIENT),
        socket(target),
        &mut counting(),
    );
    match decision.expect("routed") {
        Decision::Go(plan) => panic!("resolved already: {plan:?}"),
        Decision::Resolve(unresolved) => unresolved,
    }
}

fn hbone(plan: &Plan) -> &Hop {
    match &plan.way {
        Way::Hbone(hop) => hop,
        other => panic!("not one HBONE session: {other:?}"),
    }
}

/// What CONNECT asks for.
fn authority(plan: &Plan) -> SocketAddr {
    hbone(plan).authority.address().expect("an address")
}

fn is_plain(plan: &Plan) -> bool {
    matches!(plan.way, Way::Tcp { .. })
}

fn error(snapshot: &Snapshot, target: &str) -> String {
    route(snapshot, target).expect_err("refused").to_string()
}

/// A waypoint service with its one pod, and its address.
fn with_waypoint() -> (Workload, Service) {
    let pod = behind(pod("wp", "10.0.0.9"), "wp", &[(15009, 15008)]);
    let service = Service {
        ports: ports(&[(15009, 15008)]),
        ..service("wp", "10.96.0.9")
    };
    (pod, service)
}

#[test]
fn an_hbone_pod_is_reached_through_its_tunnel_port() {
    let snapshot = mesh(vec![client(), pod("server", "10.0.0.2")], vec![], vec![]);
    let plan = route(&snapshot, "10.0.0.2:8080").expect("routed");
    assert_eq!(plan.way.next_hop(), socket("10.0.0.2:15008"));
    assert_eq!(authority(&plan), socket("10.0.0.2:8080"));
    assert_eq!(
        &*hbone(&plan).accepted,
        [Identity::new("cluster.local", "shop", "server")]
    );
    assert_eq!(&*plan.destination.expect("known").name, "server");
    assert!(plan.service.is_none());
}

#[test]
fn a_plain_workload_is_reached_directly() {
    let server = with(pod("server", "10.0.0.2"), |it| it.protocol = TunnelProtocol::Tcp);
    let snapshot = mesh(vec![client(), server], vec![], vec![]);
    let plan = route(&snapshot, "10.0.0.2:8080").expect("routed");
    assert!(is_plain(&plan));
    assert_eq!(plan.way.next_hop(), socket("10.0.0.2:8080"));
    assert_eq!(&*plan.destination.expect("known").name, "server");
}

#[test]
fn a_workload_that_takes_tunnels_by_itself_is_called_as_its_protocol_says() {
    for protocol in [TunnelProtocol::Tcp, TunnelProtocol::Hbone] {
        let server = |native_tunnel| {
            with(pod("server", "10.0.0.2"), |it| {
                it.native_tunnel = native_tunnel;
                it.protocol = protocol;
            })
        };
        let ways = [false, true].map(|native_tunnel| {
            let snapshot = mesh(vec![client(), server(native_tunnel)], vec![], vec![]);
            let plan = route(&snapshot, "10.0.0.2:8080").expect("routed");
            (is_plain(&plan), plan.way.next_hop())
        });
        assert_eq!(ways[0], ways[1]);
    }
}

#[test]
fn a_service_address_leads_to_an_endpoint_at_its_target_port() {
    let server = behind(pod("server", "10.0.0.2"), "web", &[]);
    let web = Service {
        subject_alt_names: vec!["spiffe://other/ns/a/sa/b".into(), "no identity".into()],
        ..service("web", "10.96.0.1")
    };
    let snapshot = mesh(vec![client(), server], vec![web], vec![]);
    let plan = route(&snapshot, "10.96.0.1:80").expect("routed");
    assert_eq!(plan.way.next_hop(), socket("10.0.0.2:15008"));
    assert_eq!(authority(&plan), socket("10.0.0.2:8080"));
    let own = Identity::new("cluster.local", "shop", "server");
    assert_eq!(&*hbone(&plan).accepted, [Identity::new("other", "a", "b"), own]);
    assert_eq!(&*plan.service.expect("known").name, "web");
}

#[test]
fn the_ports_of_an_endpoint_go_before_those_of_the_service() {
    let server = behind(pod("server", "10.0.0.2"), "web", &[(80, 9090)]);
    let snapshot = mesh(vec![client(), server], vec![service("web", "10.96.0.1")], vec![]);
    let plan = route(&snapshot, "10.96.0.1:80").expect("routed");
    assert_eq!(authority(&plan), socket("10.0.0.2:9090"));
}

#[test]
fn a_named_port_leads_only_to_endpoints_that_have_it() {
    let with = behind(pod("with", "10.0.0.2"), "web", &[(80, 9090)]);
    let without = behind(pod("without", "10.0.0.3"), "web", &[(81, 1)]);
    let web = Service {
        ports: ports(&[(80, 0)]),
        ..service("web", "10.96.0.1")
    };
    let snapshot = mesh(vec![client(), with, without], vec![web], vec![]);
    let source = own(&snapshot, "client");
    let mut random = counting();
    for _ in 0..4 {
        let plan = snapshot
            .route(&source, ip(CLIENT), socket("10.96.0.1:80"), &mut random)
            .map(self::plan)
            .expect("routed");
        assert_eq!(authority(&plan), socket("10.0.0.2:9090"));
    }
}

#[test]
fn a_service_without_a_usable_endpoint_is_refused() {
    let sick = Workload {
        status: crate::mesh::Health::Unhealthy,
        ..pod("server", "10.0.0.2")
    };
    let empty = mesh(vec![client()], vec![service("web", "10.96.0.1")], vec![]);
    let unhealthy = mesh(
        vec![client(), behind(sick, "web", &[])],
        vec![service("web", "10.96.0.1")],
        vec![],
    );
    for snapshot in [empty, unhealthy] {
        assert_eq!(
            error(&snapshot, "10.96.0.1:80"),
            "no healthy upstream: 10.96.0.1:80"
        );
    }
}

#[test]
fn a_port_the_service_does_not_have_is_refused() {
    let server = behind(pod("server", "10.0.0.2"), "web", &[]);
    let snapshot = mesh(vec![client(), server], vec![service("web", "10.96.0.1")], vec![]);
    assert_eq!(
        error(&snapshot, "10.96.0.1:81"),
        "no healthy upstream: 10.96.0.1:81"
    );
}

#[test]
fn an_unknown_address_passes_through() {
    let snapshot = mesh(vec![client()], vec![], vec![]);
    let plan = route(&snapshot, "192.0.2.1:443").expect("routed");
    assert!(is_plain(&plan));
    assert_eq!(plan.way.next_hop(), socket("192.0.2.1:443"));
    assert!(plan.destination.is_none() && plan.service.is_none());
}

#[test]
fn a_passthrough_service_passes_through_without_a_label() {
    let server = behind(pod("server", "10.0.0.2"), "web", &[]);
    let load_balancer = balancer(BalanceMode::Passthrough, &[]);
    let web = Service {
        load_balancer,
        ..service("web", "10.96.0.1")
    };
    let snapshot = mesh(vec![client(), server], vec![web], vec![]);
    let plan = route(&snapshot, "10.96.0.1:80").expect("routed");
    assert!(is_plain(&plan));
    assert_eq!(plan.way.next_hop(), socket("10.96.0.1:80"));
    assert!(plan.destination.is_none() && plan.service.is_none());
}

#[test]
fn the_address_of_a_node_is_not_that_of_a_pod_on_its_network() {
    let agent = with(pod("agent", "192.0.2.9"), |it| {
        it.network_mode = NetworkMode::HostNetwork
    });
    let web = service("web", "10.96.0.1");
    let snapshot = mesh(vec![client(), behind(agent, "web", &[])], vec![web], vec![]);
    let direct = route(&snapshot, "192.0.2.9:80").expect("routed");
    assert!(direct.destination.is_none());
    let as_endpoint = route(&snapshot, "10.96.0.1:80").expect("routed");
    assert_eq!(authority(&as_endpoint), socket("192.0.2.9:8080"));
}

#[test]
fn captured_ports_on_loopback_are_refused_and_elsewhere_not() {
    let snapshot = mesh(vec![client()], vec![], vec![]);
    for target in [
        "127.0.0.1:15001",
        "127.0.0.9:15006",
        "[::1]:15008",
        "[::ffff:127.0.0.1]:15001",
    ] {
        assert_eq!(
            error(&snapshot, target),
            "attempted recursive call to ourselves",
            "{target}"
        );
    }
    for target in ["127.0.0.1:15053", "192.0.2.1:15001"] {
        assert!(route(&snapshot, target).is_ok(), "{target}");
    }
}

#[test]
fn an_address_that_is_workload_and_service_is_balanced_but_skips_the_waypoint() {
    let (wp, wp_service) = with_waypoint();
    let owner = behind(pod("owner", "10.0.0.2"), "web", &[]);
    let web = Service {
        waypoint: waypoint("shop/wp.shop", 15009),
        ..service("web", "10.0.0.2")
    };
    let snapshot = mesh(vec![client(), wp, owner], vec![web, wp_service], vec![]);
    let plan = route(&snapshot, "10.0.0.2:80").expect("routed");
    assert_eq!(authority(&plan), socket("10.0.0.2:8080"));
    assert_eq!(&*plan.service.expect("balanced").name, "web");
}

#[test]
fn a_service_with_a_waypoint_is_called_through_it() {
    let (wp, wp_service) = with_waypoint();
    let server = behind(pod("server", "10.0.0.2"), "web", &[]);
    let web = Service {
        waypoint: waypoint("shop/wp.shop", 15009),
        ..service("web", "10.96.0.1")
    };
    let snapshot = mesh(vec![client(), wp, server], vec![web, wp_service], vec![]);
    // Port 81 does not exist: that is for the waypoint to find out.
    for target in ["10.96.0.1:80", "10.96.0.1:81"] {
        let plan = route(&snapshot, target).expect("routed");
        assert_eq!(plan.way.next_hop(), socket("10.0.0.9:15008"));
        assert_eq!(authority(&plan), socket(target));
        assert_eq!(
            &*hbone(&plan).accepted,
            [Identity::new("cluster.local", "shop", "wp")]
        );
        assert_eq!(&*plan.destination.expect("known").name, "wp");
        assert_eq!(&*plan.service.expect("known").name, "web");
    }
}

#[test]
fn weighted_waypoints_share_the_connections() {
    let (wp, wp_service) = with_waypoint();
    let other = pod("other", "10.0.0.8");
    let choice = |target, port, weight| WeightedWaypoint {
        destination: *waypoint(target, port).expect("given"),
        weight,
    };
    let weighted = vec![
        choice("shop/wp.shop", 15009, 3),
        choice("net1/10.0.0.8", 15008, 1),
        choice("net1/192.0.2.1", 1, 0),
    ];
    let web = Service {
        weighted_waypoints: weighted,
        ..service("web", "10.96.0.1")
    };
    let snapshot = mesh(vec![client(), wp, other], vec![web, wp_service], vec![]);
    let source = own(&snapshot, "client");
    let mut hits = std::collections::HashMap::new();
    for at in 0..400u64 {
        // The first draw chooses the waypoint, the second its endpoint.
        let plan = snapshot
            .route(&source, ip(CLIENT), socket("10.96.0.1:80"), &mut || at)
            .map(self::plan)
            .expect("routed");
        assert!(plan.drawn.is_some(), "there is another one");
        *hits.entry(plan.way.next_hop()).or_insert(0) += 1;
    }
    assert_eq!(hits[&socket("10.0.0.9:15008")], 300);
    assert_eq!(hits[&socket("10.0.0.8:15008")], 100);
}

#[test]
fn weights_of_zero_fall_back_to_the_single_waypoint() {
    let (wp, wp_service) = with_waypoint();
    let nowhere = waypoint("net1/192.0.2.1", 1).expect("given");
    let web = Service {
        weighted_waypoints: vec![WeightedWaypoint {
            destination: *nowhere,
            weight: 0,
        }],
        waypoint: waypoint("net1/10.96.0.9", 15009),
        ..service("web", "10.96.0.1")
    };
    let snapshot = mesh(vec![client(), wp], vec![web, wp_service], vec![]);
    assert_eq!(
        route(&snapshot, "10.96.0.1:80").expect("routed").way.next_hop(),
        socket("10.0.0.9:15008")
    );
}

#[test]
fn an_unknown_waypoint_is_refused_and_never_bypassed() {
    for target in ["shop/nobody.shop", "net1/192.0.2.1"] {
        let server = behind(pod("server", "10.0.0.2"), "web", &[]);
        let web = Service {
            waypoint: waypoint(target, 15008),
            ..service("web", "10.96.0.1")
        };
        let snapshot = mesh(vec![client(), server], vec![web], vec![]);
        assert_eq!(
            error(&snapshot, "10.96.0.1:80"),
            format!("unknown waypoint: {target}:15008")
        );
    }
}

#[test]
fn a_waypoint_whose_service_is_passthrough_is_unknown() {
    let (wp, wp_service) = with_waypoint();
    let wp_service = Service {
        load_balancer: balancer(BalanceMode::Passthrough, &[]),
        ..wp_service
    };
    let server = with(pod("server", "10.0.0.2"), |it| {
        it.waypoint = waypoint("net1/10.96.0.9", 15009)
    });
    let snapshot = mesh(vec![client(), wp, server], vec![wp_service], vec![]);
    assert_eq!(
        error(&snapshot, "10.0.0.2:80"),
        "unknown waypoint: net1/10.96.0.9:15009"
    );
}

#[test]
fn a_waypoint_may_be_a_workload_by_address_or_hostname() {
    for target in ["net1/10.0.0.9", "shop/wp.example"] {
        let wp = Workload {
            hostname: "wp.example".into(),
            ..pod("wp", "10.0.0.9")
        };
        let server = with(pod("server", "10.0.0.2"), |it| {
            it.waypoint = waypoint(target, 15008)
        });
        let snapshot = mesh(vec![client(), wp, server], vec![], vec![]);
        let plan = route(&snapshot, "10.0.0.2:80").expect("routed");
        assert_eq!(plan.way.next_hop(), socket("10.0.0.9:15008"), "{target}");
        assert_eq!(authority(&plan), socket("10.0.0.2:80"), "{target}");
        assert!(plan.service.is_none(), "{target}");
    }
}

#[test]
fn a_waypoint_port_that_its_service_lacks_is_served_by_an_application_tunnel() {
    use crate::mesh::{ApplicationProtocol, ApplicationTunnel};
    let tunnel = Some(ApplicationTunnel {
        protocol: ApplicationProtocol::Proxy,
        port: Some(15088),
    });
    let wp = with(behind(pod("wp", "10.0.0.9"), "wp", &[]), |it| {
        it.application_tunnel = tunnel
    });
    let plain = behind(pod("plain", "10.0.0.8"), "wp", &[]);
    let server = with(pod("server", "10.0.0.2"), |it| {
        it.waypoint = waypoint("shop/wp.shop", 15008)
    });
    let snapshot = mesh(
        vec![client(), wp, plain, server],
        vec![service("wp", "10.96.0.9")],
        vec![],
    );
    assert_eq!(
        route(&snapshot, "10.0.0.2:80").expect("routed").way.next_hop(),
        socket("10.0.0.9:15008")
    );
}

#[test]
fn a_service_call_ignores_the_waypoint_of_the_chosen_workload() {
    let (wp, wp_service) = with_waypoint();
    let server = with(pod("server", "10.0.0.2"), |it| {
        it.waypoint = waypoint("shop/wp.shop", 15009)
    });
    let services = vec![service("web", "10.96.0.1"), wp_service];
    let snapshot = mesh(vec![client(), wp, behind(server, "web", &[])], services, vec![]);
    let plan = route(&snapshot, "10.96.0.1:80").expect("routed");
    assert_eq!(authority(&plan), socket("10.0.0.2:8080"));
}

#[test]
fn a_connection_from_the_waypoint_is_not_sent_to_it_again() {
    for target in ["shop/wp.shop", "net1/10.96.0.9", "net1/10.0.0.9"] {
        let (wp, wp_service) = with_waypoint();
        let port = if target.ends_with("10.0.0.9") {
            15008
        } else {
            15009
        };
        let server = with(pod("server", "10.0.0.2"), |it| {
            it.waypoint = waypoint(target, port)
        });
        let snapshot = mesh(vec![client(), wp, server], vec![wp_service], vec![]);
        let from_waypoint = route_from(&snapshot, "wp", "10.0.0.9", "10.0.0.2:80").expect("routed");
        assert_eq!(from_waypoint.way.next_hop(), socket("10.0.0.2:15008"), "{target}");
        let from_client = route(&snapshot, "10.0.0.2:80").expect("routed");
        assert_eq!(from_client.way.next_hop(), socket("10.0.0.9:15008"), "{target}");
    }
}

#[test]
fn the_identity_of_a_waypoint_alone_does_not_bypass_it() {
    let (wp, wp_service) = with_waypoint();
    let impostor = Workload {
        addresses: [ip("10.0.0.7")].into(),
        ..Workload {
            uid: "c1//Pod/shop/wp-impostor".into(),
            name: "impostor".into(),
            ..wp.clone()
        }
    };
    let impostor = with(impostor, |it| it.services = [].into());
    let server = with(pod("server", "10.0.0.2"), |it| {
        it.waypoint = waypoint("shop/wp.shop", 15009)
    });
    let snapshot = mesh(vec![wp, impostor, server], vec![wp_service], vec![]);
    let source = snapshot
        .own_workload("impostor", "shop", "wp")
        .expect("local")
        .clone();
    let plan = snapshot.route(&source, ip("10.0.0.7"), socket("10.0.0.2:80"), &mut counting());
    let next_hop = plan.map(self::plan).expect("routed").way.next_hop();
    assert_eq!(next_hop, socket("10.0.0.9:15008"));
}

#[test]
fn a_workload_of_the_nodes_network_that_the_source_is_not_on_has_no_service() {
    // The source claims another network than the node's; the address is a workload's there.
    let source = with(client(), |it| it.network = "net2".into());
    let server = with(pod("server", "10.0.0.2"), |it| it.network = "net2".into());
    let snapshot = mesh(vec![source, server], vec![], vec![]);
    assert_eq!(
        route(&snapshot, "10.0.0.2:80")
            .expect("same network")
            .way
            .next_hop(),
        socket("10.0.0.2:15008")
    );
    let web = Service {
        vips: vec!["net2/10.96.0.1".parse().expect("vip")],
        ..service("web", "10.96.0.1")
    };
    let far = behind(pod("far", "10.0.0.3"), "web", &[]);
    let source = with(client(), |it| it.network = "net2".into());
    let snapshot = mesh(vec![source, far], vec![web], vec![]);
    assert_eq!(
        error(&snapshot, "10.96.0.1:80"),
        "no service for target address: 10.96.0.1:80"
    );
}

#[test]
fn the_address_family_follows_the_call_within_what_the_service_has() {
    use crate::mesh::IpFamilies;
    for (families, vip, chosen) in [
        (IpFamilies::Automatic, "10.96.0.1", "10.0.0.2:8080"),
        (IpFamilies::Automatic, "fd00::96", "[fd00::2]:8080"),
        (IpFamilies::Dual, "fd00::96", "[fd00::2]:8080"),
        (IpFamilies::V4, "fd00::96", "10.0.0.2:8080"),
        (IpFamilies::V6, "10.96.0.1", "[fd00::2]:8080"),
    ] {
        let server = Workload {
            addresses: [ip("10.0.0.2"), ip("fd00::2")].into(),
            ..pod("server", "10.0.0.2")
        };
        let web = Service {
            ip_families: families,
            ..service("web", vip)
        };
        let snapshot = mesh(vec![client(), behind(server, "web", &[])], vec![web], vec![]);
        let target = std::net::SocketAddr::new(ip(vip), 80).to_string();
        let plan = route(&snapshot, &target).expect("routed");
        assert_eq!(authority(&plan), socket(chosen), "{families:?} {vip}");
    }
}

#[test]
fn a_service_that_only_its_own_namespace_may_see_is_unknown_to_others() {
    let server = behind(pod("server", "10.0.0.2"), "web", &[]);
    let web = Service {
        visibility: crate::mesh::Visibility::Namespace,
        ..service("web", "10.96.0.1")
    };
    let stranger = pod_in("other", "stranger", "10.0.0.7");
    let snapshot = mesh(vec![client(), stranger, server], vec![web], vec![]);
    assert!(
        route(&snapshot, "10.96.0.1:80")
            .expect("routed")
            .service
            .is_some()
    );
    let source = snapshot
        .own_workload("stranger", "other", "stranger")
        .expect("local")
        .clone();
    let plan = snapshot.route(&source, ip("10.0.0.7"), socket("10.96.0.1:80"), &mut counting());
    assert!(
        plan.map(self::plan)
            .expect("passed through")
            .destination
            .is_none()
    );
}

#[test]
fn strict_locality_without_a_match_is_refused() {
    let server = behind(pod("server", "10.0.0.2").on_node("node-b"), "web", &[]);
    let load_balancer = balancer(BalanceMode::Strict, &[Scope::Node]);
    let web = Service {
        load_balancer,
        ..service("web", "10.96.0.1")
    };
    let snapshot = mesh(vec![client(), server], vec![web], vec![]);
    assert_eq!(
        error(&snapshot, "10.96.0.1:80"),
        "no healthy upstream: 10.96.0.1:80"
    );
}

#[test]
fn a_pod_reaches_itself_like_any_other() {
    let snapshot = mesh(vec![client()], vec![], vec![]);
    let plan = route(&snapshot, "10.0.0.1:80").expect("routed");
    assert_eq!(plan.way.next_hop(), socket("10.0.0.1:15008"));
}

#[test]
fn no_connection_allocates_a_set_of_identities() {
    let mut builder = Builder::new(locale());
    builder.insert_workload(client());
    builder.insert_workload(pod("server", "10.0.0.2"));
    let snapshot = builder.build();
    let first = route(&snapshot, "10.0.0.2:80").expect("routed");
    let second = route(&snapshot, "10.0.0.2:81").expect("routed");
    assert!(Arc::ptr_eq(&hbone(&first).accepted, &hbone(&second).accepted));
}
