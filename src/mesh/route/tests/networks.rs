//! Destinations on other networks: which gateway, who may answer on which of the two sessions, what is asked for.

use super::*;

const GATEWAY: &str = "net2/192.0.2.1";

/// A pod of the service `web` on `net2`. Nobody here can reach its address.
fn remote(name: &str, gateway: Option<Box<crate::mesh::GatewayAddress>>) -> Workload {
    with(behind(pod(name, "10.0.0.2"), "web", &[]), |it| {
        it.network = "net2".into();
        it.network_gateway = gateway;
    })
}

/// The gateway as its own network knows it: a workload by address.
fn gateway() -> Workload {
    with(pod("gateway", "192.0.2.1"), |it| it.network = "net2".into())
}

fn double(plan: &Plan) -> &DoubleHop {
    match &plan.way {
        Way::DoubleHbone(hop) => hop,
        other => panic!("not two HBONE sessions: {other:?}"),
    }
}

fn web() -> Service {
    Service {
        subject_alt_names: vec!["spiffe://other/ns/shop/sa/web".into()],
        ..service("web", "10.96.0.1")
    }
}

#[test]
fn a_service_on_another_network_is_reached_through_its_gateway_with_a_session_inside() {
    let snapshot = mesh(
        vec![client(), remote("far", waypoint(GATEWAY, 15008)), gateway()],
        vec![web()],
        vec![],
    );
    let plan = route(&snapshot, "10.96.0.1:80").expect("routed");
    let hop = double(&plan);
    assert_eq!(hop.outer.next_hop, socket("192.0.2.1:15008"));
    // The port of the service: what it means is for the other network to find out.
    assert_eq!(hop.outer.authority.to_string(), "web.shop:80");
    assert_eq!(
        &*hop.outer.accepted,
        [Identity::new("cluster.local", "shop", "gateway")]
    );
    assert_eq!(&*hop.inner_accepted, [Identity::new("other", "shop", "web")]);
    assert_eq!(&*hop.remote.name, "far");
    assert_eq!(&*plan.destination.expect("the gateway").name, "gateway");
    assert_eq!(&*plan.service.expect("called").name, "web");
}

#[test]
fn a_service_without_names_can_be_answered_for_by_nobody_on_another_network() {
    let web = service("web", "10.96.0.1");
    let snapshot = mesh(
        vec![client(), remote("far", waypoint(GATEWAY, 15008)), gateway()],
        vec![web],
        vec![],
    );
    let plan = route(&snapshot, "10.96.0.1:80").expect("routed");
    assert!(double(&plan).inner_accepted.is_empty());
}

#[test]
fn a_gateway_may_be_a_service_that_maps_its_port() {
    let gateway = with(behind(pod("gateway", "192.0.2.7"), "gw", &[]), |it| {
        it.network = "net2".into()
    });
    let gateways = Service {
        vips: vec![],
        ports: ports(&[(15009, 15008)]),
        subject_alt_names: vec!["spiffe://other/ns/istio-system/sa/gw".into()],
        ..service("gw", "10.96.0.9")
    };
    let snapshot = mesh(
        vec![client(), remote("far", waypoint("shop/gw.shop", 15009)), gateway],
        vec![web(), gateways],
        vec![],
    );
    let plan = route(&snapshot, "10.96.0.1:80").expect("routed");
    let hop = double(&plan);
    assert_eq!(hop.outer.next_hop, socket("192.0.2.7:15008"));
    let own = Identity::new("cluster.local", "shop", "gateway");
    let named = Identity::new("other", "istio-system", "gw");
    assert_eq!(&*hop.outer.accepted, [named, own]);
}

#[test]
fn another_network_without_a_gateway_is_no_destination() {
    let snapshot = mesh(vec![client(), remote("far", None)], vec![web()], vec![]);
    assert_eq!(
        error(&snapshot, "10.96.0.1:80"),
        "no valid routing destination for workload: c1//Pod/shop/far"
    );
}

#[test]
fn an_unknown_gateway_is_refused_by_its_name() {
    let snapshot = mesh(
        vec![client(), remote("far", waypoint("shop/nobody.shop", 15008))],
        vec![web()],
        vec![],
    );
    assert_eq!(
        error(&snapshot, "10.96.0.1:80"),
        "unknown network gateway: shop/nobody.shop:15008"
    );
}

#[test]
fn a_workload_that_only_its_gateway_reaches_is_an_endpoint_for_other_networks() {
    let hidden = Workload {
        addresses: [].into(),
        ..remote("hidden", waypoint(GATEWAY, 15008))
    };
    let snapshot = mesh(vec![client(), hidden, gateway()], vec![web()], vec![]);
    let plan = route(&snapshot, "10.96.0.1:80").expect("routed");
    assert_eq!(double(&plan).outer.next_hop, socket("192.0.2.1:15008"));
}

#[test]
fn a_waypoint_on_another_network_is_reached_through_that_networks_gateway() {
    let wp = with(behind(pod("wp", "10.0.0.9"), "wp", &[]), |it| {
        it.network = "net2".into();
        it.network_gateway = waypoint(GATEWAY, 15008);
    });
    let waypoints = Service {
        ports: ports(&[(15008, 15008)]),
        subject_alt_names: vec!["spiffe://other/ns/shop/sa/wp".into()],
        ..service("wp", "10.96.0.9")
    };
    let web = Service {
        waypoint: waypoint("shop/wp.shop", 15008),
        ..web()
    };
    let snapshot = mesh(vec![client(), wp, gateway()], vec![web, waypoints], vec![]);
    let plan = route(&snapshot, "10.96.0.1:80").expect("routed");
    let hop = double(&plan);
    assert_eq!(hop.outer.authority.to_string(), "web.shop:80");
    // Who answers inside is the waypoint.
    assert_eq!(&*hop.inner_accepted, [Identity::new("other", "shop", "wp")]);
    assert_eq!(&*hop.remote.name, "wp");
}

#[test]
fn the_waypoint_of_a_workload_is_dialled_whatever_its_network() {
    let wp = with(pod("wp", "10.0.0.9"), |it| it.network = "net2".into());
    let server = with(pod("server", "10.0.0.2"), |it| {
        it.waypoint = waypoint("net2/10.0.0.9", 15008)
    });
    let snapshot = mesh(vec![client(), wp, server], vec![], vec![]);
    let plan = route(&snapshot, "10.0.0.2:80").expect("routed");
    assert_eq!(hbone(&plan).next_hop, socket("10.0.0.9:15008"));
}

#[test]
fn the_waypoint_of_a_workload_is_dialled_also_where_a_service_has_the_workloads_address() {
    let wp = with(pod("wp", "10.0.0.9"), |it| it.network = "net2".into());
    let server = with(behind(pod("server", "10.0.0.2"), "web", &[]), |it| {
        it.waypoint = waypoint("net2/10.0.0.9", 15008)
    });
    let web = service("web", "10.0.0.2");
    let snapshot = mesh(vec![client(), wp, server], vec![web], vec![]);
    let plan = route(&snapshot, "10.0.0.2:80").expect("routed");
    assert_eq!(hbone(&plan).next_hop, socket("10.0.0.9:15008"));
    assert_eq!(&*plan.service.expect("balanced").name, "web");
    assert!(plan.drawn.is_some(), "another endpoint may have another waypoint");
}

#[test]
fn local_endpoints_are_preferred_where_the_service_says_so() {
    let load_balancer = balancer(BalanceMode::Failover, &[Scope::Network]);
    let web = Service {
        load_balancer,
        ..web()
    };
    let near = behind(pod("near", "10.0.0.3"), "web", &[]);
    let snapshot = mesh(
        vec![client(), remote("far", waypoint(GATEWAY, 15008)), near, gateway()],
        vec![web],
        vec![],
    );
    for at in 0..8 {
        let decision = snapshot.route(
            &own(&snapshot, "client"),
            ip(CLIENT),
            socket("10.96.0.1:80"),
            &mut || at,
        );
        let plan = decision.map(plan).expect("routed");
        assert_eq!(hbone(&plan).next_hop, socket("10.0.0.3:15008"));
    }
}
