//! What a connection costs that does nothing.

use std::time::Duration;

use crate::applications::{connect_many, echo, round};
use crate::world::{ECHO, OUTSIDE_ECHO, TO_ECHO, TO_OUTSIDE, World};

pub fn an_idle_connection_owns_no_buffer(world: &World) {
    echo(ECHO);
    echo(OUTSIDE_ECHO);
    let mut tunnelled = connect_many(TO_ECHO, 150);
    let mut piped = connect_many(TO_OUTSIDE, 50);
    for connections in [&mut tunnelled, &mut piped] {
        round(connections, &[3; 20_000]);
    }
    for (node, pipes) in [(&world.client, 50), (&world.server, 0)] {
        let report = node.until("no buffer in use", |report| {
            report.buffered_bytes == 0 && report.chunks_pinned == 0 && report.in_use.buffers == 0
        });
        assert_eq!((report.tunnels, report.pipes), (150, pipes));
        assert_eq!(report.waits, 0, "no task is left");
    }
    round(&mut tunnelled, b"they still work");
}

/// Timers that only keep a worker busy would cost a whole node of idle workers.
pub fn an_idle_worker_sleeps(world: &World) {
    echo(ECHO);
    let mut connections = connect_many(TO_ECHO, 10);
    round(&mut connections, &[3; 1000]);
    for node in [&world.client, &world.server] {
        // A busy machine makes a worker look busy for a while, but not for ever.
        let waits = |_| {
            let before = node.report().counters.waits;
            std::thread::sleep(Duration::from_millis(1000));
            node.report().counters.waits - before
        };
        let slept = (0..8).map(waits).find(|waits| *waits <= 6);
        assert!(slept.is_some(), "the worker never slept");
    }
}
