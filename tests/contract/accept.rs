//! Listening and handing over.

use std::io::{Read, Write};
use std::net::SocketAddr;

use uztunnel::sys::descriptor::Descriptor;
use uztunnel::sys::driver::{Close, Driver, Event, Owner, SocketId};

use crate::bench::{Bench, Caller, Peer};
use crate::rig::{OWNER, Rig};

fn next_accepted<B: Bench>(rig: &mut Rig<B>, of: SocketId) -> (Owner, Descriptor, SocketAddr) {
    rig.next("accepted connection", |event| match event {
        Event::Accepted {
            owner,
            listener,
            fd,
            peer,
        } if listener == of => Ok((owner, fd, peer)),
        other => Err(other),
    })
}

pub fn a_connection_is_accepted_with_its_peer_and_not_registered<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (listener, address) = rig.listener(OWNER);
    let client = bench.caller().connect(address).expect("connected");
    let (owner, fd, peer) = next_accepted(&mut rig, listener);
    assert_eq!(owner, OWNER);
    assert_eq!(peer, client.local_address());
    assert_eq!(rig.driver.in_use().sockets, 1, "the listener alone");
    bench.assert_is_as_accepted(&fd);
    rig.finish(&[listener]);
}

pub fn a_burst_of_connections_is_accepted_completely<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (listener, address) = rig.listener(OWNER);
    for _ in 0..3 {
        let clients: Vec<_> = (0..100)
            .map(|_| bench.caller().connect(address).expect("connected"))
            .collect();
        let mut expected: Vec<_> = clients.iter().map(Peer::local_address).collect();
        let mut peers: Vec<_> = (0..100).map(|_| next_accepted(&mut rig, listener).2).collect();
        expected.sort();
        peers.sort();
        assert_eq!(peers, expected);
    }
    rig.assert_silent();
    rig.finish(&[listener]);
}

pub fn an_accepted_connection_is_handed_to_another_driver<B: Bench>(bench: &B) {
    let mut home = Rig::new(bench);
    let mut other = Rig::new(bench);
    let (listener, address) = home.listener(OWNER);
    let mut client = bench.caller().connect(address).expect("connected");
    client.write_all(b"before").expect("written");
    let (_, fd, _) = next_accepted(&mut home, listener);
    let socket = other.driver.adopt(fd, OWNER).expect("adopted");
    other.stream(socket);
    assert_eq!(other.read(socket, 6), b"before");
    client.write_all(b"after").expect("written");
    assert_eq!(other.read(socket, 5), b"after");
    other.write(socket, b"answer");
    let mut answer = [0; 6];
    client.read_exact(&mut answer).expect("read");
    assert_eq!(&answer, b"answer");
    home.assert_silent();
    other.finish(&[socket]);
    home.finish(&[listener]);
}

pub fn a_closed_listener_accepts_nothing_more<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (listener, address) = rig.listener(OWNER);
    rig.turn(std::time::Duration::ZERO);
    rig.driver.close(listener, Close::Orderly);
    rig.wait_for("closing", |driver| driver.in_use().sockets == 0);
    let error = bench.caller().connect(address).err().expect("nobody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    rig.assert_silent();
    rig.finish(&[]);
}

/// Uses up every descriptor.
pub fn running_out_of_descriptors_pauses_accepting_until_asked_again<B: Bench>(bench: &B) {
    bench.alone(
        "running_out_of_descriptors_pauses_accepting_until_asked_again",
        || out_of_descriptors(bench),
    );
}

fn out_of_descriptors<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    let (listener, address) = rig.listener(OWNER);
    // The client's descriptor is taken first and only then every other.
    let caller = bench.caller();
    let hoard = bench.hoard_descriptors();
    let client = caller.connect(address).expect("connected");
    let error = rig.next("failure to accept", |event| match event {
        Event::AcceptFailed {
            owner: OWNER,
            listener: of,
            error,
        } if of == listener => Ok(error),
        other => Err(other),
    });
    assert_eq!(error.raw_os_error(), Some(24), "EMFILE");
    rig.assert_silent();
    drop(hoard);
    rig.driver.listen(listener);
    let (_, _, peer) = next_accepted(&mut rig, listener);
    assert_eq!(peer, client.local_address());
    rig.finish(&[listener]);
}
