//! The CNI socket: pods come and go while traffic runs, and garbage changes nothing.

use uztunnel_rig::agent::{Answer, Sender};
use uztunnel_rig::{Blueprint, Family, World, http, zds};

use crate::setup::{HTTP_PORT, options, serve_http, start, two_nodes};

fn assert_served(world: &World, client: &str, server: &str) {
    let target = world.pod(server).address(Family::V4, HTTP_PORT);
    let response = world.pod(client).run(async move { http::get(target, "/").await });
    response.unwrap_or_else(|error| panic!("{client} to {server}: {error}"));
}

#[test]
fn the_proxy_greets_acknowledges_the_snapshot_and_says_nothing_else() {
    let world = two_nodes();
    let packets = world.nodes[1].agent.packets();
    let from_proxy: Vec<&[u8]> = packets
        .iter()
        .filter(|packet| packet.sender == Sender::Proxy)
        .map(|packet| packet.bytes.as_slice())
        .collect();
    let ack: &[u8] = &[0x0a, 0x00];
    assert_eq!(from_proxy, [zds::HELLO, ack, ack]);
}

#[test]
fn a_pod_added_while_traffic_runs_is_served_and_a_deleted_one_no_more() {
    let world = World::build(Blueprint::two_nodes()).expect("a world");
    let late = world.pod("server");
    world.nodes[1].agent.forget(&late.uid);
    let mut world = world;
    world.start_proxies(&options()).expect("ready proxies");
    let _servers = ["server", "cart"].map(|name| serve_http(world.pod(name)));
    assert_served(&world, "client", "cart");

    let late = world.pod("server");
    let agent = &world.nodes[1].agent;
    let added = agent
        .add(&late.uid, late.workload_info(), late.namespace.fd())
        .expect("sent");
    assert_eq!(added, Answer::Ack);
    assert_served(&world, "client", "server");

    assert_eq!(agent.delete(&late.uid).expect("sent"), Answer::Ack);
    let target = late.address(Family::V4, 15008);
    uztunnel_rig::wait_until("the listener of the deleted pod to close", || {
        let refused = world
            .pod("stranger")
            .run(async move { tokio::net::TcpStream::connect(target).await });
        refused.is_err().then_some(())
    });
    assert_served(&world, "client", "cart");
    assert_eq!(agent.delete("an-unknown-uid").expect("sent"), Answer::Ack);
}

#[test]
fn garbage_on_the_socket_is_refused_and_the_proxy_comes_back_for_a_snapshot() {
    let world = two_nodes();
    let _server = serve_http(world.pod("server"));
    let agent = &world.nodes[1].agent;
    let prefix = "failure to read message : ";
    let mut connections = 1;
    for garbage in [&b"\xff\xff\xff\xff"[..], b"\x0a\x7f", b"\x3a\x00", &[0x0a; 1024]] {
        let answer = agent.send(garbage, &[]).expect("sent");
        assert!(
            matches!(&answer, Answer::Refused(words) if words.starts_with(prefix)),
            "{garbage:02x?}: {answer:?}"
        );
        connections += 1;
        agent
            .wait_for_connection(connections)
            .expect("the proxy came back");
        assert_served(&world, "client", "server");
    }
    let info = world.pod("server").workload_info();
    let without_fd = agent.send(&zds::add("no-fd", Some(&info)), &[]).expect("sent");
    assert!(
        matches!(&without_fd, Answer::Refused(words) if words.contains("No control message")),
        "{without_fd:?}"
    );
    agent
        .wait_for_connection(connections + 1)
        .expect("the proxy came back");
    assert_served(&world, "client", "server");
}

#[test]
fn a_lost_agent_takes_no_traffic_down_and_the_next_snapshot_is_taken() {
    let world = start(Blueprint::two_nodes());
    let _server = serve_http(world.pod("server"));
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let (ask, mut asked) = tokio::sync::mpsc::channel::<()>(1);
    let (answered, answers) = std::sync::mpsc::channel();
    let keeping = world.pod("client").spawn(async move {
        let mut connection = http::Client::connect(target).await.expect("connected");
        while asked.recv().await.is_some() {
            let response = connection.get("/").await.map(|response| response.status);
            answered.send(response).expect("the test waits");
        }
    });
    let assert_still_open = || {
        ask.blocking_send(()).expect("the client runs");
        assert_eq!(answers.recv().expect("an answer").expect("a response"), 200);
    };
    assert_still_open();
    for round in 2..5 {
        world.nodes[1].agent.disconnect();
        assert_still_open();
        world.nodes[1]
            .agent
            .wait_for_connection(round)
            .expect("the proxy came back");
        assert_still_open();
    }
    drop(ask);
    world
        .pod("client")
        .run(async move { keeping.await.expect("no panic") });
    assert_served(&world, "client", "server");
}
