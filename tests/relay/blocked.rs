//! An application that does not read.

use std::net::TcpStream;
use std::time::Duration;

use uztunnel::limits;

use crate::applications::{accept, ask, connect, connect_many, echo, fill};
use crate::world::{ECHO, SINK, TO_ECHO, TO_SINK, World};

pub fn a_reader_that_stops_slows_no_other_stream_of_its_session(world: &World) {
    echo(ECHO);
    let sink = accept(SINK);
    let mut others = connect_many(TO_ECHO, 8);
    let before = p99(&mut others);

    let mut blocked = connect(TO_SINK);
    let unread = sink.recv().expect("delivered");
    let sent = fill(&mut blocked);
    let window = limits::HTTP2_STREAM_WINDOW_BYTES as usize;
    assert!(
        sent >= window,
        "{sent} bytes went out before the window was used up"
    );

    let report = world.server.until("only what the window allows", |report| {
        report.buffered_bytes <= window + limits::HTTP2_STREAM_WINDOW_BYTES as usize / 8
    });
    assert!(report.buffered_bytes > window / 2, "{report:#?}");
    assert_eq!(report.sessions, 1);
    let held = world.client.report().buffered_bytes;
    assert!(
        held <= limits::OUTPUT_SOFT_BYTES,
        "the client's proxy holds {held} bytes"
    );

    // The best of three: tests run beside each other.
    let after = (0..3).map(|_| p99(&mut others)).min().expect("three");
    let bound = before * 4 + Duration::from_millis(40);
    assert!(
        after < bound,
        "p99 was {before:?}, and is {after:?} beside a blocked reader"
    );
    drop(unread);
    others.clear();
    world.server.until("the memory is free again", |report| {
        report.buffered_bytes == 0 && report.chunks_pinned == 0 && report.tunnels == 0
    });
}

fn p99(connections: &mut [TcpStream]) -> Duration {
    let mut times: Vec<Duration> = (0..50)
        .flat_map(|_| {
            let ask = |connection| ask(connection, &[5; 1024]);
            connections.iter_mut().map(ask).collect::<Vec<_>>()
        })
        .collect();
    times.sort_unstable();
    times[times.len() * 99 / 100]
}
