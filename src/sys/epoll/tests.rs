//! What this driver promises beyond the contract: the price of things in system calls, and block sizes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::*;
use crate::limits;
use crate::sys::buffer::RecvBuffer;
use crate::sys::driver::{Event, Received};
use crate::sys::rlimit;

const OWNER: Owner = Owner(1);

fn pair(driver: &mut EpollDriver) -> (SocketId, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    let ours = TcpStream::connect(listener.local_addr().expect("address")).expect("connected");
    let (theirs, _) = listener.accept().expect("accepted");
    theirs.set_nodelay(true).expect("nodelay");
    (driver.adopt(ours.into(), OWNER).expect("adopted"), theirs)
}

fn poll(driver: &mut EpollDriver) -> Vec<Event> {
    let mut events = Vec::new();
    driver
        .poll(Some(Duration::from_secs(10)), &mut events)
        .expect("polling works");
    events
}

/// Waits until so many bytes are there.
fn await_bytes(driver: &EpollDriver, socket: SocketId, count: usize) {
    let descriptor = driver.descriptor(socket).expect("open");
    let mut room = vec![std::mem::MaybeUninit::uninit(); count];
    let flags = libc::MSG_PEEK | libc::MSG_WAITALL;
    let socket = SockRef::from(&descriptor);
    socket.set_nonblocking(false).expect("set");
    assert_eq!(socket.recv_with_flags(&mut room, flags).expect("peeked"), count);
    socket.set_nonblocking(true).expect("set");
}

/// What the next turn brings: bytes, and nothing else.
fn received(driver: &mut EpollDriver) -> RecvBuffer {
    let mut events = poll(driver);
    let Some(Event::Received {
        data: Received::Data(buffer),
        ..
    }) = events.pop()
    else {
        panic!("no bytes");
    };
    assert!(events.is_empty(), "{events:?}");
    buffer
}

#[test]
fn a_message_and_its_answer_cost_one_wait_one_receive_and_one_send() {
    const ROUNDS: u64 = 100;
    let mut driver = EpollDriver::new().expect("a driver");
    let (socket, mut peer) = pair(&mut driver);
    driver.receive(socket, ReceiveMode::Stream);
    let before = driver.counters();
    for _ in 0..ROUNDS {
        peer.write_all(b"question").expect("written");
        let buffer = received(&mut driver);
        let status = driver.send(socket, Payload::Received(buffer));
        assert!(matches!(status, SendStatus::Done(_)), "{status:?}");
        peer.read_exact(&mut [0; 8]).expect("read");
    }
    let after = driver.counters();
    assert_eq!(after.waits - before.waits, ROUNDS);
    assert_eq!(after.calls - before.calls, 2 * ROUNDS);
    assert_eq!(after.events - before.events, ROUNDS);
}

#[test]
fn a_message_that_ends_is_one_event_and_leaves_in_one_segment() {
    let mut driver = EpollDriver::new().expect("a driver");
    let (socket, mut peer) = pair(&mut driver);
    driver.receive(socket, ReceiveMode::Once { bytes_max: 4096 });
    peer.write_all(b"all").expect("written");
    peer.shutdown(std::net::Shutdown::Write).expect("ended");
    let buffer = received(&mut driver);
    assert!(driver.take_end(socket));
    assert!(matches!(
        driver.send_last(socket, Payload::Received(buffer)),
        SendStatus::Done(_)
    ));
    peer.set_nonblocking(true).expect("set");
    let early = peer.read(&mut [0; 8]).expect_err("held back for the end");
    assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
    peer.set_nonblocking(false).expect("set");
    driver.shutdown_send(socket).expect("shut down");
    let mut got = Vec::new();
    peer.read_to_end(&mut got).expect("read");
    assert_eq!(got, b"all");
}

#[test]
fn a_turn_gives_no_more_events_than_its_bound_and_none_is_lost() {
    let mut driver = EpollDriver::new().expect("a driver");
    let (socket, mut peer) = pair(&mut driver);
    driver.receive(socket, ReceiveMode::Stream);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    let address = listener.local_addr().expect("address");
    let listener = driver.adopt(listener.into(), OWNER).expect("adopted");
    driver.listen(listener);
    let clients: Vec<_> = (0..2 * limits::ACCEPTS_TURN_MAX + 1)
        .map(|_| TcpStream::connect(address).expect("connected"))
        .collect();
    peer.write_all(b"x").expect("written");
    let mut accepted = Vec::new();
    let mut received = 0;
    for _ in 0..3 {
        let mut turn = 0;
        for event in poll(&mut driver) {
            match event {
                Event::Accepted { fd, .. } => {
                    turn += 1;
                    accepted.push(fd);
                }
                Event::Received { .. } => received += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(turn <= limits::ACCEPTS_TURN_MAX);
    }
    assert_eq!((accepted.len(), received), (clients.len(), 1));
}

#[test]
fn bulk_moves_to_large_blocks_and_messages_move_back() {
    let mut driver = EpollDriver::new().expect("a driver");
    let (socket, mut peer) = pair(&mut driver);
    driver.receive(socket, ReceiveMode::Stream);
    let next = |driver: &mut EpollDriver| loop {
        if let Some(Event::Received {
            data: Received::Data(buffer),
            ..
        }) = poll(driver).pop()
        {
            return (buffer.len(), buffer.pinned_bytes());
        }
    };
    peer.write_all(b"small").expect("written");
    assert_eq!(next(&mut driver), (5, limits::RECEIVE_SMALL_BYTES));
    let bulk = vec![1; 2 * limits::RECEIVE_SMALL_BYTES];
    peer.write_all(&bulk).expect("written");
    assert_eq!(
        next(&mut driver),
        (limits::RECEIVE_SMALL_BYTES, limits::RECEIVE_SMALL_BYTES)
    );
    assert_eq!(
        next(&mut driver),
        (limits::RECEIVE_SMALL_BYTES, limits::RECEIVE_BYTES_MAX)
    );
    for _ in 0..pools::BULK_RECEIVES {
        peer.write_all(b"small").expect("written");
        assert_eq!(next(&mut driver), (5, limits::RECEIVE_BYTES_MAX));
    }
    peer.write_all(b"small").expect("written");
    assert_eq!(next(&mut driver), (5, limits::RECEIVE_SMALL_BYTES));
}

#[test]
fn in_crowded_turns_bulk_comes_behind_messages_and_every_second_turn_has_room_for_it() {
    let mut driver = EpollDriver::new().expect("a driver");
    let (bulk, mut bulk_peer) = pair(&mut driver);
    let (quiet, mut quiet_peer) = pair(&mut driver);
    driver.receive(bulk, ReceiveMode::Stream);
    driver.receive(quiet, ReceiveMode::Stream);
    let write = |driver: &EpollDriver, socket, peer: &mut TcpStream, count| {
        peer.write_all(&vec![1; count]).expect("written");
        await_bytes(driver, socket, count);
    };
    write(&driver, bulk, &mut bulk_peer, limits::RECEIVE_SMALL_BYTES);
    received(&mut driver);
    driver.set_crowded(true);
    for _ in 0..3 {
        write(&driver, bulk, &mut bulk_peer, limits::CROWDED_READ_BYTES);
        write(&driver, quiet, &mut quiet_peer, 7);
        assert_eq!(received(&mut driver).len(), 7, "bulk is put off");
        write(&driver, quiet, &mut quiet_peer, 7);
        let events = poll(&mut driver);
        let bytes: Vec<usize> = events.iter().map(Event::received_bytes).collect();
        assert_eq!(bytes, [7, limits::CROWDED_READ_BYTES], "but only once");
    }
    write(&driver, bulk, &mut bulk_peer, limits::CROWDED_READ_BYTES);
    write(&driver, quiet, &mut quiet_peer, 7);
    assert_eq!(received(&mut driver).len(), 7);
    // What was put off is not forgotten.
    driver.set_crowded(false);
    assert_eq!(received(&mut driver).len(), limits::CROWDED_READ_BYTES);
}

#[test]
fn a_turn_waits_for_blocks_that_it_lent_itself_before_it_falls_back() {
    let sockets_max = usize::from(limits::RECEIVE_SMALL_BLOCKS) + usize::from(limits::RECEIVE_BLOCKS);
    rlimit::raise_open_files().expect("own limit");
    let mut driver = EpollDriver::new().expect("a driver");
    let mut pairs = Vec::new();
    for _ in 0..sockets_max + 20 {
        let (socket, mut peer) = pair(&mut driver);
        driver.receive(socket, ReceiveMode::Stream);
        peer.write_all(b"x").expect("written");
        pairs.push((socket, peer));
    }
    // Everything is lent in the first turn, returned by dropping the events, and used again in the second.
    assert_eq!(poll(&mut driver).len(), sockets_max);
    assert_eq!(poll(&mut driver).len(), 20);
    assert_eq!(driver.counters().buffer_fallbacks, 0);
    assert_eq!(driver.counters().waits, 2);
}

#[test]
fn a_full_socket_is_watched_for_writing_once() {
    let mut driver = EpollDriver::new().expect("a driver");
    let (socket, mut peer) = pair(&mut driver);
    let mut calls = Vec::new();
    for _ in 0..2 {
        let before = driver.counters().calls;
        let bytes = vec![7; 16 << 20];
        let status = driver.send(socket, Payload::whole(bytes));
        assert!(matches!(status, SendStatus::Queued), "{status:?}");
        calls.push(driver.counters().calls - before);
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; 16 << 20];
            peer.read_exact(&mut got).expect("read");
            peer
        });
        while !matches!(poll(&mut driver)[..], [Event::Sent { error: None, .. }]) {}
        peer = reader.join().expect("read");
    }
    assert_eq!(calls, [2, 1], "send and epoll_ctl, then send alone");
}
