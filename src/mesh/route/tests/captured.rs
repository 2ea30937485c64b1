//! The example world of the local file: every kind of call in it, both directions.

use super::*;
use crate::mesh::LocalState;

const EXAMPLE: &str = include_str!("../../../../tests/data/mesh.yaml");

fn example() -> Snapshot {
    let mut builder = Builder::new(crate::mesh::Locale {
        node: None,
        ..locale()
    });
    builder.load(LocalState::parse(EXAMPLE).expect("valid"));
    builder.build()
}

#[test]
fn calls_of_the_example_world_go_where_the_contract_says() {
    let snapshot = example();
    let cart = snapshot
        .own_workload("cart-0", "shop", "cart")
        .expect("there")
        .clone();
    let wp = snapshot
        .own_workload("wp-0", "shop", "wp")
        .expect("there")
        .clone();
    // Source, its address, target; next hop, authority.
    let calls = [
        // A service, by address and by range: an endpoint at its target port.
        (
            &cart,
            "10.1.0.5",
            "10.96.0.20:80",
            "10.1.0.5:15008",
            Some("10.1.0.5:8080"),
        ),
        (
            &cart,
            "10.1.0.5",
            "240.240.3.4:443",
            "10.1.0.5:15008",
            Some("10.1.0.5:8443"),
        ),
        // A pod with a waypoint, by either of its addresses; not from the waypoint itself.
        (
            &cart,
            "10.1.0.5",
            "10.1.0.5:9",
            "10.1.0.9:15008",
            Some("10.1.0.5:9"),
        ),
        (
            &cart,
            "fd00::5",
            "[fd00::5]:9",
            "10.1.0.9:15008",
            Some("[fd00::5]:9"),
        ),
        (
            &wp,
            "10.1.0.9",
            "10.1.0.5:8080",
            "10.1.0.5:15008",
            Some("10.1.0.5:8080"),
        ),
        (
            &wp,
            "10.1.0.9",
            "10.96.0.20:80",
            "10.1.0.5:15008",
            Some("10.1.0.5:8080"),
        ),
        // The waypoint as a service and as a pod.
        (
            &cart,
            "10.1.0.5",
            "10.96.0.21:15008",
            "10.1.0.9:15008",
            Some("10.1.0.9:15008"),
        ),
        (
            &cart,
            "10.1.0.5",
            "10.1.0.9:80",
            "10.1.0.9:15008",
            Some("10.1.0.9:80"),
        ),
        // Nobody knows it.
        (&cart, "10.1.0.5", "192.0.2.1:443", "192.0.2.1:443", None),
    ];
    for (source, downstream, target, next_hop, asked) in calls {
        let decision = snapshot.route(source, ip(downstream), socket(target), &mut counting());
        let plan = decision.map(plan).expect(target);
        assert_eq!(plan.way.next_hop(), socket(next_hop), "{target}");
        match asked {
            Some(asked) => assert_eq!(authority(&plan), socket(asked), "{target}"),
            None => assert!(is_plain(&plan), "{target}"),
        }
    }
    let missing_port = snapshot.route(&cart, ip("10.1.0.5"), socket("10.96.0.20:81"), &mut counting());
    assert_eq!(
        missing_port.expect_err("refused"),
        RouteError::NoHealthyUpstream(socket("10.96.0.20:81"))
    );
}

#[test]
fn streams_into_the_example_world_are_delivered_as_the_contract_says() {
    let snapshot = example();
    let wp = snapshot
        .own_workload("wp-0", "shop", "wp")
        .expect("there")
        .clone();
    let cart = snapshot
        .own_workload("cart-0", "shop", "cart")
        .expect("there")
        .clone();
    let to_waypoint = |target| snapshot.validate_inbound(&wp, ip("10.1.0.9"), &target);
    let by_address = to_waypoint(TunnelAuthority::Address(socket("10.1.0.5:8080"))).expect("its pod");
    assert_eq!(by_address.address, socket("10.1.0.9:15088"));
    assert_eq!(by_address.connect_address(true), socket("127.0.0.1:15088"));
    assert_eq!(
        by_address.preamble.expect("a tunnel").destination,
        socket("10.1.0.5:8080")
    );
    let cart_target = |target| snapshot.validate_inbound(&cart, ip("10.1.0.5"), &target);
    let by_name = TunnelAuthority::Host {
        hostname: "cart.shop.svc.cluster.local".into(),
        port: 443,
    };
    let delivery = cart_target(by_name).expect("its service");
    assert_eq!(delivery.address, socket("10.1.0.5:8443"));
    assert_eq!(delivery.connect_address(true), delivery.address);
    let stranger = cart_target(TunnelAuthority::Address(socket("10.1.0.9:80")));
    assert_eq!(stranger.expect_err("another pod").status(), 400);
}
