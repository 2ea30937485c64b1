//! Sending: every kind of payload, also when the kernel takes it in many parts.

use std::io::{Read, Write};

use uztunnel::sys::buffer::{Chunk, Payload, RecvBuffer, Slice};
use uztunnel::sys::driver::{Driver, Event, SendStatus};

use crate::bench::Bench;
use crate::rig::{OWNER, Rig, assert_same, pattern};

pub fn a_small_payload_comes_back_when_sent<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    for n in 0..50u8 {
        let bytes = vec![n; 100];
        let payload = match rig.driver.send(
            socket,
            Payload::Bytes {
                bytes,
                from: 30,
                end: 100,
            },
        ) {
            SendStatus::Done(payload) => payload,
            SendStatus::Queued => rig.next_sent(socket).2,
            status => panic!("{status:?}"),
        };
        let Payload::Bytes {
            bytes,
            from: 30,
            end: 100,
        } = payload
        else {
            panic!("another payload came back");
        };
        assert_eq!(bytes, [n; 100]);
        let mut got = [0; 70];
        peer.read_exact(&mut got).expect("read");
        assert_eq!(got, [n; 70]);
    }
    rig.assert_silent();
    rig.finish(&[socket]);
}

pub fn the_last_payload_arrives_with_the_end<B: Bench>(bench: &B) {
    for len in [1, 1500, bench.bulk(1 << 20)] {
        for closed in [true, false] {
            let mut rig = Rig::new(bench);
            let (ours, mut peer) = bench.narrow_pair();
            let socket = rig.adopt(ours, OWNER);
            let reader = std::thread::spawn(move || {
                let mut got = Vec::new();
                peer.read_to_end(&mut got).expect("read");
                got
            });
            let sent = pattern(len);
            rig.write_last(socket, &sent);
            if closed {
                rig.finish(&[socket]);
                assert_same(&reader.join().expect("read"), &sent);
            } else {
                rig.driver.shutdown_send(socket).expect("shut down");
                assert_same(&reader.join().expect("read"), &sent);
                rig.finish(&[socket]);
            }
        }
    }
}

/// Sends `payload` through small socket buffers to a peer that starts to read late and reads little.
fn reach_slow_reader<B: Bench>(bench: &B, payload: Payload, expected: &[u8]) {
    let mut rig = Rig::new(bench);
    let (ours, mut peer) = bench.narrow_pair();
    let socket = rig.adopt(ours, OWNER);
    let len = payload.len();
    assert_eq!(len, expected.len());
    assert!(matches!(rig.driver.send(socket, payload), SendStatus::Queued));
    rig.assert_silent();
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        let mut part = [0; 1500];
        while got.len() < len {
            let n = peer.read(&mut part).expect("read");
            assert!(n > 0, "the stream ended after {} bytes", got.len());
            got.extend_from_slice(&part[..n]);
            std::thread::yield_now();
        }
        (got, peer)
    });
    let (taken, error, payload) = rig.next_sent(socket);
    assert!(error.is_none(), "{error:?}");
    assert_eq!((taken, payload.len()), (len, len));
    let (got, mut peer) = reader.join().expect("read");
    assert_same(&got, expected);
    // The next send starts where this one ended.
    rig.write(socket, b"next");
    let mut next = [0; 4];
    peer.read_exact(&mut next).expect("read");
    assert_eq!(&next, b"next");
    drop(payload);
    rig.finish(&[socket]);
}

pub fn plain_bytes_reach_a_slow_reader_exactly<B: Bench>(bench: &B) {
    let bytes = pattern(300_000);
    let expected = bytes[9..].to_vec();
    reach_slow_reader(
        bench,
        {
            let end = bytes.len();
            Payload::Bytes { bytes, from: 9, end }
        },
        &expected,
    );
}

pub fn slices_reach_a_slow_reader_exactly<B: Bench>(bench: &B) {
    // More pieces than one vectored send takes, of odd sizes, out of one chunk.
    let expected = pattern(300_000);
    let mut chunk = Chunk::new(expected.len());
    chunk.spare().copy_from_slice(&expected);
    chunk.fill(expected.len());
    let mut slices: Vec<Slice> = Vec::new();
    let mut at = 0;
    while at < expected.len() {
        let end = (at + 1 + (at * 7) % 1999).min(expected.len());
        slices.push(chunk.slice(at..end));
        at = end;
    }
    assert!(slices.len() > 200);
    reach_slow_reader(bench, Payload::Slices(slices), &expected);
    assert!(!chunk.is_shared(), "a slice was kept");
}

pub fn a_received_buffer_reaches_a_slow_reader_exactly<B: Bench>(bench: &B) {
    let expected = pattern(200_000);
    let mut buffer = RecvBuffer::copied(&expected);
    buffer.consume(13);
    reach_slow_reader(bench, Payload::Received(buffer), &expected[13..]);
}

pub fn receiving_goes_on_while_a_send_waits<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (socket, mut peer) = rig.pair();
    let sent = pattern(bench.bulk(32 << 20));
    let len = sent.len();
    rig.stream(socket);
    let payload = Payload::whole(sent.clone());
    assert!(matches!(rig.driver.send(socket, payload), SendStatus::Queued));
    for _ in 0..10 {
        peer.write_all(b"hello").expect("written");
        assert_eq!(rig.read(socket, 5), b"hello");
    }
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; len];
        peer.read_exact(&mut got).expect("read");
        got
    });
    let taken = rig.next("end of the send", |event| match event {
        Event::Sent {
            owner: OWNER,
            taken,
            error: None,
            ..
        } => Ok(taken),
        other => Err(other),
    });
    assert_eq!(taken, len);
    assert_same(&reader.join().expect("read"), &sent);
    rig.finish(&[socket]);
}
