//! The end of a pod.

use std::net::{TcpListener, TcpStream};

use uztunnel::bridge::WorkerReport;
use uztunnel::sys::driver::InUse;

use crate::applications::{accept, connect, connect_many, echo, expect_end, expect_reset};
use crate::world::{
    ECHO, Node, OUTSIDE_ECHO, SINK, STRANGER_HBONE, TO_ECHO, TO_OUTSIDE, TO_SINK, TO_STRANGER, World,
};

/// Connections of every kind, and the servers' ends of some of them.
fn connections() -> (Vec<TcpStream>, Vec<TcpStream>) {
    echo(ECHO);
    echo(OUTSIDE_ECHO);
    let sink = accept(SINK);
    let mut clients = connect_many(TO_ECHO, 20);
    clients.extend(connect_many(TO_OUTSIDE, 10));
    clients.extend((0..10).map(|_| connect(TO_SINK)));
    (clients, sink.iter().take(10).collect())
}

fn until_nothing_is_left(node: &Node) {
    node.until("nothing", |report| {
        *report
            == WorkerReport {
                counters: report.counters,
                in_use: InUse::default(),
                ..WorkerReport::default()
            }
    });
}

pub fn a_removed_client_pod_resets_its_connections_and_leaves_nothing_behind(world: &World) {
    let (mut clients, mut servers) = connections();
    world.client.remove_pod();
    clients.iter_mut().chain(&mut servers).for_each(expect_reset);
    until_nothing_is_left(&world.client);
    let report = world.server.until("no session", |report| report.sessions == 0);
    assert_eq!((report.tunnels, report.streams, report.waits), (0, 0, 0));
    TcpStream::connect(TO_ECHO).expect_err("nobody captures any more");
}

pub fn a_removed_server_pod_resets_its_connections_and_leaves_nothing_behind(world: &World) {
    let (mut clients, mut servers) = connections();
    let (tunnelled, piped) = clients.split_at_mut(20);
    let (piped, tunnelled_too) = piped.split_at_mut(10);
    world.server.remove_pod();
    tunnelled
        .iter_mut()
        .chain(tunnelled_too)
        .chain(&mut servers)
        .for_each(expect_reset);
    until_nothing_is_left(&world.server);
    crate::applications::round(piped, b"not through that pod");
    let report = world.client.until("no session", |report| report.sessions == 0);
    assert_eq!((report.tunnels, report.pipes), (0, 10));
}

pub fn a_pod_that_goes_takes_its_unfinished_setups_along(world: &World) {
    let stranger = TcpListener::bind(STRANGER_HBONE).expect("the port is free");
    let mut waiting: Vec<_> = (0..20).map(|_| connect(TO_STRANGER)).collect();
    let (mut dial, _) = stranger.accept().expect("one dial");
    world
        .client
        .until("everybody waits", |report| report.waits >= waiting.len());
    world.client.remove_pod();
    waiting.iter_mut().for_each(expect_end);
    until_nothing_is_left(&world.client);
    std::io::copy(&mut dial, &mut std::io::sink()).expect("our dial ended, too");
}
