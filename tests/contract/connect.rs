//! Outgoing connections.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};
use uztunnel::sys::driver::{Close, Driver, InUse, Owner, SocketSpec};

use crate::rig::{OWNER, Rig, assert_same, pattern};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub fn a_connection_is_made_and_carries_bytes_both_ways<D: Driver>(make: &mut dyn FnMut() -> D) {
    let mut rig = Rig::new(make);
    let listener = TcpListener::bind((LOCALHOST, 0)).expect("bound");
    let socket = rig
        .driver
        .open(&SocketSpec::default(), LOCALHOST, Owner(1))
        .expect("opened");
    rig.driver
        .connect(socket, listener.local_addr().expect("address"));
    rig.driver.set_owner(socket, OWNER);
    rig.next_connected(socket).expect("connected");
    let (mut peer, from) = listener.accept().expect("accepted");
    assert_eq!(rig.driver.local_address(socket).expect("address"), from);
    rig.stream(socket);
    let there = pattern(100_000);
    rig.write(socket, &there);
    let mut got = vec![0; there.len()];
    peer.read_exact(&mut got).expect("read");
    assert_same(&got, &there);
    peer.write_all(b"and back").expect("written");
    assert_eq!(rig.read(socket, 8), b"and back");
    rig.finish(&[socket]);
}

pub fn a_refused_connection_says_so<D: Driver>(make: &mut dyn FnMut() -> D) {
    let mut rig = Rig::new(make);
    let nobody = {
        let listener = TcpListener::bind((LOCALHOST, 0)).expect("bound");
        listener.local_addr().expect("address")
    };
    let socket = rig
        .driver
        .open(&SocketSpec::default(), LOCALHOST, OWNER)
        .expect("opened");
    rig.driver.connect(socket, nobody);
    let error = rig.next_connected(socket).expect_err("nobody listens");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    rig.assert_silent();
    rig.finish(&[socket]);
}

/// A listener whose queue is full: the kernel drops every further SYN, so a connect stays under way.
fn full_listener() -> (Socket, Vec<Socket>, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    let any_port: SocketAddr = (LOCALHOST, 0).into();
    listener.bind(&any_port.into()).expect("bound");
    listener.listen(0).expect("listening");
    let address = listener.local_addr().expect("address");
    let address = address.as_socket().expect("inet");
    let mut clients = Vec::new();
    loop {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        let outcome = client.connect_timeout(&address.into(), std::time::Duration::from_millis(100));
        clients.push(client);
        match outcome {
            Ok(()) => assert!(clients.len() < 100, "the queue never fills"),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                return (listener, clients, address);
            }
        }
    }
}

pub fn closing_while_connecting_is_silent<D: Driver>(make: &mut dyn FnMut() -> D) {
    let mut rig = Rig::new(make);
    let (_listener, _clients, address) = full_listener();
    for (how, turns) in [
        (Close::Orderly, 0),
        (Close::Orderly, 1),
        (Close::Reset, 0),
        (Close::Reset, 1),
    ] {
        let socket = rig
            .driver
            .open(&SocketSpec::default(), LOCALHOST, OWNER)
            .expect("opened");
        rig.driver.connect(socket, address);
        for _ in 0..turns {
            rig.assert_silent();
        }
        assert_eq!(rig.driver.in_use().sockets, 1);
        rig.driver.close(socket, how);
        rig.wait_for("cancelling", |driver| driver.in_use() == InUse::default());
        rig.assert_silent();
    }
    rig.finish(&[]);
}

pub fn the_source_address_can_be_chosen<D: Driver>(make: &mut dyn FnMut() -> D) {
    let mut rig = Rig::new(make);
    let source: IpAddr = [127, 0, 0, 77].into();
    let spec = SocketSpec {
        bind_transparent: Some(source),
        ..SocketSpec::default()
    };
    let listener = TcpListener::bind((LOCALHOST, 0)).expect("bound");
    let socket = rig.driver.open(&spec, LOCALHOST, OWNER).expect("opened");
    rig.driver
        .connect(socket, listener.local_addr().expect("address"));
    rig.next_connected(socket).expect("connected");
    let (_, from) = listener.accept().expect("accepted");
    assert_eq!(from.ip(), source);
    rig.finish(&[socket]);
}
