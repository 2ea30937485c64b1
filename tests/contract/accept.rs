//! Listening and handing over.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use uztunnel::sys::descriptor::Descriptor;
use uztunnel::sys::driver::{Close, Driver, Event, Owner, SocketId};

use crate::rig::{OWNER, PATIENCE, Rig};

fn next_accepted<D: Driver>(rig: &mut Rig<D>, of: SocketId) -> (Owner, Descriptor, SocketAddr) {
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

pub fn a_connection_is_accepted_with_its_peer_and_not_registered<D: Driver>(make: &mut dyn FnMut() -> D) {
    let mut rig = Rig::new(make);
    let (listener, address) = rig.listener(OWNER);
    let client = TcpStream::connect(address).expect("connected");
    let (owner, fd, peer) = next_accepted(&mut rig, listener);
    assert_eq!(owner, OWNER);
    assert_eq!(peer, client.local_addr().expect("address"));
    assert_eq!(rig.driver.in_use().sockets, 1, "the listener alone");
    let info = std::fs::read_to_string(format!(
        "/proc/self/fdinfo/{}",
        fd.as_fd().expect("a socket of the kernel").as_raw_fd()
    ))
    .expect("fdinfo");
    let flags = info
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .expect("flags");
    let flags = u32::from_str_radix(flags.trim(), 8).expect("octal");
    assert_ne!(flags & 0o4000, 0, "not non-blocking");
    assert_ne!(flags & 0o2_000_000, 0, "not close-on-exec");
    rig.finish(&[listener]);
}

pub fn a_burst_of_connections_is_accepted_completely<D: Driver>(make: &mut dyn FnMut() -> D) {
    let mut rig = Rig::new(make);
    let (listener, address) = rig.listener(OWNER);
    for _ in 0..3 {
        let clients: Vec<_> = (0..100)
            .map(|_| TcpStream::connect(address).expect("connected"))
            .collect();
        let mut expected: Vec<_> = clients
            .iter()
            .map(|client| client.local_addr().expect("address"))
            .collect();
        let mut peers: Vec<_> = (0..100).map(|_| next_accepted(&mut rig, listener).2).collect();
        expected.sort();
        peers.sort();
        assert_eq!(peers, expected);
    }
    rig.assert_silent();
    rig.finish(&[listener]);
}

pub fn an_accepted_connection_is_handed_to_another_driver<D: Driver>(make: &mut dyn FnMut() -> D) {
    let mut home = Rig::new(make);
    let mut other = Rig::new(make);
    let (listener, address) = home.listener(OWNER);
    let mut client = TcpStream::connect(address).expect("connected");
    client.set_read_timeout(Some(PATIENCE)).expect("timeout");
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

pub fn a_closed_listener_accepts_nothing_more<D: Driver>(make: &mut dyn FnMut() -> D) {
    let mut rig = Rig::new(make);
    let (listener, address) = rig.listener(OWNER);
    rig.turn(std::time::Duration::ZERO);
    rig.driver.close(listener, Close::Orderly);
    rig.wait_for("closing", |driver| driver.in_use().sockets == 0);
    let error = TcpStream::connect(address).expect_err("nobody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    rig.assert_silent();
    rig.finish(&[]);
}

/// Uses up every descriptor of the process, so it runs in a process of its own: this test binary again.
pub fn running_out_of_descriptors_pauses_accepting_until_asked_again<D: Driver>(make: &mut dyn FnMut() -> D) {
    const ALONE: &str = "CONTRACT_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return out_of_descriptors(make);
    }
    // The test's thread has the test's name, unless all tests run on the main thread.
    let thread = std::thread::current();
    let name = match thread.name() {
        Some("main") | None => format!(
            "{}::running_out_of_descriptors_pauses_accepting_until_asked_again",
            make().name()
        ),
        Some(name) => name.to_owned(),
    };
    let output = std::process::Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", &name, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .expect("started");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "{text}");
}

fn out_of_descriptors<D: Driver>(make: &mut dyn FnMut() -> D) {
    let mut rig = Rig::new(make);
    let (listener, address) = rig.listener(OWNER);
    // The client's descriptor is taken first and only then every other.
    let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
    let mut taken = Vec::new();
    let error = loop {
        match File::open("/dev/null") {
            Ok(file) => taken.push(file),
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(24), "EMFILE");
    client.connect(&address.into()).expect("connected");
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
    drop(taken);
    rig.driver.listen(listener);
    let (_, _, peer) = next_accepted(&mut rig, listener);
    assert_eq!(Some(peer), client.local_addr().expect("address").as_socket());
    rig.finish(&[listener]);
}
