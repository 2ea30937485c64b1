//! What the contract list cannot see: blocks, classes, bounds and the number of enters.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::*;
use crate::sys::driver::Received;
use crate::sys::rlimit;

const PATIENCE: Duration = Duration::from_secs(10);

fn driver(set: FeatureSet) -> UringDriver {
    UringDriver::new(Profile::new(set, limits::RING_ENTRIES, None)).expect("ring")
}

fn pair(driver: &mut UringDriver) -> (SocketId, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    theirs.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let id = driver
        .adopt(OwnedFd::from(ours).into(), Owner(0))
        .expect("adopted");
    (id, theirs)
}

fn turn(driver: &mut UringDriver) -> Vec<Event> {
    let mut events = Vec::new();
    driver.poll(Some(PATIENCE), &mut events).expect("polled");
    events
}

fn received(event: Event) -> Option<(SocketId, crate::sys::buffer::RecvBuffer)> {
    match event {
        Event::Received {
            socket,
            data: Received::Data(buffer),
            ..
        } => Some((socket, buffer)),
        Event::Received { data, .. } => panic!("{data:?}"),
        Event::Sent { .. } | Event::Woken => None,
        event @ (Event::Accepted { .. } | Event::AcceptFailed { .. } | Event::Connected { .. }) => {
            panic!("{event:?}")
        }
    }
}

fn blocks_in_kernel(driver: &UringDriver) -> Vec<usize> {
    driver.groups.iter().map(Group::available).collect()
}

#[test]
fn an_idle_connection_owns_no_buffer() {
    let mut driver = driver(FeatureSet::NEWEST);
    let before = blocks_in_kernel(&driver);
    assert!(before.iter().all(|blocks| *blocks > 0), "{before:?}");
    let peers: Vec<UnixStream> = (0..600)
        .map(|n| {
            let (id, peer) = pair(&mut driver);
            let mode = match n % 2 {
                0 => ReceiveMode::Stream,
                _ => ReceiveMode::Once { bytes_max: 4096 },
            };
            driver.receive(id, mode);
            peer
        })
        .collect();
    let mut events = Vec::new();
    driver.poll(Some(Duration::ZERO), &mut events).expect("polled");
    assert!(events.is_empty());
    assert_eq!(driver.in_use().operations, peers.len());
    assert_eq!(blocks_in_kernel(&driver), before);
    assert_eq!(driver.in_use().buffers, 0);
}

#[test]
fn blocks_come_back_to_the_kernel() {
    let mut driver = driver(FeatureSet::NEWEST);
    let before = blocks_in_kernel(&driver);
    let (id, mut peer) = pair(&mut driver);
    driver.receive(id, ReceiveMode::Stream);
    for round in 0..2_000u32 {
        peer.write_all(&round.to_le_bytes()).expect("written");
        let mut events = turn(&mut driver);
        let (_, buffer) = received(events.pop().expect("one event")).expect("bytes");
        assert_eq!(buffer.bytes(), round.to_le_bytes());
    }
    let mut events = Vec::new();
    driver.poll(Some(Duration::ZERO), &mut events).expect("polled");
    assert_eq!(blocks_in_kernel(&driver), before);
    assert_eq!(driver.counters().buffer_fallbacks, 0);
}

#[test]
fn bulk_gets_large_blocks_and_small_messages_small_ones_again() {
    for mode in [
        ReceiveMode::Stream,
        ReceiveMode::Once {
            bytes_max: usize::MAX,
        },
    ] {
        for set in [FeatureSet::NEWEST, FeatureSet::V5_19, FeatureSet::V5_15] {
            let mut driver = driver(set);
            let (id, peer) = pair(&mut driver);
            let socket = socket2::SockRef::from(&peer);
            socket.set_send_buffer_size(2 << 20).expect("buffer");
            driver.receive(id, mode);
            let pinned = |driver: &mut UringDriver, len: usize| {
                (&peer).write_all(&vec![7; len]).expect("written");
                let (mut got, mut largest) = (0, 0);
                while got < len {
                    for (_, buffer) in turn(driver).into_iter().filter_map(received) {
                        got += buffer.len();
                        largest = largest.max(buffer.pinned_bytes());
                        if mode != ReceiveMode::Stream {
                            driver.receive(id, mode);
                        }
                    }
                }
                largest
            };
            assert_eq!(
                pinned(&mut driver, 100),
                limits::RECEIVE_SMALL_BYTES,
                "{set} {mode:?}"
            );
            // What is on its way already may still come in small ones.
            pinned(&mut driver, 150_000);
            assert_eq!(
                pinned(&mut driver, 150_000),
                limits::RECEIVE_BYTES_MAX,
                "{set} {mode:?}"
            );
            let last = (0..100).map(|_| pinned(&mut driver, 100)).last();
            assert_eq!(last, Some(limits::RECEIVE_SMALL_BYTES), "{set} {mode:?}");
        }
    }
}

#[test]
fn a_turn_is_bounded_and_loses_nothing() {
    rlimit::raise_open_files().expect("limit");
    let mut driver = driver(FeatureSet::NEWEST);
    let count = limits::EVENTS_TURN_MAX + 200;
    let mut peers: Vec<UnixStream> = (0..count)
        .map(|_| {
            let (id, mut peer) = pair(&mut driver);
            peer.write_all(b"ready").expect("written");
            driver.receive(id, ReceiveMode::Stream);
            peer
        })
        .collect();
    let mut seen = 0;
    while seen < count {
        let events = turn(&mut driver);
        assert!(events.len() <= limits::EVENTS_TURN_MAX);
        seen += events.into_iter().filter_map(received).count();
    }
    assert_eq!(seen, count);
    // Without blocks for all of them some waited, and some read into memory of their own; no one stalls after.
    for peer in &mut peers {
        peer.write_all(b"again").expect("written");
    }
    let mut seen = 0;
    while seen < count {
        seen += turn(&mut driver).into_iter().filter_map(received).count();
    }
    assert_eq!(seen, count);
}

#[test]
fn sixty_four_connections_share_their_enters() {
    const CONNECTIONS: usize = 64;
    const ROUNDS: usize = 50;
    let mut driver = driver(FeatureSet::NEWEST);
    let mode = ReceiveMode::Once { bytes_max: 16 * 1024 };
    let mut relays = Vec::new();
    for _ in 0..CONNECTIONS {
        let (from, client) = pair(&mut driver);
        let (to, server) = pair(&mut driver);
        driver.receive(from, mode);
        relays.push((from, to, client, server));
    }
    turn_without_wait(&mut driver);
    let before = driver.counters();
    let message = [3; 1024];
    for _ in 0..ROUNDS {
        for (_, _, client, _) in &mut relays {
            client.write_all(&message).expect("written");
        }
        let mut sent = 0;
        while sent < CONNECTIONS {
            for event in turn(&mut driver) {
                if let Event::Sent { error, .. } = &event {
                    assert!(error.is_none());
                    sent += 1;
                }
                let Some((socket, buffer)) = received(event) else {
                    continue;
                };
                let (_, to, _, _) = relays.iter().find(|relay| relay.0 == socket).expect("ours");
                if let SendStatus::Done(_) = driver.send(*to, Payload::Received(buffer)) {
                    sent += 1;
                }
                driver.receive(socket, mode);
            }
        }
        for (_, _, _, server) in &mut relays {
            let mut got = [0; 1024];
            server.read_exact(&mut got).expect("relayed");
            assert_eq!(got, message);
        }
    }
    let after = driver.counters();
    let messages = (CONNECTIONS * ROUNDS) as u64;
    let enters = after.waits - before.waits;
    assert!(enters * 4 <= messages, "{enters} enters for {messages} messages");
    assert_eq!(after.buffer_fallbacks, 0);
}

fn turn_without_wait(driver: &mut UringDriver) {
    let mut events = Vec::new();
    driver.poll(Some(Duration::ZERO), &mut events).expect("polled");
    assert!(events.is_empty());
}

#[test]
fn no_operation_is_handed_to_a_kernel_thread() {
    for set in [FeatureSet::NEWEST, FeatureSet::V5_15] {
        let mut driver = driver(set);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("address");
        let listener = driver.adopt(listener.into(), Owner(0)).expect("adopted");
        driver.listen(listener);
        let client = driver
            .open(&SocketSpec::default(), address.ip(), Owner(1))
            .expect("opened");
        driver.connect(client, address);
        let (mut connected, mut accepted) = (false, None);
        while !connected || accepted.is_none() {
            for event in turn(&mut driver) {
                match event {
                    Event::Accepted { fd, .. } => {
                        accepted = Some(driver.adopt(fd, Owner(2)).expect("adopted"))
                    }
                    Event::Connected { result, .. } => connected = result.is_ok(),
                    other => panic!("{other:?}"),
                }
            }
        }
        let server = accepted.expect("accepted above");
        driver.receive(server, ReceiveMode::Stream);
        let bytes = vec![1; 8 << 20];
        let len = bytes.len();
        assert!(matches!(
            driver.send(client, Payload::whole(bytes)),
            SendStatus::Queued
        ));
        let mut got = 0;
        while got < len {
            got += turn(&mut driver)
                .into_iter()
                .filter_map(received)
                .map(|(_, buffer)| buffer.len())
                .sum::<usize>();
        }
        for task in std::fs::read_dir("/proc/self/task").expect("own threads") {
            let name = task.expect("entry").path().join("comm");
            let name = std::fs::read_to_string(name).unwrap_or_default();
            assert!(!name.starts_with("iou-wrk"), "{set}: {name}");
        }
    }
}

#[test]
fn in_crowded_turns_bulk_comes_behind_messages_and_every_second_turn_has_room_for_it() {
    for set in [FeatureSet::NEWEST, FeatureSet::V5_15] {
        let mut driver = driver(set);
        let (quiet, quiet_peer) = pair(&mut driver);
        let (sends, _reader) = pair(&mut driver);
        let (never_sends, _no_reader) = pair(&mut driver);
        driver.receive(quiet, ReceiveMode::Stream);
        turn_without_wait(&mut driver);
        driver.set_crowded(true);
        let part = limits::CROWDED_READ_BYTES;
        // The second is more than its peer has room for.
        for (socket, bytes) in [(sends, part), (never_sends, 64 * part)] {
            let status = driver.send(socket, Payload::whole(vec![1; bytes]));
            assert!(matches!(status, SendStatus::Queued));
        }
        let messages = |driver: &mut UringDriver| {
            (&quiet_peer).write_all(b"message").expect("written");
            let (mut messages, mut sent) = (0, 0);
            for event in turn(driver) {
                match event {
                    Event::Received { .. } => messages += event.received_bytes(),
                    Event::Sent { taken, error, .. } => {
                        assert!(error.is_none(), "{error:?}");
                        sent += taken;
                    }
                    other => panic!("{other:?}"),
                }
            }
            (messages, sent)
        };
        assert_eq!(messages(&mut driver), (7, 0), "{set}: bulk is put off");
        assert_eq!(messages(&mut driver), (7, part), "{set}: but only once");
        assert_eq!(messages(&mut driver), (7, 0), "{set}");
        // What waits is handed over before its cancellation, which would not find it otherwise.
        driver.close(never_sends, Close::Orderly);
        for _ in 0..10 {
            turn_without_wait(&mut driver);
        }
        assert_eq!(driver.in_use().sockets, 2, "{set}");
    }
}

#[test]
fn crowded_turns_receive_less_at_a_time() {
    // More than one receive brings, and no more than a socket may hold by itself (`net.core.wmem_max`).
    const WRITTEN: usize = limits::RECEIVE_BYTES_MAX + 1000;
    let mut driver = driver(FeatureSet::NEWEST);
    let (id, peer) = pair(&mut driver);
    socket2::SockRef::from(&peer)
        .set_send_buffer_size(212_992)
        .expect("buffer");
    driver.receive(id, ReceiveMode::Stream);
    let largest = |driver: &mut UringDriver| {
        (&peer).write_all(&[7; WRITTEN]).expect("written");
        let (mut got, mut largest) = (0, 0);
        while got < WRITTEN {
            for event in turn(driver) {
                got += event.received_bytes();
                largest = largest.max(event.received_bytes());
            }
        }
        largest
    };
    largest(&mut driver);
    assert_eq!(largest(&mut driver), limits::RECEIVE_BYTES_MAX);
    driver.set_crowded(true);
    // What goes on is taken back when it has brought something.
    largest(&mut driver);
    assert_eq!(largest(&mut driver), limits::CROWDED_READ_BYTES);
    driver.set_crowded(false);
    largest(&mut driver);
    assert_eq!(largest(&mut driver), limits::RECEIVE_BYTES_MAX);
}

#[test]
fn an_end_that_came_with_the_bytes_is_told_with_them() {
    let mut driver = driver(FeatureSet::NEWEST);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    let mut peer = TcpStream::connect(listener.local_addr().expect("address")).expect("connected");
    let (ours, _) = listener.accept().expect("accepted");
    let socket = driver.adopt(ours.into(), Owner(0)).expect("adopted");
    peer.write_all(b"all").expect("written");
    peer.shutdown(std::net::Shutdown::Write).expect("ended");
    driver.receive(socket, ReceiveMode::Once { bytes_max: 4096 });
    let (_, buffer) = turn(&mut driver).into_iter().find_map(received).expect("bytes");
    assert_eq!(buffer.bytes(), b"all");
    let calls = driver.counters().calls;
    assert!(driver.take_end(socket));
    assert_eq!(driver.counters().calls, calls + 1);
    assert_eq!(driver.in_use().operations, 0);
}

#[test]
fn where_nothing_was_left_the_end_costs_no_call() {
    let mut driver = driver(FeatureSet::NEWEST);
    let (socket, mut peer) = pair(&mut driver);
    driver.receive(socket, ReceiveMode::Once { bytes_max: 4096 });
    peer.write_all(b"some").expect("written");
    turn(&mut driver).into_iter().find_map(received).expect("bytes");
    let calls = driver.counters().calls;
    assert!(!driver.take_end(socket));
    assert_eq!(driver.counters().calls, calls);
}
