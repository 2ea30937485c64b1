//! Resets in both directions: an end must never look like a reset, nor a reset like an end.

use std::io::{self, Read, Write};
use std::time::Duration;

use uztunnel::limits;
use uztunnel::sys::buffer::Payload;
use uztunnel::sys::driver::{Close, Driver, Received, SendStatus};

use crate::bench::{Bench, Peer};
use crate::rig::{Rig, assert_same, pattern};

fn expect_reset(received: Received) {
    match received {
        Received::Failed(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        over => panic!("{over:?}"),
    }
}

pub fn a_reset_by_the_peer_is_received_as_a_reset<B: Bench>(bench: &B) {
    for asked_before in [true, false] {
        let mut rig = Rig::new(bench);
        let (socket, peer) = rig.pair();
        if asked_before {
            rig.stream(socket);
            rig.turn(Duration::ZERO);
        }
        peer.reset();
        if !asked_before {
            rig.assert_silent();
            rig.stream(socket);
        }
        expect_reset(rig.next_received(socket));
        rig.assert_silent();
        rig.finish(&[socket]);
    }
}

pub fn a_reset_behind_bytes_is_not_taken_for_the_end<B: Bench>(bench: &B) {
    for sending in [false, true] {
        for _ in 0..8 {
            let mut rig = Rig::new(bench);
            let (socket, mut peer) = rig.pair();
            if sending {
                let bytes = Payload::whole(vec![1; bench.bulk(32 << 20)]);
                assert!(matches!(rig.driver.send(socket, bytes), SendStatus::Queued));
                rig.assert_silent();
            }
            peer.write_all(b"nearly all").expect("written");
            peer.reset();
            loop {
                match rig.receive_once(socket, 4096) {
                    Received::Data(_) => assert!(!rig.driver.take_end(socket)),
                    over => break expect_reset(over),
                }
            }
            if sending {
                let (_, error, _) = rig.next_sent(socket);
                assert_eq!(error.expect("reset").kind(), io::ErrorKind::ConnectionReset);
            }
            rig.assert_silent();
            rig.finish(&[socket]);
        }
    }
}

pub fn closing_with_reset_is_seen_as_a_reset_by_the_peer<B: Bench>(bench: &B) {
    for receiving in [true, false] {
        let mut rig = Rig::new(bench);
        let (socket, mut peer) = rig.pair();
        if receiving {
            rig.stream(socket);
            rig.turn(Duration::ZERO);
        }
        rig.driver.close(socket, Close::Reset);
        rig.wait_for("closing", |driver| driver.in_use().sockets == 0);
        let error = peer.read(&mut [0; 1]).expect_err("reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        rig.finish(&[]);
    }
}

pub fn closing_orderly_delivers_what_was_sent<B: Bench>(bench: &B) {
    for receiving in [true, false] {
        let mut rig = Rig::new(bench);
        let (socket, mut peer) = rig.pair();
        if receiving {
            rig.stream(socket);
            rig.turn(Duration::ZERO);
        }
        let sent = pattern(30_000.min(bench.unread_max()));
        rig.write(socket, &sent);
        rig.driver.close(socket, Close::Orderly);
        rig.wait_for("closing", |driver| driver.in_use().sockets == 0);
        let mut got = Vec::new();
        peer.read_to_end(&mut got).expect("an orderly end");
        assert_same(&got, &sent);
        rig.finish(&[]);
    }
}

/// The kernel reports an error of a socket once, to whoever comes first.
pub fn a_reset_that_a_send_meets_first_is_still_received_as_a_reset<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, peer) = rig.pair();
    peer.reset();
    rig.assert_silent();
    let payload = Payload::whole(b"too late".to_vec());
    let error = match rig.driver.send(socket, payload) {
        SendStatus::Failed { taken: 0, error, .. } => error,
        SendStatus::Queued => {
            let (taken, error, _) = rig.next_sent(socket);
            assert_eq!(taken, 0);
            error.expect("reset")
        }
        status => panic!("{status:?}"),
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    rig.stream(socket);
    expect_reset(rig.next_received(socket));
    rig.finish(&[socket]);
}

pub fn a_send_in_flight_fails_when_the_peer_resets<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    let bytes = vec![1; bench.bulk(32 << 20)];
    let len = bytes.len();
    assert!(matches!(
        rig.driver.send(socket, Payload::whole(bytes)),
        SendStatus::Queued
    ));
    rig.assert_silent();
    peer.write_all(b"x").expect("written");
    peer.reset();
    let (taken, error, payload) = rig.next_sent(socket);
    assert!(taken > 0 && taken < len);
    assert_eq!(payload.len(), len);
    let error = error.expect("reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    rig.finish(&[socket]);
}

/// Whichever of the two takes the error from the kernel, and in whatever order they are told.
pub fn a_reset_that_a_send_and_a_receive_meet_at_once_is_received_as_a_reset<B: Bench>(bench: &B) {
    for receive_first in [true, false] {
        let mut rig = Rig::new(bench);
        let (socket, peer) = rig.pair();
        peer.reset();
        rig.assert_silent();
        if receive_first {
            rig.stream(socket);
        }
        let payload = Payload::whole(vec![1; 4 * limits::SEND_DIRECT_BYTES_MAX]);
        let status = rig.driver.send(socket, payload);
        if !receive_first {
            rig.stream(socket);
        }
        expect_reset(rig.next_received(socket));
        if matches!(status, SendStatus::Queued) {
            let (_, error, _) = rig.next_sent(socket);
            error.expect("the connection is gone");
        }
        rig.finish(&[socket]);
    }
}

/// The send is told how much was taken before, and the error only then.
pub fn a_reset_amid_a_send_is_received_as_a_reset<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    rig.stream(socket);
    let bytes = vec![1; bench.bulk(32 << 20)];
    assert!(matches!(
        rig.driver.send(socket, Payload::whole(bytes)),
        SendStatus::Queued
    ));
    rig.assert_silent();
    peer.read_exact(&mut [0; 1]).expect("a part was sent");
    peer.reset();
    expect_reset(rig.next_received(socket));
    let (_, error, _) = rig.next_sent(socket);
    assert_eq!(error.expect("reset").kind(), io::ErrorKind::ConnectionReset);
    rig.finish(&[socket]);
}
