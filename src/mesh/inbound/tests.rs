//! The inbound decision row by row.

use super::*;
use crate::mesh::fixture::*;
use crate::mesh::{ApplicationTunnel, NamespacedHostname, NetworkAddress, PortMap, Visibility};

const LOCAL: &str = "10.0.0.2";

fn server() -> Workload {
    behind(pod("server", LOCAL), "web", &[])
}

fn check(snapshot: &Snapshot, target: &TunnelAuthority) -> Result<Delivery, InboundError> {
    let own = snapshot.workload("c1//Pod/shop/server").expect("there").clone();
    snapshot.validate_inbound(&own, ip(LOCAL), target)
}

fn address(text: &str) -> TunnelAuthority {
    TunnelAuthority::Address(socket(text))
}

fn hostname(host: &str, port: u16) -> TunnelAuthority {
    TunnelAuthority::Host {
        hostname: host.into(),
        port,
    }
}

fn refused(snapshot: &Snapshot, target: &TunnelAuthority) -> (u16, String) {
    let error = check(snapshot, target).expect_err("refused");
    (error.status(), error.to_string())
}

#[test]
fn the_pods_own_address_is_delivered_to_the_port_asked_for() {
    let snapshot = mesh(vec![server()], vec![], vec![]);
    let delivery = check(&snapshot, &address("10.0.0.2:9000")).expect("valid");
    assert_eq!(delivery.address, socket("10.0.0.2:9000"));
    assert!(delivery.preamble.is_none() && delivery.service.is_none());
}

#[test]
fn another_address_is_a_mismatch() {
    let snapshot = mesh(vec![server(), pod("other", "10.0.0.3")], vec![], vec![]);
    for requested in ["10.0.0.3", "192.0.2.1"] {
        let (status, text) = refused(&snapshot, &address(&format!("{requested}:80")));
        assert_eq!(
            (status, text),
            (400, format!("ip mismatch: 10.0.0.2 != {requested}"))
        );
    }
}

#[test]
fn a_waypoint_takes_what_is_meant_for_those_it_serves() {
    let snapshot = |target: &str| {
        let other = with(pod("other", "10.0.0.3"), |it| {
            it.waypoint = waypoint(target, 15008)
        });
        let shop = Service {
            waypoint: waypoint(target, 15008),
            ..service("shop", "10.96.0.7")
        };
        mesh(
            vec![server(), other],
            vec![service("web", "10.96.0.1"), shop],
            vec![],
        )
    };
    for target in ["shop/web.shop", "net1/10.96.0.1", "net1/10.0.0.2"] {
        let snapshot = snapshot(target);
        for requested in ["10.0.0.3:80", "10.96.0.7:80"] {
            let delivery = check(&snapshot, &address(requested)).expect(requested);
            assert_eq!(delivery.address, socket("10.0.0.2:80"), "{target}");
        }
    }
    let stranger = snapshot("net1/10.0.0.3");
    assert_eq!(refused(&stranger, &address("10.96.0.7:80")).0, 400);
}

#[test]
fn a_workload_with_an_application_tunnel_takes_any_address_at_its_tunnel_port() {
    let tunnel = Some(ApplicationTunnel {
        protocol: ApplicationProtocol::Proxy,
        port: Some(15088),
    });
    let snapshot = mesh(
        vec![with(server(), |it| it.application_tunnel = tunnel)],
        vec![],
        vec![],
    );
    let delivery = check(&snapshot, &address("192.0.2.1:80")).expect("valid");
    assert_eq!(delivery.address, socket("10.0.0.2:15088"));
    assert_eq!(
        delivery.preamble,
        Some(Preamble {
            destination: socket("192.0.2.1:80"),
            host: None,
        })
    );
}

#[test]
fn a_tunnel_without_a_protocol_only_changes_the_port() {
    let tunnel = Some(ApplicationTunnel {
        protocol: ApplicationProtocol::None,
        port: Some(15088),
    });
    let snapshot = mesh(
        vec![with(server(), |it| it.application_tunnel = tunnel)],
        vec![],
        vec![],
    );
    let delivery = check(&snapshot, &address("192.0.2.1:80")).expect("valid");
    assert_eq!(delivery.address, socket("10.0.0.2:15088"));
    assert_eq!(delivery.preamble, None);
}

#[test]
fn a_host_name_is_resolved_to_the_target_port_of_its_service() {
    let snapshot = mesh(vec![server()], vec![service("web", "10.96.0.1")], vec![]);
    let delivery = check(&snapshot, &hostname("web.shop", 80)).expect("valid");
    assert_eq!(delivery.address, socket("10.0.0.2:8080"));
    assert_eq!(&*delivery.service.expect("known").name, "web");
}

/// As a ServiceEntry may have it, and istiod passes it on.
fn spelled(name: &str, hostname: &str, target: u16) -> Service {
    Service {
        ports: ports(&[(80, target)]),
        ..Service::new(name, "shop", hostname)
    }
}

/// RFC 4343.
#[test]
fn a_host_name_is_found_whatever_its_case() {
    let mut own = pod("server", LOCAL);
    own.join(NamespacedHostname::new("shop", "Api.Example"), PortMap::default());
    let services = vec![spelled("api", "Api.Example", 8080), service("web", "10.96.0.1")];
    let snapshot = mesh(vec![own], services, vec![]);
    let own = snapshot.workload("c1//Pod/shop/server").expect("there");
    for host in ["Api.Example", "api.example", "API.EXAMPLE"] {
        let delivery = check(&snapshot, &hostname(host, 80)).expect(host);
        assert_eq!(delivery.address, socket("10.0.0.2:8080"));
        let service = delivery.service.expect("known");
        assert_eq!(&*service.hostname, "Api.Example", "shown as it was sent");
        let named = snapshot.inbound_service(own, 1, Some(host), None);
        assert_eq!(named.map(|service| &*service.name), Some("api"), "{host}");
    }
    let delivery = check(&snapshot, &hostname("Web.Shop", 80)).expect("valid");
    assert_eq!(&*delivery.service.expect("known").hostname, "web.shop");
}

#[test]
fn of_names_that_differ_in_case_the_one_spelled_as_asked_goes_first_and_then_the_usual_choice() {
    let mut own = pod("server", LOCAL);
    for spelling in ["Api.Example", "api.Example"] {
        own.join(NamespacedHostname::new("shop", spelling), PortMap::default());
    }
    let elsewhere = Service {
        namespace: "other".into(),
        ..spelled("elsewhere", "API.example", 1)
    };
    let first = spelled("first", "Api.Example", 2);
    let second = spelled("second", "api.Example", 3);
    let snapshot = mesh(vec![own], vec![elsewhere, first, second], vec![]);
    let own = snapshot.workload("c1//Pod/shop/server").expect("there");
    for (host, expected) in [
        ("API.example", "elsewhere"),
        ("Api.Example", "first"),
        ("api.Example", "second"),
        // The first one of the pod's namespace.
        ("api.example", "first"),
    ] {
        let delivery = check(&snapshot, &hostname(host, 80)).expect(host);
        assert_eq!(&*delivery.service.expect("known").name, expected, "{host}");
    }
    for (host, expected) in [("api.Example", "second"), ("api.example", "first")] {
        let named = snapshot.inbound_service(own, 9, Some(host), None);
        assert_eq!(named.map(|service| &*service.name), Some(expected), "{host}");
    }
}

#[test]
fn the_pods_own_port_mapping_goes_before_the_services() {
    let own = behind(pod("server", LOCAL), "web", &[(80, 9090)]);
    let snapshot = mesh(vec![own], vec![service("web", "10.96.0.1")], vec![]);
    let delivery = check(&snapshot, &hostname("web.shop", 80)).expect("valid");
    assert_eq!(delivery.address, socket("10.0.0.2:9090"));
}

#[test]
fn host_names_and_ports_that_are_not_there_are_answered_with_503() {
    let named = Service {
        ports: ports(&[(80, 0)]),
        ..service("named", "10.96.0.2")
    };
    let hidden = Service {
        visibility: Visibility::Namespace,
        ..Service::new("hidden", "other", "hidden.other")
    };
    let snapshot = mesh(
        vec![server()],
        vec![service("web", "10.96.0.1"), named, hidden],
        vec![],
    );
    for (host, port, text) in [
        (
            "nobody.shop",
            80,
            "no service or workload for hostname: nobody.shop",
        ),
        (
            "hidden.other",
            80,
            "no service or workload for hostname: hidden.other",
        ),
        (
            "web.shop",
            81,
            "requested service web.shop:81 found, but cannot resolve port",
        ),
        (
            "named.shop",
            80,
            "requested service named.shop:80 found, but cannot resolve port",
        ),
    ] {
        assert_eq!(refused(&snapshot, &hostname(host, port)), (503, text.to_owned()));
    }
}

#[test]
fn the_preamble_for_a_host_name_prefers_our_network_and_there_ipv4() {
    let tunnel = Some(ApplicationTunnel {
        protocol: ApplicationProtocol::Proxy,
        port: None,
    });
    let own = with(server(), |it| it.application_tunnel = tunnel);
    let vip = |text: &str| text.parse::<NetworkAddress>().expect("a vip");
    let web = Service {
        vips: vec![vip("net2/10.1.1.1"), vip("net1/fd00::96"), vip("net1/10.96.0.1")],
        ..service("web", "10.96.0.1")
    };
    let headless = Service {
        vips: vec![],
        ..service("headless", "10.96.0.2")
    };
    let snapshot = mesh(vec![own], vec![web, headless], vec![]);
    let delivery = check(&snapshot, &hostname("web.shop", 80)).expect("valid");
    assert_eq!(
        delivery.preamble,
        Some(Preamble {
            destination: socket("10.96.0.1:80"),
            host: Some("web.shop".into()),
        })
    );
    assert_eq!(delivery.address, socket("10.0.0.2:8080"));
    assert_eq!(
        refused(&snapshot, &hostname("headless.shop", 80)),
        (
            503,
            "requested service headless.shop found, but has no IP addresses".to_owned()
        )
    );
}

#[test]
fn captured_ports_are_never_delivered_to() {
    let to_capture = Service {
        ports: ports(&[(80, 15001)]),
        ..service("web", "10.96.0.1")
    };
    let snapshot = mesh(vec![server()], vec![to_capture], vec![]);
    for target in [
        address("10.0.0.2:15008"),
        address("10.0.0.2:15006"),
        hostname("web.shop", 80),
    ] {
        assert_eq!(
            refused(&snapshot, &target),
            (503, "attempted recursive call to ourselves".to_owned()),
            "{target:?}"
        );
    }
}

#[test]
fn the_service_of_a_connection_is_the_one_named_else_the_only_one_that_leads_to_the_port() {
    let own = behind(behind(pod("server", LOCAL), "web", &[(81, 9090)]), "other", &[]);
    let other = Service {
        ports: PortMap::default(),
        ..service("other", "10.96.0.2")
    };
    let snapshot = mesh(vec![own], vec![service("web", "10.96.0.1"), other], vec![]);
    let own = snapshot.workload("c1//Pod/shop/server").expect("there");
    let name = |port, forwarded| {
        snapshot
            .inbound_service(own, port, forwarded, None)
            .map(|service| service.name.to_string())
    };
    assert_eq!(name(8080, Some("other.shop")).as_deref(), Some("other"));
    assert_eq!(name(8080, None).as_deref(), Some("web"));
    assert_eq!(name(9090, Some("nobody.shop")).as_deref(), Some("web"));
    assert_eq!(name(1, None), None);
}

#[test]
fn a_connection_that_several_services_lead_to_names_none() {
    let own = behind(behind(pod("server", LOCAL), "web", &[]), "other", &[]);
    let services = vec![service("web", "10.96.0.1"), service("other", "10.96.0.2")];
    let snapshot = mesh(vec![own], services, vec![]);
    let own = snapshot.workload("c1//Pod/shop/server").expect("there");
    assert!(snapshot.inbound_service(own, 8080, None, None).is_none());
    let named = snapshot.inbound_service(own, 8080, Some("web.shop"), None);
    assert_eq!(named.map(|service| &*service.name), Some("web"));
}

#[test]
fn only_tunnels_with_a_header_are_delivered_on_loopback() {
    for (protocol, port, local, expected) in [
        (ApplicationProtocol::Proxy, Some(15088), LOCAL, "127.0.0.1:15088"),
        (ApplicationProtocol::Proxy, None, "fd00::2", "[::1]:80"),
        (ApplicationProtocol::None, Some(15088), LOCAL, "10.0.0.2:15088"),
    ] {
        let own = with(server(), |it| {
            it.addresses = [ip(LOCAL), ip("fd00::2")].into();
            it.application_tunnel = Some(ApplicationTunnel { protocol, port });
        });
        let snapshot = mesh(vec![own], vec![], vec![]);
        let own = snapshot.workload("c1//Pod/shop/server").expect("there").clone();
        let target = TunnelAuthority::Address(SocketAddr::new(ip(local), 80));
        let delivery = snapshot
            .validate_inbound(&own, ip(local), &target)
            .expect("valid");
        assert_eq!(delivery.connect_address(true), socket(expected), "{protocol:?}");
        // Policies are about the pod's own address, wherever its application listens.
        assert_eq!(delivery.address.ip(), ip(local));
        assert_eq!(delivery.connect_address(false), delivery.address);
    }
}

#[test]
fn a_waypoint_takes_what_its_services_are_just_being_moved_to_or_from() {
    use crate::mesh::WeightedWaypoint;
    for weight in [0, 1, 100] {
        let shop = Service {
            weighted_waypoints: vec![WeightedWaypoint {
                destination: *waypoint("shop/web.shop", 15008).expect("given"),
                weight,
            }],
            waypoint: waypoint("net1/10.0.0.3", 15008),
            ..service("shop", "10.96.0.7")
        };
        let services = vec![service("web", "10.96.0.1"), shop];
        let snapshot = mesh(vec![server(), pod("other", "10.0.0.3")], services, vec![]);
        assert!(
            check(&snapshot, &address("10.96.0.7:80")).is_ok(),
            "weight {weight}"
        );
    }
}

#[test]
fn a_waypoint_that_is_about_to_end_takes_what_is_still_on_its_way() {
    let ending = Workload {
        status: crate::mesh::Health::Unhealthy,
        ..server()
    };
    let shop = Service {
        waypoint: waypoint("shop/web.shop", 15008),
        ..service("shop", "10.96.0.7")
    };
    let services = vec![service("web", "10.96.0.1"), shop];
    let snapshot = mesh(vec![ending], services, vec![]);
    assert!(check(&snapshot, &address("10.96.0.7:80")).is_ok());
}

#[test]
fn a_stream_of_another_network_has_the_gateways_address_and_not_its_clients() {
    let snapshot = mesh(vec![pod("gateway", "10.0.0.9")], vec![], vec![]);
    let source = |forwarded| snapshot.inbound_source(ip("::ffff:10.0.0.9"), forwarded);
    assert!(source(None).is_some());
    assert!(
        source(Some("NET1")).is_some(),
        "our own network, however it is written"
    );
    assert!(source(Some("net2")).is_none());
    assert!(source(Some("")).is_none(), "the unnamed network is another one");
}

#[test]
fn what_a_gateway_passes_on_is_delivered_by_the_name_of_its_service() {
    // The gateway forwards the session to a workload, which sees the service's name and port.
    let snapshot = mesh(vec![server()], vec![service("web", "10.96.0.1")], vec![]);
    let delivery = check(&snapshot, &hostname("web.shop", 80)).expect("valid");
    assert_eq!(delivery.address, socket("10.0.0.2:8080"));
    // A gateway that takes tunnels itself is told both.
    let tunnel = Some(ApplicationTunnel {
        protocol: ApplicationProtocol::Proxy,
        port: Some(15088),
    });
    let gateway = with(server(), |it| it.application_tunnel = tunnel);
    let snapshot = mesh(vec![gateway], vec![service("web", "10.96.0.1")], vec![]);
    let delivery = check(&snapshot, &hostname("web.shop", 80)).expect("valid");
    assert_eq!(delivery.address, socket("10.0.0.2:15088"));
    let preamble = delivery.preamble.expect("a header");
    assert_eq!(preamble.destination, socket("10.96.0.1:80"));
    assert_eq!(preamble.host.as_deref(), Some("web.shop"));
}
