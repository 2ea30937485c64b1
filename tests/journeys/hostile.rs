//! Hostile peers that hold a valid certificate. Beside each, an honest client's new connections do not fail, the
//! proxy's memory stays within what its bounds come to, and the peer is cut off with a reason in the log, or costs no
//! more CPU than ordinary traffic does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use uztunnel::limits;
use uztunnel_rig::applications::echo;
use uztunnel_rig::{Family, Membership, PodSpec, ProxyOptions, World, http, wait_until};

use crate::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use crate::openssl::{Credentials, Peer};
use crate::setup::{HTTP_PORT, authority as signer, options, plan, serve_http, two_nodes};
use crate::tiny_records;

const FRIEND: &str = "spiffe://cluster.local/ns/shop/sa/friend";

/// New connections per second of the honest client.
const HONEST_RATE: u32 = 50;
/// How long the honest client goes on beside an attack.
const HONEST_SECONDS: u32 = 3;

/// Bytes after which an attack that nobody stopped gives up: far more than any bound allows it to make us hold.
const ATTACK_BYTES_MAX: usize = 256 << 20;

/// What the allocator may keep beyond what is held.
const ALLOCATOR_BYTES: usize = 8 << 20;
/// Plaintext that slices may pin on the worker of the attack before small ones are copied out: how much of it they do
/// depends on how much comes in one turn, and so on how busy the machine is.
const PINNED_BYTES: usize = limits::CHUNKS_PINNED_SOFT * limits::CHUNK_BYTES;
/// A line of the access log in memory, strings included.
const LOG_LINE_BYTES: usize = 1024;

/// A task that sets a stream up, with the request that it is for.
const SETUP_BYTES: usize = 4096;

/// A hostile unit costs at most this many ordinary ones. The quarter is for measuring: both are means of one run.
const COST_FACTOR: f64 = 1.25;

/// Sessions without a stream, handshakes without an end, and handshakes at a time.
const SILENT: usize = 20;
const HALF: usize = 200;
const STORMING: usize = 4;

/// Where nobody reads what arrives.
const SILENT_PORT: u16 = 4300;
/// Where everything is read and nothing answered.
const SINK_PORT: u16 = 4301;
const BULK_PORT: u16 = 4302;
const ECHO_PORT: u16 = 4303;

/// What an attack may make the proxy hold: its bounds allow no more.
#[derive(Clone, Copy, Default)]
struct Holds {
    sessions: usize,
    /// Streams to applications that stopped reading.
    unread: usize,
    handshakes: usize,
    /// Streams whose applications are being connected to.
    setups: usize,
}

impl Holds {
    const SESSION: Self = Self {
        sessions: 1,
        unread: 0,
        handshakes: 0,
        setups: 0,
    };
    const UNREAD_STREAM: Self = Self {
        unread: 1,
        ..Self::SESSION
    };
    const GIVEN_UP_STREAMS: Self = Self {
        setups: limits::HTTP2_RESETS_UNSERVED.burst as usize,
        ..Self::SESSION
    };

    fn bytes_max(self) -> u64 {
        let bytes = self.sessions * limits::SESSION_BYTES_MAX
            + self.unread * limits::STREAM_BYTES_MAX
            + self.handshakes * limits::HANDSHAKE_BYTES_MAX
            + self.setups * SETUP_BYTES
            + PINNED_BYTES
            + limits::LOG_LINES_QUEUED_MAX * LOG_LINE_BYTES
            + ALLOCATOR_BYTES;
        bytes as u64
    }
}

fn cpu_ns(world: &World) -> u64 {
    world.nodes[1].proxy().cpu_ns().expect("readable")
}

/// Fills the pools that every worker keeps, as bulk transfers do, so that what is held afterwards is an attack's.
fn fill_pools(world: &World) {
    const BYTES: usize = 16 << 20;
    let sink = world.pod("server").serve(BULK_PORT, |mut stream, _| async move {
        let mut buffer = vec![0; 256 * 1024];
        while stream.read(&mut buffer).await? > 0 {}
        stream.shutdown().await
    });
    let target = world.pod("server").address(Family::V4, BULK_PORT);
    world.pod("client").run(async move {
        let mut running = JoinSet::new();
        for _ in 0..8 {
            running.spawn(async move {
                let mut stream = TcpStream::connect(target).await.expect("connected");
                stream.write_all(&vec![0; BYTES]).await.expect("taken");
                stream.shutdown().await.expect("open");
                stream.read_to_end(&mut Vec::new()).await.expect("an end");
            });
        }
        running.join_all().await;
    });
    assert_eq!(sink.wait_for_ends(8), [Ok(()); 8]);
}

/// What a connection with one request costs the proxy, in nanoseconds of CPU.
fn cost_of_a_request(world: &World) -> u64 {
    const REQUESTS: u64 = 100;
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let before = cpu_ns(world);
    world.pod("client").run(async move {
        for _ in 0..REQUESTS {
            http::get(target, "/").await.expect("answered");
        }
    });
    (cpu_ns(world) - before) / REQUESTS
}

/// What a message of 1 KiB and its answer cost on a connection that is there.
fn cost_of_a_message(world: &World) -> u64 {
    const MESSAGES: u64 = 1_000;
    let _echo = world.pod("server").serve(ECHO_PORT, echo);
    let target = world.pod("server").address(Family::V4, ECHO_PORT);
    let client = world.pod("client");
    let stream = client.run(TcpStream::connect(target));
    let mut stream = stream.expect("connected");
    let before = cpu_ns(world);
    client.run(async move {
        let mut message = [7; 1024];
        for _ in 0..MESSAGES {
            stream.write_all(&message).await.expect("taken");
            stream.read_exact(&mut message).await.expect("echoed");
        }
    });
    (cpu_ns(world) - before) / MESSAGES
}

/// What a session costs on which one request is made.
fn cost_of_a_session(world: &World) -> u64 {
    const SESSIONS: u64 = 20;
    let target = world.pod("server").address(Family::V4, 15008);
    let before = cpu_ns(world);
    for _ in 0..SESSIONS {
        let credentials = Credentials::valid(world, FRIEND);
        let mut peer = Peer::connect_h2(&world.pod("stranger").namespace, target, &credentials);
        let request = frames::connect(1, &authority(world, HTTP_PORT));
        assert!(peer.send(&[frames::opening(), request].concat()));
        let status = peer.wait_for("an answer", |received| frames::answer(received, 1));
        assert_eq!(status, frames::STATUS_200);
    }
    (cpu_ns(world) - before) / SESSIONS
}

fn assert_costs_no_more(what: &str, units: u64, ns: u64, ordinary: u64) {
    let each = ns as f64 / units as f64;
    println!("{what}: {units} units, {each:.0} ns of CPU each, an ordinary one {ordinary} ns");
    assert!(
        each <= COST_FACTOR * ordinary as f64,
        "{what}: {units} units at {each:.0} ns of CPU, an ordinary one takes {ordinary} ns"
    );
}

/// Runs `attack` while the honest client works, and checks what has to hold beside any attack. Returns the CPU time
/// that the attack cost the proxy, in nanoseconds.
fn beside_honest_work(world: &World, holds: Holds, attack: impl FnOnce(&World) + Send) -> u64 {
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let proxy = world.nodes[1].proxy();
    fill_pools(world);
    let honest_ns = cost_of_a_request(world) * u64::from(HONEST_RATE * HONEST_SECONDS);
    proxy.forget_peak().expect("writable");
    let before = proxy.resident_bytes().expect("readable");
    let ns_before = cpu_ns(world);
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
    // By now the session of the attack may be gone, and what it held with it.
    let growth = proxy.peak_bytes().expect("readable").saturating_sub(before);
    let bytes_max = holds.bytes_max();
    println!(
        "memory grew by at most {} KiB of {} KiB",
        growth >> 10,
        bytes_max >> 10
    );
    assert!(
        growth <= bytes_max,
        "the proxy's memory grew by {} KiB; its bounds come to {} KiB",
        growth >> 10,
        bytes_max >> 10
    );
    (cpu_ns(world) - ns_before).saturating_sub(honest_ns)
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

fn assert_cut_off(
    reason: &str,
    holds: Holds,
    opening: fn(&World) -> Vec<u8>,
    next: fn(&World, u32) -> Vec<u8>,
) {
    let world = two_nodes();
    let _server = serve_http(world.pod("server"));
    let _silent = world.pod("server").serve(SILENT_PORT, |stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
        Ok(())
    });
    beside_honest_work(&world, holds, |world| {
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
    assert_cut_off("rapid reset", Holds::GIVEN_UP_STREAMS, nothing, |world, round| {
        let stream = 2 * round + 1;
        let request = frames::connect(stream, &authority(world, HTTP_PORT));
        [request, frames::frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
    });
}

#[test]
fn provoked_resets_are_cut_off() {
    assert_cut_off("rapid reset", Holds::GIVEN_UP_STREAMS, nothing, |world, round| {
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
    assert_cut_off("CONTINUATION flood", Holds::SESSION, unfinished, |_, _| {
        frames::frame(CONTINUATION, 0, 1, &[])
    });
}

#[test]
fn a_settings_flood_is_cut_off() {
    assert_cut_off("SETTINGS flood", Holds::SESSION, nothing, |_, round| {
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
    assert_cut_off("PING flood", Holds::SESSION, nothing, |_, round| {
        frames::frame(PING, 0, 0, &u64::from(round).to_be_bytes())
    });
}

#[test]
fn an_empty_data_flood_is_cut_off() {
    assert_cut_off("empty DATA flood", Holds::UNREAD_STREAM, silent_stream, |_, _| {
        frames::frame(DATA, 0, 1, &[])
    });
}

#[test]
fn an_expanding_header_block_is_cut_off() {
    assert_cut_off("header list too large", Holds::SESSION, nothing, |_, round| {
        // One entry of 4,000 bytes for the dynamic table, then thousands of references to it, one byte each.
        let mut block = vec![0x40, 1, b'x', 0x7f, 0xa1, 0x1e];
        block.resize(block.len() + 4_000, b'a');
        block.resize(16_000, 0xbe);
        frames::frame(HEADERS, END_HEADERS | END_STREAM, 2 * round + 1, &block)
    });
}

#[test]
fn data_beyond_the_window_is_cut_off() {
    assert_cut_off(
        "frame beyond the window",
        Holds::UNREAD_STREAM,
        silent_stream,
        |_, _| frames::frame(DATA, 0, 1, &[0; 16_384]),
    );
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
    let ordinary = cost_of_a_message(&world);
    let ns = beside_honest_work(&world, Holds::UNREAD_STREAM, |world| {
        let target = world.pod("server").address(Family::V4, 15008);
        let credentials = Credentials::valid(world, FRIEND);
        let mut peer = Peer::connect_h2(&world.pod("stranger").namespace, target, &credentials);
        assert!(peer.send(&[frames::opening(), silent_stream(world)].concat()));
        let tiny = frames::frame(DATA, 0, 1, &[7]).repeat(1_000);
        // A million frames with a byte each: within the window of 4 MiB, so they are legal.
        let accepted = (0..1_000).take_while(|_| peer.send(&tiny)).count();
        assert_eq!(accepted, 1_000);
        assert!(!peer.is_over());
    });
    assert_costs_no_more("tiny frames", 1_000_000, ns, ordinary);
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
    let ordinary = cost_of_a_message(&world);
    let ns = beside_honest_work(&world, Holds::UNREAD_STREAM, |world| {
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
    // Each frame of 1,000 bytes has a header of nine.
    assert_costs_no_more("records of one byte", sent as u64 / 1_000 * 1_009, ns, ordinary);
}

#[test]
fn silent_sessions_and_half_handshakes_cost_honest_clients_nothing() {
    let world = two_nodes();
    let _server = serve_http(world.pod("server"));
    let (mut half, mut silent) = (Vec::new(), Vec::new());
    let ordinary = cost_of_a_session(&world);
    let holds = Holds {
        sessions: SILENT,
        // On either worker.
        handshakes: 2 * limits::HANDSHAKES_SOURCE_MAX,
        ..Holds::default()
    };
    let ns = beside_honest_work(&world, holds, |world| {
        let target = world.pod("server").address(Family::V4, 15008);
        let credentials = Credentials::valid(world, FRIEND);
        silent = (0..SILENT)
            .map(|_| Peer::connect_h2(&world.pod("stranger").namespace, target, &credentials))
            .collect();
        half = world.pod("stranger").run(async move {
            let mut half = Vec::new();
            for _ in 0..HALF {
                let mut stream = TcpStream::connect(target).await.expect("connected");
                // The head of a ClientHello record, and no more. The proxy may have refused by now.
                let _ = stream.write_all(&[22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3]).await;
                half.push(stream);
            }
            tokio::time::sleep(Duration::from_secs(u64::from(HONEST_SECONDS))).await;
            half
        });
    });
    assert_costs_no_more("silent and half handshakes", (SILENT + HALF) as u64, ns, ordinary);
    let logs = &world.nodes[1].proxy().logs;
    // Most were refused at once; the others were waited for, but not for ever.
    for reason in [
        "too many TLS handshakes of one source with one pod at once: 64 are allowed",
        "did not finish the TLS handshake within 10s",
    ] {
        let logged = logs.wait_for_access(reason, |record| record.field("error").contains(reason));
        logged.expect("a reason in the log");
    }
    // Those that said nothing after it.
    let patience = limits::SILENT_SESSION + 2 * limits::PING_INTERVAL;
    let reason = "session closed: the peer opened no stream within 30 s after its handshake";
    let logged = logs.wait_within(patience, reason, |line| {
        line.contains(reason) && line.contains(FRIEND)
    });
    logged.expect("a reason in the log");
    for peer in &mut silent {
        peer.wait_until_over();
    }
    drop(half);
}

#[test]
fn further_sessions_of_one_source_are_offered_smaller_windows_and_those_of_others_whole_ones() {
    const SESSIONS: usize = 3 * limits::SESSIONS_SOURCE_WHOLE;
    let blueprint = plan().pod(PodSpec::new("other", 0).membership(Membership::Outside));
    let mut world = World::build(blueprint).expect("a world");
    // Each worker counts what it has.
    let options = options().map(|options| ProxyOptions {
        workers: 1,
        ..options
    });
    world.start_proxies(&options).expect("ready proxies");
    let target = world.pod("server").address(Family::V4, 15008);
    let credentials = Credentials::valid(&world, FRIEND);
    let connect = |from: &str| {
        let mut peer = Peer::connect_h2(&world.pod(from).namespace, target, &credentials);
        assert!(peer.send(&frames::opening()));
        let window = peer.wait_for("its window", frames::connection_window);
        (peer, window)
    };
    let whole = limits::HTTP2_CONNECTION_WINDOW_BYTES;
    let flood: Vec<_> = (0..SESSIONS).map(|_| connect("stranger")).collect();
    let offered: Vec<u32> = flood.iter().map(|(_, window)| *window).collect();
    let shares = (1..=SESSIONS).map(|number| limits::session_window_bytes(whole, number));
    assert_eq!(offered, shares.collect::<Vec<_>>());
    assert_eq!(connect("other").1, whole);
    // Places come back.
    drop(flood);
    wait_until("a whole window", || {
        (connect("stranger").1 == whole).then_some(())
    });
}

#[test]
fn a_storm_of_handshakes_costs_honest_clients_nothing() {
    let world = two_nodes();
    let _server = serve_http(world.pod("server"));
    let ordinary = cost_of_a_session(&world);
    let (target, identity) = {
        let server = world.pod("server");
        (server.address(Family::V4, 15008), server.identity())
    };
    let signer = signer(&world);
    let handshakes = AtomicUsize::new(0);
    let holds = Holds {
        sessions: STORMING,
        ..Holds::default()
    };
    let ns = beside_honest_work(&world, holds, |world| {
        let from = &world.pod("stranger").namespace;
        let until = Instant::now() + Duration::from_secs(u64::from(HONEST_SECONDS));
        std::thread::scope(|scope| {
            for _ in 0..STORMING {
                scope.spawn(|| {
                    while Instant::now() < until {
                        drop(tiny_records::Peer::connect(
                            &signer, from, target, FRIEND, &identity,
                        ));
                        handshakes.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
    });
    let handshakes = handshakes.into_inner() as u64;
    assert!(handshakes > 50, "{handshakes} are no storm");
    assert_costs_no_more("handshakes", handshakes, ns, ordinary);
}

#[test]
fn a_request_that_is_not_for_this_pod_is_answered_by_what_is_wrong_with_it() {
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
        frames::get(7, &authority(&world, HTTP_PORT)),
        frames::connect(9, "nobody.shop.svc.cluster.local:80"),
    ];
    assert!(peer.send(&requests.concat()));
    for (stream, expected) in [
        (1, frames::STATUS_400),
        (3, frames::STATUS_400),
        (5, frames::STATUS_200),
        (7, frames::STATUS_400),
    ] {
        let status = peer.wait_for("an answer", |received| frames::answer(received, stream));
        assert_eq!(status, expected, "stream {stream}");
    }
    // No entry of the static table, so the status stands there.
    let unknown = peer.wait_for("an answer", |received| {
        frames::answer_block(received, 9).map(<[u8]>::to_vec)
    });
    assert!(unknown.ends_with(b"503"), "{unknown:?}");
    // The kernel takes a connection before the application does.
    let peers = wait_until("the one that is for this pod", || {
        Some(server.peers()).filter(|peers| !peers.is_empty())
    });
    assert_eq!(peers.len(), 1);
    let record = world.nodes[1]
        .proxy()
        .logs
        .wait_for_access("the refusal", |record| {
            record.field("error").contains("ip mismatch")
        });
    assert_eq!(record.expect("a record").field("src.identity"), FRIEND);
}
