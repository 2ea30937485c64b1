//! What must not come back to where it was, and what must not wait.

use super::*;
use crate::mesh::Health;

/// A service `web` whose waypoint is `wp`, with one endpoint.
fn served(wp: Workload, waypoints: Service, target: &str) -> Snapshot {
    let web = Service {
        waypoint: waypoint(target, 15009),
        ..service("web", "10.96.0.1")
    };
    let server = behind(pod("server", "10.0.0.2"), "web", &[]);
    mesh(vec![client(), wp, server], vec![web, waypoints], vec![])
}

#[test]
fn a_waypoint_that_calls_its_own_service_by_address_is_not_sent_to_itself() {
    for target in ["shop/wp.shop", "net1/10.96.0.9"] {
        let (wp, waypoints) = with_waypoint();
        let snapshot = served(wp, waypoints, target);
        let from_waypoint = route_from(&snapshot, "wp", "10.0.0.9", "10.96.0.1:80").expect("routed");
        assert_eq!(authority(&from_waypoint), socket("10.0.0.2:8080"), "{target}");
        let from_client = route(&snapshot, "10.96.0.1:80").expect("routed");
        assert_eq!(hbone(&from_client).next_hop, socket("10.0.0.9:15008"), "{target}");
    }
}

#[test]
fn a_waypoint_that_is_about_to_end_is_still_the_waypoint() {
    let (wp, waypoints) = with_waypoint();
    let ending = Workload {
        status: Health::Unhealthy,
        ..wp
    };
    let snapshot = served(ending, waypoints, "shop/wp.shop");
    let plan = route_from(&snapshot, "wp", "10.0.0.9", "10.96.0.1:80").expect("routed");
    assert_eq!(authority(&plan), socket("10.0.0.2:8080"));
}

#[test]
fn each_of_several_weighted_waypoints_has_been_passed_when_one_of_them_calls() {
    let (wp, waypoints) = with_waypoint();
    let other = pod("other", "10.0.0.8");
    let choice = |target, port, weight| WeightedWaypoint {
        destination: *waypoint(target, port).expect("given"),
        weight,
    };
    let web = Service {
        weighted_waypoints: vec![
            choice("shop/wp.shop", 15009, 1),
            choice("net1/10.0.0.8", 15008, 1),
        ],
        ..service("web", "10.96.0.1")
    };
    let server = behind(pod("server", "10.0.0.2"), "web", &[]);
    let snapshot = mesh(vec![wp, other, server], vec![web, waypoints], vec![]);
    for (name, downstream) in [("wp", "10.0.0.9"), ("other", "10.0.0.8")] {
        for at in 0..4 {
            let decision = snapshot.route(
                &own(&snapshot, name),
                ip(downstream),
                socket("10.96.0.1:80"),
                &mut || at,
            );
            let plan = decision.map(plan).expect("routed");
            assert_eq!(authority(&plan), socket("10.0.0.2:8080"), "{name} {at}");
        }
    }
}

#[test]
fn a_waypoint_passes_through_the_waypoints_of_other_services() {
    let (wp, waypoints) = with_waypoint();
    let other = pod("other", "10.0.0.8");
    let bank = Service {
        waypoint: waypoint("net1/10.0.0.8", 15008),
        ..service("bank", "10.96.0.2")
    };
    let snapshot = mesh(vec![wp, other], vec![waypoints, bank], vec![]);
    let plan = route_from(&snapshot, "wp", "10.0.0.9", "10.96.0.2:80").expect("routed");
    assert_eq!(hbone(&plan).next_hop, socket("10.0.0.8:15008"));
}

#[test]
fn link_local_addresses_need_no_workload() {
    let snapshot = Snapshot::empty(locale());
    for target in [
        "169.254.169.254:80",
        "[fe80::1]:53",
        "[::ffff:169.254.169.254]:80",
    ] {
        let plan = snapshot
            .route_unidentified(socket(target))
            .expect("passed through");
        assert!(is_plain(&plan) && plan.destination.is_none(), "{target}");
    }
    for target in ["10.0.0.1:80", "127.0.0.1:80", "192.0.2.1:443", "[fd00::1]:80"] {
        assert!(snapshot.route_unidentified(socket(target)).is_none(), "{target}");
    }
}

#[test]
fn link_local_addresses_that_the_mesh_knows_need_one() {
    let named = pod("cache", "169.254.20.10");
    let snapshot = mesh(vec![named], vec![service("web", "169.254.20.11")], vec![]);
    for target in ["169.254.20.10:53", "169.254.20.11:53"] {
        assert!(snapshot.route_unidentified(socket(target)).is_none(), "{target}");
    }
}
