//! Next hops that have only a host name, and what becomes of them once it was looked up.

use super::*;

/// Behind `web`, reachable by name alone.
fn external(protocol: TunnelProtocol) -> Workload {
    let external = with(pod("api", "10.0.0.2"), |it| {
        it.addresses = [].into();
        it.hostname = "api.example".into();
        it.protocol = protocol;
    });
    behind(external, "web", &[])
}

#[test]
fn a_workload_with_only_a_name_is_dialled_where_the_name_leads() {
    for (protocol, next_hop) in [
        (TunnelProtocol::Tcp, "192.0.2.5:8080"),
        (TunnelProtocol::Hbone, "192.0.2.5:15008"),
    ] {
        let web = vec![service("web", "10.96.0.1")];
        let snapshot = mesh(vec![client(), external(protocol)], web, vec![]);
        let unresolved = unresolved(&snapshot, "10.96.0.1:80");
        assert_eq!(&*unresolved.hostname, "api.example");
        assert!(!unresolved.prefers_ipv6);
        let plan = unresolved.with_address(ip("192.0.2.5"));
        assert_eq!(plan.way.next_hop(), socket(next_hop));
        if protocol == TunnelProtocol::Hbone {
            assert_eq!(authority(&plan), socket("192.0.2.5:8080"));
        }
        assert_eq!(&*plan.destination.expect("known").name, "api");
        assert_eq!(&*plan.service.expect("called").name, "web");
    }
}

#[test]
fn records_of_the_family_of_the_call_are_preferred() {
    let web = vec![service("web", "fd00::96")];
    let snapshot = mesh(vec![client(), external(TunnelProtocol::Tcp)], web, vec![]);
    let unresolved = unresolved(&snapshot, "[fd00::96]:80");
    assert!(unresolved.prefers_ipv6);
    let plan = unresolved.with_address(ip("::ffff:192.0.2.5"));
    assert_eq!(plan.way.next_hop(), socket("192.0.2.5:8080"));
}

#[test]
fn a_name_is_not_looked_up_where_an_address_is_usable() {
    let both = Workload {
        addresses: [ip("10.0.0.2")].into(),
        ..external(TunnelProtocol::Hbone)
    };
    let web = vec![service("web", "10.96.0.1")];
    let snapshot = mesh(vec![client(), both], web, vec![]);
    let plan = route(&snapshot, "10.96.0.1:80").expect("routed");
    assert_eq!(authority(&plan), socket("10.0.0.2:8080"));
}

#[test]
fn a_waypoint_may_have_only_a_name() {
    let wp = Workload {
        addresses: [].into(),
        hostname: "wp.example".into(),
        ..pod("wp", "10.0.0.9")
    };
    let server = with(pod("server", "10.0.0.2"), |it| {
        it.waypoint = waypoint("shop/wp.example", 15009)
    });
    let snapshot = mesh(vec![client(), wp, server], vec![], vec![]);
    let plan = unresolved(&snapshot, "10.0.0.2:80").with_address(ip("192.0.2.5"));
    assert_eq!(hbone(&plan).next_hop, socket("192.0.2.5:15009"));
    assert_eq!(authority(&plan), socket("10.0.0.2:80"));
}

#[test]
fn a_gateway_may_have_only_a_name() {
    let gateway = with(pod("gateway", "10.0.0.9"), |it| {
        it.addresses = [].into();
        it.network = "net2".into();
        it.hostname = "gw.example".into();
    });
    let far = with(behind(pod("far", "10.0.0.2"), "web", &[]), |it| {
        it.network = "net2".into();
        it.network_gateway = waypoint("shop/gw.example", 15008);
    });
    let web = vec![service("web", "10.96.0.1")];
    let snapshot = mesh(vec![client(), far, gateway], web, vec![]);
    let plan = unresolved(&snapshot, "10.96.0.1:80").with_address(ip("192.0.2.5"));
    let Way::DoubleHbone(hop) = plan.way else {
        panic!("not through a gateway");
    };
    assert_eq!(hop.outer.next_hop, socket("192.0.2.5:15008"));
}

#[test]
fn a_name_that_cannot_be_looked_up_is_refused_with_the_reason() {
    let web = vec![service("web", "10.96.0.1")];
    let snapshot = mesh(vec![client(), external(TunnelProtocol::Tcp)], web, vec![]);
    let refusal = unresolved(&snapshot, "10.96.0.1:80").refusal("no such name".to_owned());
    assert_eq!(
        refusal.to_string(),
        "no ip addresses were resolved for workload: c1//Pod/shop/api (looking up api.example: no such name)"
    );
}

#[test]
fn the_addresses_of_a_name_are_tried_by_chance_and_those_of_the_clients_family_first() {
    let web = vec![service("web", "10.96.0.1")];
    let snapshot = mesh(vec![client(), external(TunnelProtocol::Tcp)], web, vec![]);
    let in_turn = |addresses: &[&str], random: u64| {
        let addresses: Vec<_> = addresses.iter().map(|text| ip(text)).collect();
        unresolved(&snapshot, "10.96.0.1:80").in_turn(&addresses, &mut || random)
    };
    let mixed = ["fd00::1", "192.0.2.1", "fd00::2", "192.0.2.2"];
    let order = |texts: [&str; 4]| Ok(texts.map(ip).to_vec());
    assert_eq!(
        in_turn(&mixed, 0),
        order(["192.0.2.1", "192.0.2.2", "fd00::2", "fd00::1"])
    );
    assert_eq!(
        in_turn(&mixed, 1),
        order(["192.0.2.2", "192.0.2.1", "fd00::1", "fd00::2"])
    );
    assert_eq!(
        in_turn(&["fd00::1", "fd00::2"], 0),
        Ok(vec![ip("fd00::2"), ip("fd00::1")])
    );
    let empty = in_turn(&[], 0).expect_err("nothing to choose from").to_string();
    assert_eq!(
        empty,
        "ip addresses were resolved for workload c1//Pod/shop/api, but valid dns response had no A/AAAA records"
    );
}
