//! Receiving: streams, single receives, ends.

use std::io::{Read, Write};

use uztunnel::sys::driver::{Driver, Event, ReceiveMode, Received};

use crate::bench::{Bench, Peer};
use crate::rig::{Rig, assert_same, pattern};

pub fn a_stream_arrives_in_order_and_complete<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    let sent = pattern(bench.bulk(8 << 20));
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || {
            // Sizes from one byte to more than any receive buffer.
            let mut rest = &sent[..];
            let mut size = 1;
            while !rest.is_empty() {
                let (now, later) = rest.split_at(size.min(rest.len()));
                peer.write_all(now).expect("written");
                rest = later;
                size = (size * 3) % 700_001 + 1;
            }
        }
    });
    rig.stream(socket);
    assert_same(&rig.read_to_end(socket), &sent);
    writer.join().expect("written");
    rig.finish(&[socket]);
}

pub fn a_single_receive_gives_no_more_than_asked_and_only_once<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    let sent = pattern(1000);
    peer.write_all(&sent).expect("written");
    let mut got = Vec::new();
    for bytes_max in [1, 10, 100, 333] {
        rig.driver.receive(socket, ReceiveMode::Once { bytes_max });
        let Received::Data(buffer) = rig.next_received(socket) else {
            panic!("no bytes");
        };
        assert!((1..=bytes_max).contains(&buffer.len()));
        got.extend_from_slice(buffer.bytes());
        rig.assert_silent();
        assert_eq!(rig.driver.in_use().operations, 0);
    }
    rig.stream(socket);
    got.extend(rig.read(socket, sent.len() - got.len()));
    assert_same(&got, &sent);
    rig.finish(&[socket]);
}

pub fn a_single_receive_larger_than_a_message_gives_the_message<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    for message in [&b"one"[..], b"another"] {
        rig.driver
            .receive(socket, ReceiveMode::Once { bytes_max: 1 << 20 });
        rig.turn(std::time::Duration::ZERO);
        peer.write_all(message).expect("written");
        let mut got = Vec::new();
        while got.len() < message.len() {
            if !got.is_empty() {
                assert!(bench.cuts_messages(), "half a message");
                rig.driver
                    .receive(socket, ReceiveMode::Once { bytes_max: 1 << 20 });
            }
            let Received::Data(buffer) = rig.next_received(socket) else {
                panic!("no bytes");
            };
            got.extend_from_slice(buffer.bytes());
        }
        assert_eq!(got, message);
    }
    drop(peer);
    rig.assert_silent();
    rig.driver.receive(socket, ReceiveMode::Once { bytes_max: 1 });
    assert!(matches!(rig.next_received(socket), Received::End));
    rig.finish(&[socket]);
}

pub fn a_stopped_stream_is_silent_and_goes_on_without_a_gap<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    let sent = pattern(3000);
    let mut got = Vec::new();
    for (n, part) in sent.chunks(1000).enumerate() {
        // Stopped with nothing under way, in the middle, and with bytes that arrived already.
        rig.stream(socket);
        rig.turn(std::time::Duration::ZERO);
        let (now, later) = part.split_at(500);
        peer.write_all(now).expect("written");
        got.extend(rig.read(socket, 1000 * n + now.len() - got.len()));
        peer.write_all(later).expect("written");
        rig.driver.stop_receive(socket);
        // Whatever was on its way comes now or with the next receive, but nothing is lost or doubled.
        rig.wait_for("cancelling", |driver| driver.in_use().operations == 0);
        for event in rig.drain() {
            match event {
                Event::Received {
                    data: Received::Data(buffer),
                    ..
                } => got.extend_from_slice(buffer.bytes()),
                other => panic!("{other:?}"),
            }
        }
        rig.assert_silent();
    }
    rig.stream(socket);
    got.extend(rig.read(socket, sent.len() - got.len()));
    assert_same(&got, &sent);
    rig.finish(&[socket]);
}

/// Sessions have such a receive for as long as they live, and most are idle.
pub fn a_stream_that_waits_owns_no_buffer_also_after_a_stop<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    for _ in 0..32 {
        rig.stream(socket);
        rig.turn(std::time::Duration::ZERO);
        assert_eq!(rig.driver.in_use().buffers, 0);
        rig.driver.stop_receive(socket);
    }
    rig.stream(socket);
    let message = pattern(100);
    peer.write_all(&message).expect("written");
    assert_same(&rig.read(socket, message.len()), &message);
    rig.finish(&[socket]);
}

pub fn bytes_that_came_before_anyone_asked_are_not_lost<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    peer.write_all(b"early").expect("written");
    rig.assert_silent();
    rig.stream(socket);
    assert_eq!(rig.read(socket, 5), b"early");
    rig.finish(&[socket]);
}

pub fn bytes_before_the_end_come_before_the_end<B: Bench>(bench: &B) {
    for asked_before in [true, false] {
        let mut rig = Rig::new(bench);
        let (socket, mut peer) = rig.pair();
        if asked_before {
            rig.stream(socket);
            rig.turn(std::time::Duration::ZERO);
        }
        let sent = pattern(100_000.min(bench.unread_max()));
        peer.write_all(&sent).expect("written");
        drop(peer);
        if !asked_before {
            rig.assert_silent();
            rig.stream(socket);
        }
        assert_same(&rig.read_to_end(socket), &sent);
        rig.finish(&[socket]);
    }
}

pub fn the_peer_may_end_its_side_and_still_read<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    rig.stream(socket);
    peer.write_all(b"question").expect("written");
    peer.shutdown_send();
    assert_eq!(rig.read_to_end(socket), b"question");
    let answer = pattern(bench.bulk(1 << 20));
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        peer.read_to_end(&mut got).expect("read");
        got
    });
    rig.write(socket, &answer);
    rig.driver.shutdown_send(socket).expect("shut down");
    assert_same(&reader.join().expect("read"), &answer);
    rig.finish(&[socket]);
}

pub fn we_may_end_our_side_and_still_read<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    rig.stream(socket);
    rig.write(socket, b"question");
    rig.driver.shutdown_send(socket).expect("shut down");
    let mut question = Vec::new();
    peer.read_to_end(&mut question).expect("read");
    assert_eq!(question, b"question");
    rig.assert_silent();
    let answer = pattern(50_000.min(bench.unread_max()));
    peer.write_all(&answer).expect("written");
    assert_same(&rig.read(socket, answer.len()), &answer);
    drop(peer);
    assert!(matches!(rig.next_received(socket), Received::End));
    rig.finish(&[socket]);
}

pub fn nothing_follows_the_end<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, peer) = rig.pair();
    rig.stream(socket);
    drop(peer);
    assert!(matches!(rig.next_received(socket), Received::End));
    rig.assert_silent();
    assert_eq!(rig.driver.in_use().operations, 0);
    rig.finish(&[socket]);
}

pub fn an_end_that_was_taken_is_the_end<B: Bench>(bench: &B) {
    for _ in 0..8 {
        let mut rig = Rig::new(bench);
        let (socket, mut peer) = rig.pair();
        peer.write_all(b"all there is").expect("written");
        peer.shutdown_send();
        let mut got = Vec::new();
        loop {
            match rig.receive_once(socket, 4096) {
                Received::Data(buffer) => got.extend_from_slice(buffer.bytes()),
                Received::End => break,
                Received::Failed(error) => panic!("{error}"),
            }
            if rig.driver.take_end(socket) {
                assert_eq!(got, b"all there is");
                assert!(!rig.driver.take_end(socket), "it ends only once");
                rig.driver.receive(socket, ReceiveMode::Once { bytes_max: 1 });
                rig.assert_silent();
                break;
            }
        }
        assert_eq!(got, b"all there is");
        assert_eq!(rig.driver.in_use().operations, 0);
        rig.write(socket, b"answer");
        let mut answer = [0; 6];
        peer.read_exact(&mut answer).expect("the other direction goes on");
        rig.finish(&[socket]);
    }
}

pub fn what_goes_on_is_not_taken_for_the_end<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    assert!(!rig.driver.take_end(socket));
    let mut sent = Vec::new();
    let mut got = Vec::new();
    for round in 0..20 {
        peer.write_all(b"before").expect("written");
        sent.extend_from_slice(b"before");
        if round % 2 == 0 {
            // A receive ends where it was, and bytes follow.
            peer.send_urgent();
            peer.write_all(b"after").expect("written");
            sent.extend_from_slice(b"after");
        }
        while got.len() < sent.len() {
            let Received::Data(buffer) = rig.receive_once(socket, 4096) else {
                panic!("no bytes");
            };
            got.extend_from_slice(buffer.bytes());
            assert!(!rig.driver.take_end(socket));
        }
    }
    assert_eq!(got, sent);
    peer.write_all(b"more").expect("written");
    peer.shutdown_send();
    let Received::Data(buffer) = rig.receive_once(socket, 1) else {
        panic!("no bytes");
    };
    assert!(!rig.driver.take_end(socket), "most of it is still to be read");
    rig.stream(socket);
    assert_eq!([buffer.bytes(), &rig.read_to_end(socket)].concat(), b"more");
    drop(buffer);
    rig.finish(&[socket]);
}

pub fn urgent_data_does_not_stall_the_stream<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    rig.stream(socket);
    for _ in 0..20 {
        peer.write_all(b"before").expect("written");
        // The receiving kernel takes the urgent byte out of the stream and ends a receive where it was.
        peer.send_urgent();
        peer.write_all(b"after").expect("written");
        assert_eq!(rig.read(socket, 11), b"beforeafter");
    }
    rig.finish(&[socket]);
}

pub fn a_busy_socket_does_not_starve_a_quiet_one<B: Bench>(bench: &B) {
    const PART: usize = 1 << 20;
    let flood = bench.bulk(64 << 20);
    let mut rig = Rig::new(bench);
    let (busy, mut busy_peer) = rig.pair();
    let (quiet, mut quiet_peer) = rig.pair();
    rig.stream(busy);
    rig.stream(quiet);
    let writer = std::thread::spawn(move || {
        let part = vec![5; PART];
        for _ in 0..flood / PART {
            busy_peer.write_all(&part).expect("written");
        }
    });
    let mut flooded = 0;
    for _ in 0..10 {
        let at_writing = flooded;
        quiet_peer.write_all(b"me too").expect("written");
        let mut quiet_bytes = 0;
        while quiet_bytes < 6 {
            let (socket, buffer) = rig.next("bytes", |event| match event {
                Event::Received {
                    socket,
                    data: Received::Data(buffer),
                    ..
                } => Ok((socket, buffer)),
                other => Err(other),
            });
            if socket == quiet {
                quiet_bytes += buffer.len();
            } else {
                flooded += buffer.len();
            }
        }
        // 4 MiB is all the blocks that a driver has.
        assert!(
            flooded - at_writing <= 8 << 20,
            "{} bytes went first",
            flooded - at_writing
        );
    }
    rig.read(busy, flood - flooded);
    writer.join().expect("written");
    rig.finish(&[busy, quiet]);
}
