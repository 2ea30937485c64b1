//! Many connections at once, and many one after another.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use uztunnel_rig::applications::echo;
use uztunnel_rig::{Family, http};

use crate::setup::{BODY_BYTES, HTTP_PORT, serve_http, two_nodes};

const PORT: u16 = 4200;

#[test]
fn two_thousand_connections_of_one_pod_pair_are_open_and_alive_at_once() {
    const CONNECTIONS: u32 = 2_000;
    let world = two_nodes();
    let server = world.pod("server").serve(PORT, echo);
    let target = world.pod("server").address(Family::V4, PORT);
    world.pod("client").run(async move {
        let mut opening = JoinSet::new();
        for number in 0..CONNECTIONS {
            opening.spawn(async move {
                let mut stream = TcpStream::connect(target).await?;
                stream.write_u32(number).await?;
                let echoed = stream.read_u32().await?;
                std::io::Result::Ok((number, echoed, stream))
            });
        }
        let mut open = Vec::new();
        while let Some(opened) = opening.join_next().await {
            let (number, echoed, stream) = opened.expect("no panic").expect("a connection");
            assert_eq!(echoed, number);
            open.push((number, stream));
        }
        assert_eq!(open.len(), CONNECTIONS as usize);
        // All are open now; each still carries its own bytes.
        for (number, stream) in &mut open {
            stream.write_u32(!*number).await.expect("sent");
        }
        for (number, stream) in &mut open {
            assert_eq!(stream.read_u32().await.expect("echoed"), !*number);
        }
    });
    assert_eq!(server.peers().len(), CONNECTIONS as usize);
    assert!(
        server
            .wait_for_ends(CONNECTIONS as usize)
            .iter()
            .all(Result::is_ok)
    );
}

#[test]
fn five_hundred_connections_a_second_for_ten_seconds_all_succeed() {
    const PER_SECOND: u32 = 500;
    const SECONDS: u32 = 10;
    let world = two_nodes();
    let server = serve_http(world.pod("server"));
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let failures = world.pod("client").run(async move {
        let mut pace = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
        let mut running = JoinSet::new();
        for _ in 0..PER_SECOND * SECONDS {
            pace.tick().await;
            running.spawn(http::get(target, "/"));
        }
        let mut failures = Vec::new();
        while let Some(done) = running.join_next().await {
            match done.expect("no panic") {
                Ok(response) => assert_eq!((response.status, response.body.len()), (200, BODY_BYTES)),
                Err(error) => failures.push(error.to_string()),
            }
        }
        failures
    });
    assert!(
        failures.is_empty(),
        "{} failures, the first: {}",
        failures.len(),
        failures[0]
    );
    assert_eq!(server.peers().len(), (PER_SECOND * SECONDS) as usize);
}

#[test]
fn a_reader_that_does_not_read_stops_nobody_else() {
    let world = two_nodes();
    let _blocked = world.pod("server").serve(PORT, |stream, _| async move {
        // Accepts, and never reads.
        std::future::pending::<()>().await;
        drop(stream);
        Ok(())
    });
    let _server = serve_http(world.pod("server"));
    let blocked = world.pod("server").address(Family::V4, PORT);
    let free = world.pod("server").address(Family::V4, HTTP_PORT);
    let stuffing = world.pod("client").spawn(async move {
        let mut stream = TcpStream::connect(blocked).await.expect("connected");
        let chunk = vec![0; 64 * 1024];
        let mut sent = 0;
        // Fills every buffer on the way until back-pressure arrives here.
        while let Ok(written) = tokio::time::timeout(Duration::from_secs(2), stream.write(&chunk)).await {
            sent += written.expect("sent");
        }
        (sent, stream)
    });
    let slowest = world.pod("client").run(async move {
        let mut slowest = Duration::ZERO;
        let (sent, blocked) = stuffing.await.expect("no panic");
        assert!(sent > 0);
        for _ in 0..200 {
            let started = std::time::Instant::now();
            http::get(free, "/").await.expect("a response");
            slowest = slowest.max(started.elapsed());
        }
        drop(blocked);
        slowest
    });
    assert!(
        slowest < Duration::from_secs(1),
        "the slowest of 200 requests took {slowest:?}"
    );
}
