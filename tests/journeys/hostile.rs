//! Hostile peers that hold a valid certificate. Beside each, an honest client's new connections do not fail, the
//! proxy's memory stays within bounds, and the peer is cut off with a reason in the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use uztunnel_rig::{Family, World, http};

use crate::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use crate::openssl::{Credentials, Peer};
use crate::setup::{HTTP_PORT, authority as signer, serve_http, two_nodes};
use crate::tiny_records;

const FRIEND: &str = "spiffe://cluster.local/ns/shop/sa/friend";

/// New connections per second of the honest client.
const HONEST_RATE: u32 = 50;
/// How long the honest client goes on beside an attack.
const HONEST_SECONDS: u32 = 3;

/// What an attack may add to the proxy's memory: far below what it sends, far above noise.
const GROWTH_BYTES_MAX: u64 = 96 << 20;

/// Bytes after which an attack that nobody stopped gives up.
const ATTACK_BYTES_MAX: usize = 64 << 20;

/// Where nobody reads what arrives.
const SILENT_PORT: u16 = 4300;
/// Where everything is read and nothing answered.
const SINK_PORT: u16 = 4301;

/// Runs `attack` while the honest client works, and checks what has to hold beside any attack.
fn beside_honest_work(world: &World, attack: impl FnOnce(&World) + Send) {
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let proxy = world.nodes[1].proxy();
    let before = proxy.resident_bytes().expect("readable");
    let honest = world.pod("client").spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_secs(1) / HONEST_RATE);
        let mut running = JoinSet::new();
        for _ in 0..HONEST_RATE * HONEST_SECONDS {
            pace.tick().await;
            running.spawn(tokio::time::timeout(
                Duration::from_secs(5),
                http::get(target, "/"),
            ));
        }
        let mut failures = Vec::new();
        while let Some(done) = running.join_next().await {
            match done.expect("no panic") {
                Ok(Ok(response)) => assert_eq!(response.status, 200),
                Ok(Err(error)) => failures.push(error.to_string()),
                Err(_) => failures.push("no response within 5 s".to_owned()),
            }
        }
        failures
    });
    attack(world);
    let failures = world
        .pod("client")
        .run(async move { honest.await.expect("no panic") });
    assert!(
        failures.is_empty(),
        "{} honest requests failed, the first: {}",
        failures.len(),
        failures[0]
    );
    let growth = proxy.resident_bytes().expect("readable").saturating_sub(before);
    assert!(
        growth < GROWTH_BYTES_MAX,
        "the proxy's memory grew by {} MiB",
        growth >> 20
    );
}

/// Says `opening`, then what `next` gives (told how often it was asked) until the proxy cuts the peer off.
fn attack_until_cut_off(world: &World, reason: &str, opening: Vec<u8>, mut next: impl FnMut(u32) -> Vec<u8>) {
    let target = world.pod("server").address(Family::V4, 15008);
    let credentials = Credentials::valid(world, FRIEND);
    let mut peer = Peer::connect_h2(&world.pod("stranger").namespace, target, &credentials);
    let mut alive = peer.send(&[frames::opening(), opening].concat());
    let mut sent = 0;
    let mut round = 0;
    while alive && sent < ATTACK_BYTES_MAX {
        let mut bytes = Vec::new();
        while bytes.len() < 16 * 1024 {
            bytes.extend(next(round));
            round += 1;
        }
        sent += bytes.len();
        alive = peer.send(&bytes);
    }
    let closed = |line: &str| line.contains("session closed") && line.contains(reason);
    let logged = world.nodes[1].proxy().logs.wait_for(reason, closed);
    logged.unwrap_or_else(|error| panic!("after {sent} bytes: {error}"));
    peer.wait_until_over();
}

fn assert_cut_off(reason: &str, opening: fn(&World) -> Vec<u8>, next: fn(&World, u32) -> Vec<u8>) {
    let world = two_nodes();
    let _server = serve_http(world.pod("server"));
    let _silent = world.pod("server").serve(SILENT_PORT, |stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
        Ok(())
    });
    beside_honest_work(&world, |world| {
        attack_until_cut_off(world, reason, opening(world), |round| next(world, round));
    });
}

fn authority(world: &World, port: u16) -> String {
    world.pod("server").address(Family::V4, port).to_string()
}

fn nothing(_: &World) -> Vec<u8> {
    Vec::new()
}

/// A stream to the application that reads nothing.
fn silent_stream(world: &World) -> Vec<u8> {
    frames::connect(1, &authority(world, SILENT_PORT))
}

#[test]
fn rapid_reset_is_cut_off() {
    assert_cut_off("rapid reset", nothing, |world, round| {
        let stream = 2 * round + 1;
        let request = frames::connect(stream, &authority(world, HTTP_PORT));
        [request, frames::frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
    });
}

#[test]
fn provoked_resets_are_cut_off() {
    assert_cut_off("rapid reset", nothing, |world, round| {
        let stream = 2 * round + 1;
        let request = frames::connect(stream, &authority(world, HTTP_PORT));
        [
            request,
            frames::frame(WINDOW_UPDATE, 0, stream, &0u32.to_be_bytes()),
        ]
        .concat()
    });
}

#[test]
fn a_continuation_flood_is_cut_off() {
    fn unfinished(world: &World) -> Vec<u8> {
        frames::frame(
            HEADERS,
            0,
            1,
            &frames::connect_block(&authority(world, HTTP_PORT)),
        )
    }
    assert_cut_off("CONTINUATION flood", unfinished, |_, _| {
        frames::frame(CONTINUATION, 0, 1, &[])
    });
}

#[test]
fn a_settings_flood_is_cut_off() {
    assert_cut_off("SETTINGS flood", nothing, |_, round| {
        let window = (round % 2 + 1) << 16;
        frames::frame(
            SETTINGS,
            0,
            0,
            &[&4u16.to_be_bytes()[..], &window.to_be_bytes()].concat(),
        )
    });
}

#[test]
fn a_ping_flood_is_cut_off() {
    assert_cut_off("PING flood", nothing, |_, round| {
        frames::frame(PING, 0, 0, &u64::from(round).to_be_bytes())
    });
}

#[test]
fn an_empty_data_flood_is_cut_off() {
    assert_cut_off("empty DATA flood", silent_stream, |_, _| {
        frames::frame(DATA, 0, 1, &[])
    });
}

#[test]
fn an_expanding_header_block_is_cut_off() {
    assert_cut_off("header list too large", nothing, |_, round| {
        // One entry of 4,000 bytes for the dynamic table, then thousands of references to it, one byte each.
        let mut block = vec![0x40, 1, b'x', 0x7f, 0xa1, 0x1e];
        block.resize(block.len() + 4_000, b'a');
        block.resize(16_000, 0xbe);
        frames::frame(HEADERS, END_HEADERS | END_STREAM, 2 * round + 1, &block)
    });
}

#[test]
fn data_beyond_the_window_is_cut_off() {
    assert_cut_off("frame beyond the window", silent_stream, |_, _| {
        frames::frame(DATA, 0, 1, &[0; 16_384])
    });
}

#[test]
fn tiny_frames_for_a_reader_that_stopped_cost_no_more_than_their_window() {
    let world = two_nodes();
    let _server = serve_http(world.pod("server"));
    let _silent = world.pod("server").serve(SILENT_PORT, |stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
        Ok(())
    });
    beside_honest_work(&world, |world| {
        let target = world.pod("server").address(Family::V4, 15008);
        let credentials = Credentials::valid(world, FRIEND);
        let mut peer = Peer::connect_h2(&world.pod("stranger").namespace, target, &credentials);
        assert!(peer.send(&[frames::opening(), silent_stream(world)].concat()));
        let tiny = frames::frame(DATA, 0, 1, &[7]).repeat(1_000);
        // A million frames with a byte each: within the window of 4 MiB, so they are legal.
        let accepted = (0..1_000).take_while(|_| peer.send(&tiny)).count();
        assert!(accepted > 0);
    });
}

/// They are legal, and each costs the peer as much as us: they are delivered, and nobody else notices.
#[test]
fn records_of_one_byte_cost_honest_clients_nothing() {
    let world = two_nodes();
    let _server = serve_http(world.pod("server"));
    let arrived = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&arrived);
    let sink = world.pod("server").serve(SINK_PORT, move |mut stream, _| {
        let count = Arc::clone(&count);
        async move {
            let mut buffer = [0; 64 * 1024];
            while let got @ 1.. = stream.read(&mut buffer).await? {
                assert!(buffer[..got].iter().all(|byte| *byte == 7));
                count.fetch_add(got, Ordering::Relaxed);
            }
            Ok(())
        }
    });
    let server = world.pod("server");
    let mut peer = tiny_records::Peer::connect(
        &signer(&world),
        &world.pod("stranger").namespace,
        server.address(Family::V4, 15008),
        FRIEND,
        &server.identity(),
    );
    let mut sent = 0;
    beside_honest_work(&world, |world| {
        let request = frames::connect(1, &authority(world, SINK_PORT));
        peer.send(&[frames::opening(), request].concat())
            .expect("not cut off");
        let frame = frames::frame(DATA, 0, 1, &[7; 1_000]);
        let until = Instant::now() + Duration::from_secs(u64::from(HONEST_SECONDS));
        // The window that every stream starts with holds all of it.
        while Instant::now() < until && sent < 3 << 20 {
            peer.send(&frame).expect("not cut off");
            sent += 1_000;
        }
        peer.send(&frames::frame(DATA, END_STREAM, 1, &[]))
            .expect("not cut off");
    });
    assert_eq!(sink.wait_for_ends(1), [Ok(())]);
    assert_eq!((arrived.load(Ordering::Relaxed), sent > 0), (sent, true));
}

#[test]
fn silent_sessions_and_half_handshakes_cost_honest_clients_nothing() {
    let world = two_nodes();
    let _server = serve_http(world.pod("server"));
    let mut half = Vec::new();
    beside_honest_work(&world, |world| {
        let target = world.pod("server").address(Family::V4, 15008);
        let credentials = Credentials::valid(world, FRIEND);
        let silent: Vec<Peer> = (0..20)
            .map(|_| Peer::connect_h2(&world.pod("stranger").namespace, target, &credentials))
            .collect();
        half = world.pod("stranger").run(async move {
            let mut half = Vec::new();
            for _ in 0..200 {
                let mut stream = tokio::net::TcpStream::connect(target).await.expect("connected");
                // The head of a ClientHello record, and no more. The proxy may have refused by now.
                let _ = stream.write_all(&[22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3]).await;
                half.push(stream);
            }
            tokio::time::sleep(Duration::from_secs(u64::from(HONEST_SECONDS))).await;
            half
        });
        drop(silent);
    });
    // Most were refused at once; the others were waited for, but not for ever.
    for reason in ["too many TLS handshakes", "was not done within 10 s"] {
        let logged = world.nodes[1]
            .proxy()
            .logs
            .wait_for_access(reason, |record| record.field("error").contains(reason));
        logged.expect("a reason in the log");
    }
    drop(half);
}

#[test]
fn a_storm_of_handshakes_costs_honest_clients_nothing() {
    let world = two_nodes();
    let _server = serve_http(world.pod("server"));
    beside_honest_work(&world, |world| {
        let target = world.pod("server").address(Family::V4, 15008);
        let credentials = Credentials::valid(world, FRIEND);
        let until = Instant::now() + Duration::from_secs(u64::from(HONEST_SECONDS));
        while Instant::now() < until {
            let peers: Vec<Peer> = (0..8)
                .map(|_| Peer::connect_h2(&world.pod("stranger").namespace, target, &credentials))
                .collect();
            drop(peers);
        }
    });
}

#[test]
fn a_connect_to_an_address_that_is_not_this_pod_is_answered_400() {
    let world = two_nodes();
    let server = serve_http(world.pod("server"));
    let target = world.pod("server").address(Family::V4, 15008);
    let credentials = Credentials::valid(&world, FRIEND);
    let mut peer = Peer::connect_h2(&world.pod("stranger").namespace, target, &credentials);
    let foreign = world.pod("client").address(Family::V4, HTTP_PORT).to_string();
    let requests = [
        frames::opening(),
        frames::connect(1, &foreign),
        frames::connect(3, "no-authority"),
        frames::connect(5, &authority(&world, HTTP_PORT)),
    ];
    assert!(peer.send(&requests.concat()));
    for (stream, expected) in [
        (1, frames::STATUS_400),
        (3, frames::STATUS_400),
        (5, frames::STATUS_200),
    ] {
        let status = peer.wait_for("an answer", |received| frames::answer(received, stream));
        assert_eq!(status, expected, "stream {stream}");
    }
    assert_eq!(server.peers().len(), 1);
    let record = world.nodes[1]
        .proxy()
        .logs
        .wait_for_access("the refusal", |record| {
            record.field("error").contains("ip mismatch")
        });
    assert_eq!(record.expect("a record").field("src.identity"), FRIEND);
}
