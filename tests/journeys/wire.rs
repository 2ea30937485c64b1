//! What somebody on the wire between the nodes can see.

use uztunnel_rig::{ControlPlane, Family, World, http};

use crate::setup::{control_plane, options, plan, serve_http};

const MARKER: &str = "a-text-that-nobody-else-may-read";

#[test]
fn the_wire_between_two_nodes_carries_only_tls() {
    let mut world = World::build(plan()).expect("a world");
    let capture = world.nodes[0].capture(1, MARKER.as_bytes()).expect("a capture");
    world.start_proxies(&options()).expect("ready proxies");
    let _server = serve_http(world.pod("server"));
    for family in Family::BOTH {
        let target = world.pod("server").address(family, crate::setup::HTTP_PORT);
        world.pod("client").run(async move {
            let mut connection = http::Client::connect(target).await.expect("connected");
            for _ in 0..100 {
                connection.get(&format!("/{MARKER}")).await.expect("a response");
            }
        });
    }
    let report = capture.stop().expect("a report");
    let summary = report.check_only_tls().expect("only TLS");
    assert!(summary.flows >= 4, "two tunnels, both directions: {summary:?}");
    assert!(summary.bytes > 2 * 100 * 1024, "{summary:?}");
    // Node 1 asks for the mesh and for certificates, both ways.
    let control_plane_flows = match control_plane() {
        ControlPlane::Istiod => 4,
        ControlPlane::File => 0,
    };
    assert_eq!(summary.control_plane_flows, control_plane_flows, "{summary:?}");
}

#[test]
fn plaintext_to_a_stranger_is_visible_so_the_capture_can_tell_the_difference() {
    let mut world = World::build(plan()).expect("a world");
    let capture = world.nodes[0].capture(1, MARKER.as_bytes()).expect("a capture");
    world.start_proxies(&options()).expect("ready proxies");
    let _server = serve_http(world.pod("stranger"));
    let target = world.pod("stranger").address(Family::V4, crate::setup::HTTP_PORT);
    world
        .pod("client")
        .run(async move { http::get(target, &format!("/{MARKER}")).await })
        .expect("a response");
    let report = capture.stop().expect("a report");
    assert!(report.marker_in_plain_flow());
    assert!(report.check_only_tls().is_err());
}
