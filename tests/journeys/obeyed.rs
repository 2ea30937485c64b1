//! Settings whose effect an application sees.

use uztunnel_rig::{Blueprint, Family, PodSpec, ServiceSpec, World};

use crate::frames;
use crate::openssl::{Credentials, Peer};
use crate::setup::{BODY_BYTES, HTTP_PORT, exchange, fetch, options, serve_http};

const TUNNEL_PORT: u16 = 4500;

fn world_with(blueprint: Blueprint, name: &str, value: &str) -> World {
    let options = options().map(|options| options.variable(name, value));
    World::start(blueprint, &options).expect("a world with ready proxies")
}

#[test]
fn where_sources_are_not_preserved_an_application_is_called_from_its_own_pod() {
    let world = world_with(Blueprint::two_nodes(), "ENABLE_ORIG_SRC", "false");
    let pod = world.pod("server");
    let server = serve_http(pod);
    for family in Family::BOTH {
        assert_eq!(
            fetch(&world, pod.address(family, HTTP_PORT)).expect("a response"),
            BODY_BYTES
        );
        let peers = server.peers();
        let peer = peers.last().expect("it was called").ip().to_canonical();
        assert_eq!(peer, pod.addresses.of(family));
    }
}

#[test]
fn a_caller_is_told_of_the_workload_it_reached_only_where_that_is_wanted() {
    for wanted in [true, false] {
        let value = wanted.to_string();
        let world = world_with(Blueprint::two_nodes(), "ENABLE_RESPONSE_BAGGAGE", &value);
        let pod = world.pod("server");
        let _server = serve_http(pod);
        let credentials = Credentials::valid(&world, "spiffe://cluster.local/ns/shop/sa/friend");
        let target = pod.address(Family::V4, 15008);
        let mut peer = Peer::connect_h2(&world.pod("stranger").namespace, target, &credentials);
        let request = frames::connect(1, &pod.address(Family::V4, HTTP_PORT).to_string());
        assert!(peer.send(&[frames::opening(), request].concat()));
        let answer = peer.wait_for("an answer", |received| {
            frames::answer_block(received, 1).map(<[u8]>::to_vec)
        });
        assert_eq!(answer[0], frames::STATUS_200);
        // The status alone takes one byte.
        assert_eq!(answer.len() > 1, wanted, "{answer:x?}");
    }
}

#[test]
fn tunnels_of_an_application_that_does_not_listen_on_loopback_come_from_their_peer() {
    let mut blueprint = Blueprint::two_nodes().pod(PodSpec::new("gateway", 1).tunnel_port(TUNNEL_PORT));
    let mut bank = ServiceSpec::new("bank", &[(80, HTTP_PORT)], &["server"]);
    bank.waypoint = Some("gateway".to_owned());
    blueprint = blueprint.service(bank);
    let world = world_with(blueprint, "LOCALHOST_APP_TUNNEL", "false");
    let server = world
        .pod("gateway")
        .serve(TUNNEL_PORT, uztunnel_rig::applications::echo);
    let target = world.service("bank", Family::V4, 80);
    let (answer, client) = exchange(world.pod("client"), target);
    // The PROXY header comes back with the line: this application only echoes.
    assert!(answer.ends_with(b"a line\n"), "{answer:?}");
    let peers: Vec<_> = server
        .peers()
        .iter()
        .map(|peer| peer.ip().to_canonical())
        .collect();
    assert_eq!(peers, [client.ip()]);
}
