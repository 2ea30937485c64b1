//! Outgoing connections.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr};

use uztunnel::sys::driver::{Close, Driver, InUse, Owner, SocketSpec};

use crate::bench::{Bench, Port};
use crate::rig::{OWNER, Rig, assert_same, pattern};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub fn a_connection_is_made_and_carries_bytes_both_ways<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let port = bench.port();
    let socket = rig
        .driver
        .open(&SocketSpec::default(), LOCALHOST, Owner(1))
        .expect("opened");
    rig.driver.connect(socket, port.address());
    rig.driver.set_owner(socket, OWNER);
    rig.next_connected(socket).expect("connected");
    let (mut peer, from) = port.accept();
    assert_eq!(rig.driver.local_address(socket).expect("address"), from);
    rig.stream(socket);
    let there = pattern(100_000.min(bench.unread_max()));
    rig.write(socket, &there);
    let mut got = vec![0; there.len()];
    peer.read_exact(&mut got).expect("read");
    assert_same(&got, &there);
    peer.write_all(b"and back").expect("written");
    assert_eq!(rig.read(socket, 8), b"and back");
    rig.finish(&[socket]);
}

pub fn a_refused_connection_says_so<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let nobody = bench.port().address();
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

pub fn closing_while_connecting_is_silent<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (_crowd, address) = bench.full_port();
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

pub fn the_source_address_can_be_chosen<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let source: IpAddr = [127, 0, 0, 77].into();
    let spec = SocketSpec {
        bind_transparent: Some(source),
        ..SocketSpec::default()
    };
    let port = bench.port();
    let socket = rig.driver.open(&spec, LOCALHOST, OWNER).expect("opened");
    rig.driver.connect(socket, port.address());
    rig.next_connected(socket).expect("connected");
    let (_, from) = port.accept();
    assert_eq!(from.ip(), source);
    rig.finish(&[socket]);
}
