//! Handles, owners, and closing.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use uztunnel::sys::buffer::Payload;
use uztunnel::sys::driver::{Close, Driver, Event, InUse, Owner, ReceiveMode, SendStatus};

use crate::bench::Bench;
use crate::rig::{OWNER, Rig};

pub fn a_stale_handle_does_nothing_and_never_reaches_the_next_socket<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (stale, peer) = rig.pair();
    rig.stream(stale);
    rig.driver.close(stale, Close::Orderly);
    rig.wait_for("closing", |driver| driver.in_use() == InUse::default());
    drop(peer);
    let (live, mut peer) = rig.pair();
    assert_ne!(live, stale);
    rig.driver.set_owner(stale, Owner(666));
    rig.driver.receive(stale, ReceiveMode::Once { bytes_max: 1 });
    rig.driver.stop_receive(stale);
    rig.driver.listen(stale);
    rig.driver
        .connect(stale, SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
    assert!(rig.driver.local_address(stale).is_err());
    assert!(rig.driver.original_destination(stale).is_err());
    let error = rig.driver.shutdown_send(stale).expect_err("stale");
    assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    let payload = Payload::whole(b"nobody's".to_vec());
    match rig.driver.send(stale, payload) {
        SendStatus::Failed {
            taken: 0,
            error,
            payload,
        } => {
            assert_eq!(error.kind(), io::ErrorKind::NotConnected);
            assert_eq!(payload.len(), 8);
        }
        status => panic!("{status:?}"),
    }
    rig.driver.close(stale, Close::Reset);
    rig.assert_silent();
    assert_eq!(rig.driver.in_use().sockets, 1);
    // The live socket has not noticed.
    rig.stream(live);
    peer.write_all(b"ping").expect("written");
    let owner = rig.next("bytes", |event| match event {
        Event::Received { owner, .. } => Ok(owner),
        other => Err(other),
    });
    assert_eq!(owner, OWNER);
    rig.write(live, b"pong");
    let mut answer = [0; 4];
    peer.read_exact(&mut answer).expect("read");
    assert_eq!(&answer, b"pong");
    rig.finish(&[live]);
}

pub fn events_carry_the_owner_of_the_moment<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    rig.stream(socket);
    for owner in [OWNER, Owner(8), Owner(u64::MAX), Owner(0)] {
        rig.driver.set_owner(socket, owner);
        peer.write_all(b"x").expect("written");
        let got = rig.next("bytes", |event| match event {
            Event::Received { owner, .. } => Ok(owner),
            other => Err(other),
        });
        assert_eq!(got, owner);
    }
    rig.finish(&[socket]);
}

/// A payload that does not fit into the socket buffers of a peer that does not read.
fn too_much<B: Bench>(bench: &B) -> Payload {
    Payload::whole(vec![1; bench.bulk(32 << 20)])
}

pub fn closing_with_operations_in_flight_is_silent_and_complete<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    for how in [Close::Orderly, Close::Reset] {
        for turns in [0, 1] {
            let (socket, mut peer) = rig.pair();
            rig.stream(socket);
            assert!(matches!(
                rig.driver.send(socket, too_much(bench)),
                SendStatus::Queued
            ));
            for _ in 0..turns {
                rig.assert_silent();
            }
            assert_eq!(rig.driver.in_use().sockets, 1);
            assert!(rig.driver.in_use().operations >= 2);
            rig.driver.close(socket, how);
            rig.wait_for("cancelling", |driver| driver.in_use() == InUse::default());
            rig.assert_silent();
            // The descriptor is really closed: the peer's stream comes to an end, one way or the other.
            let mut rest = Vec::new();
            match (how, peer.read_to_end(&mut rest)) {
                (Close::Orderly, Ok(_)) => assert!(rest.len() < bench.bulk(32 << 20)),
                (Close::Orderly, Err(error)) => panic!("{error}"),
                (Close::Reset, outcome) => {
                    let error = outcome.expect_err("reset");
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                }
            }
        }
    }
    rig.finish(&[]);
}

pub fn dropping_a_driver_with_operations_in_flight_closes_its_sockets<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (idle, mut idle_peer) = rig.pair();
    rig.stream(idle);
    let (ours, mut busy_peer) = bench.narrow_pair();
    let busy = rig.adopt(ours, OWNER);
    assert!(matches!(
        rig.driver.send(busy, too_much(bench)),
        SendStatus::Queued
    ));
    rig.turn(std::time::Duration::ZERO);
    drop(rig);
    let mut rest = Vec::new();
    assert_eq!(idle_peer.read_to_end(&mut rest).expect("end"), 0);
    assert!(busy_peer.read_to_end(&mut rest).expect("end") < bench.bulk(32 << 20));
}
