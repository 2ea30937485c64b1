//! Receive buffers and slots, few and many.

use std::io::Write;

use uztunnel::sys::driver::{Driver, Event, Owner, ReceiveMode, Received};

use crate::bench::Bench;
use crate::rig::{Rig, assert_same, pattern};

/// More than any driver has blocks.
const HELD: usize = 1200;

pub fn other_sockets_receive_while_every_buffer_is_held<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (hoarder, mut hoarders_peer) = rig.pair();
    let (other, mut others_peer) = rig.pair();
    let sent = pattern(HELD);
    hoarders_peer.write_all(&sent).expect("written");
    let mut held = Vec::new();
    for _ in 0..HELD {
        rig.driver.receive(hoarder, ReceiveMode::Once { bytes_max: 1 });
        match rig.next_received(hoarder) {
            Received::Data(buffer) => held.push(buffer),
            over => panic!("{over:?} after {} bytes", held.len()),
        }
    }
    let mut streams = Vec::new();
    for n in 0..40u8 {
        let (socket, mut peer) = rig.pair();
        rig.stream(socket);
        peer.write_all(&[n; 100]).expect("written");
        match rig.next_received(socket) {
            Received::Data(buffer) => held.push(buffer),
            over => panic!("{over:?}"),
        }
        streams.push((socket, peer));
    }
    rig.stream(other);
    let bulk = pattern(bench.bulk(600_000));
    let writer = std::thread::spawn({
        let bulk = bulk.clone();
        move || others_peer.write_all(&bulk).expect("written")
    });
    assert_same(&rig.read(other, bulk.len()), &bulk);
    writer.join().expect("written");
    // Nothing that is held was written to meanwhile.
    for (buffer, byte) in held.iter().zip(&sent) {
        assert_eq!(buffer.bytes(), [*byte]);
    }
    for (n, buffer) in held[HELD..].iter().enumerate() {
        assert!(!buffer.is_empty() && buffer.bytes().iter().all(|byte| usize::from(*byte) == n));
    }
    assert!(
        rig.driver.counters().buffer_fallbacks > 0,
        "the pool was never empty"
    );
    drop(held);
    let mut sockets: Vec<_> = streams.iter().map(|(socket, _)| *socket).collect();
    sockets.extend([hoarder, other]);
    rig.finish(&sockets);
}

pub fn a_received_buffer_outlives_its_socket_and_its_driver<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    rig.stream(socket);
    peer.write_all(b"kept").expect("written");
    let Received::Data(buffer) = rig.next_received(socket) else {
        panic!("no bytes");
    };
    let kept = match bench.cuts_messages() {
        true => &b"kept"[..buffer.len()],
        false => b"kept",
    };
    rig.driver.close(socket, uztunnel::sys::driver::Close::Orderly);
    rig.wait_for("closing", |driver| driver.in_use().sockets == 0);
    assert_eq!(buffer.bytes(), kept);
    drop(rig);
    assert_eq!(buffer.bytes(), kept);
}

pub fn a_thousand_pairs_echo_and_leave_nothing_behind<B: Bench>(bench: &B) {
    const PAIRS: usize = 1000;
    let mut rig = Rig::new(bench);
    let mut asking = Vec::new();
    let mut all = Vec::new();
    for (n, (ours, theirs)) in bench.inner_pairs(PAIRS).into_iter().enumerate() {
        let (a, b) = (Owner(n as u64), Owner((PAIRS + n) as u64));
        let (a, b) = (rig.adopt(ours, a), rig.adopt(theirs, b));
        rig.stream(a);
        rig.stream(b);
        asking.push(a);
        all.extend([a, b]);
    }
    for round in 0..3u8 {
        for (n, socket) in asking.iter().enumerate() {
            rig.write(*socket, &[n as u8, (n >> 8) as u8, round]);
        }
        let mut answers = vec![Vec::new(); PAIRS];
        while answers.iter().any(|answer| answer.len() < 3) {
            let (owner, socket, buffer) = rig.next("echo", |event| match event {
                Event::Received {
                    owner,
                    socket,
                    data: Received::Data(buffer),
                } => Ok((owner, socket, buffer)),
                other => Err(other),
            });
            match usize::try_from(owner.0).expect("small").checked_sub(PAIRS) {
                Some(_) => rig.write(socket, buffer.bytes()),
                None => answers[owner.0 as usize].extend_from_slice(buffer.bytes()),
            }
        }
        for (n, answer) in answers.iter().enumerate() {
            assert_eq!(answer, &[n as u8, (n >> 8) as u8, round]);
        }
    }
    assert_eq!(rig.driver.in_use().sockets, 2 * PAIRS);
    rig.assert_silent();
    rig.finish(&all);
}
