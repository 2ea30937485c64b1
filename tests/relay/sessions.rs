//! When sessions are made, shared and ended.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::time::{Duration, Instant};

use uztunnel::bridge::Order;

use crate::applications::{ask, connect, connect_many, echo, expect_end, round};
use crate::world::{ECHO, PATIENCE, STRANGER_HBONE, TO_ECHO, TO_STRANGER, World};

pub fn a_retired_session_ends_with_its_last_stream(world: &World) {
    echo(ECHO);
    let mut connections = connect_many(TO_ECHO, 2);
    world.server.send(Order::Drain { deadline: PATIENCE });
    // GOAWAY has arrived: the session takes no further streams and is not in the pool any more.
    world
        .client
        .until("the session left the pool", |report| report.pooled == 0);
    for _ in 0..2 {
        round(&mut connections, &[4; 5000]);
        assert_eq!(world.client.report().sessions, 1);
        connections.pop();
    }
    let report = world
        .client
        .until("the session ended", |report| report.sessions == 0);
    assert_eq!((report.streams, report.tunnels), (0, 0));
    world.server.until_ended();
}

pub fn a_drain_lets_a_connection_that_is_being_set_up_through(world: &World) {
    echo(ECHO);
    world.client.take_certificate_away();
    let mut connection = connect(TO_ECHO);
    world
        .client
        .until("the connection is being set up", |report| report.waits > 0);
    world.client.send(Order::Drain { deadline: PATIENCE });
    world
        .client
        .until("it accepts no more", |report| report.listeners == 0);
    world.client.certify();
    ask(&mut connection, &[4; 5000]);
    drop(connection);
    let start = Instant::now();
    world.client.until_ended();
    assert!(
        start.elapsed() < PATIENCE / 2,
        "the last connection ends the drain, not its deadline"
    );
}

pub fn a_failed_dial_answers_all_who_wait_for_it_at_once(world: &World) {
    const WAITING: usize = 50;
    let stranger = TcpListener::bind(STRANGER_HBONE).expect("the port is free");
    let mut waiting: Vec<_> = (0..WAITING).map(|_| connect(TO_STRANGER)).collect();
    let (dial, _) = stranger.accept().expect("one dial");
    world
        .client
        .until("everybody waits", |report| report.waits >= WAITING);
    drop(dial);
    for connection in &mut waiting {
        expect_end(connection);
    }
    stranger.set_nonblocking(true).expect("an option");
    let further = stranger.accept().map(drop).map_err(|error| error.kind());
    assert_eq!(
        further,
        Err(std::io::ErrorKind::WouldBlock),
        "nobody dialled again"
    );
    world
        .client
        .until("the failure is forgotten", |report| report.pooled == 0);
}

pub fn more_streams_than_one_session_takes_use_a_further_one(world: &World) {
    echo(ECHO);
    let mut connections = connect_many(TO_ECHO, 250);
    for node in [&world.client, &world.server] {
        let report = node.report();
        assert_eq!((report.sessions, report.streams, report.tunnels), (3, 250, 250));
    }
    round(&mut connections, &[4; 1000]);
    connections.clear();
    world
        .client
        .until("all streams ended", |report| report.streams == 0);
    // The sessions are in service again.
    let mut connections = connect_many(TO_ECHO, 250);
    round(&mut connections, &[4; 1000]);
    let report = world.client.report();
    assert_eq!((report.sessions, report.pooled), (3, 1));
}

/// There is one dial at a time, so that the last of them waits for all others.
pub fn connections_that_need_a_session_each_are_all_set_up(world: &World) {
    const CONNECTIONS: usize = 100;
    echo(ECHO);
    let mut connections = connect_many(TO_ECHO, CONNECTIONS);
    round(&mut connections, &[4; 1000]);
    assert_eq!(world.client.report().sessions, CONNECTIONS);
}

pub fn a_thousand_short_connections_share_one_session(world: &World) {
    echo(ECHO);
    drop(connect_many(TO_ECHO, 1));
    let settled = |node: &crate::world::Node| {
        node.until("nothing but a session", |report| {
            report.tunnels == 0 && report.streams == 0 && report.waits == 0
        })
    };
    let before = [settled(&world.client), settled(&world.server)];
    for _ in 0..1000 {
        let mut connection = connect(TO_ECHO);
        connection.write_all(b"short").expect("sent");
        connection.shutdown(Shutdown::Write).expect("ended");
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).expect("answered");
        assert_eq!(answer, b"short");
    }
    for (node, before) in [&world.client, &world.server].into_iter().zip(before) {
        let report = node.until("as before", |report| {
            report.in_use == before.in_use && report.tunnels == 0 && report.streams == 0
        });
        assert_eq!(report.sessions, 1);
        assert_eq!((report.pooled, report.waits), (before.pooled, 0));
    }
}

/// A receive that ends in an error was once taken off the session's account twice.
pub fn applications_that_reset_leave_the_session_to_the_others(world: &World) {
    echo(ECHO);
    let mut stays = connect(TO_ECHO);
    for _ in 0..5 {
        let mut resets = connect_many(TO_ECHO, 20);
        // Large receives are armed now.
        round(&mut resets, &[6; 200_000]);
        for connection in resets {
            let socket = socket2::SockRef::from(&connection);
            socket.set_linger(Some(Duration::ZERO)).expect("an option");
        }
        ask(&mut stays, &[6; 100_000]);
    }
    for node in [&world.client, &world.server] {
        let report = node.until("one stream is left", |report| report.tunnels == 1);
        assert_eq!((report.sessions, report.streams), (1, 1));
    }
}
