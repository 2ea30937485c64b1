//! What a relay costs once it runs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::applications::{connect, connect_many, echo, round, serve};
use crate::world::{ECHO, OUTSIDE_ECHO, SINK, TO_ECHO, TO_OUTSIDE, TO_SINK, World};

const CONNECTIONS: usize = 64;
const MESSAGE: [u8; 1024] = [7; 1024];
const MIB: usize = 1 << 20;

pub fn relaying_messages_allocates_nothing(world: &World) {
    echo(ECHO);
    let mut connections = connect_many(TO_ECHO, CONNECTIONS);
    allocates_nothing(world, || round(&mut connections, &MESSAGE), 20, 50);
    assert_eq!(world.client.report().sessions, 1);
    assert_eq!(world.server.report().tunnels, CONNECTIONS);
}

pub fn relaying_plaintext_allocates_nothing(world: &World) {
    echo(OUTSIDE_ECHO);
    let mut connections = connect_many(TO_OUTSIDE, CONNECTIONS);
    allocates_nothing(world, || round(&mut connections, &MESSAGE), 20, 50);
    assert_eq!(world.client.report().pipes, CONNECTIONS);
    bulk_allocates_nothing(world, TO_OUTSIDE);
}

pub fn relaying_bulk_allocates_nothing(world: &World) {
    // Confirms every MiB with a byte, the first time after a pause in which all windows fill up: the worker has
    // then had the most that this stream can make it hold.
    serve(SINK, |mut connection| {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let mut bytes = vec![0; MIB];
        while connection.read_exact(&mut bytes).is_ok() {
            if connection.write_all(&[1]).is_err() {
                return;
            }
        }
    });
    bulk_allocates_nothing(world, TO_SINK);
    assert_eq!(world.client.report().sessions, 1);
}

fn allocates_nothing(world: &World, mut work: impl FnMut(), warm_up: usize, counted: usize) {
    for _ in 0..warm_up {
        work();
    }
    let count = || {
        (
            world.client.allocations.allocations(),
            world.server.allocations.allocations(),
        )
    };
    let before = count();
    for _ in 0..counted {
        work();
    }
    let after = count();
    assert_eq!(
        (after.0 - before.0, after.1 - before.1),
        (0, 0),
        "allocations of the client's and of the server's worker"
    );
}

/// 256 MiB on one connection, without waiting for anything but the last byte.
fn bulk_allocates_nothing(world: &World, to: SocketAddr) {
    let mut connection = connect(to);
    let chunk = vec![7; MIB];
    let mut send = |mib: usize| {
        let mut reader = connection.try_clone().expect("a descriptor");
        let confirmed = std::thread::spawn(move || read(&mut reader, mib));
        for _ in 0..mib {
            connection.write_all(&chunk).expect("sent");
        }
        confirmed.join().expect("confirmed");
    };
    allocates_nothing(world, || send(64), 2, 4);
}

fn read(connection: &mut TcpStream, bytes: usize) {
    let mut buffer = vec![0; bytes];
    connection.read_exact(&mut buffer).expect("confirmed");
}

/// A message is counted once at each of the two proxies and in each direction: a request with its answer is two
/// messages at the client's proxy and two at the server's. Every call is counted: those that wait, those that only
/// submit, and the few for the two reports themselves.
pub fn a_ring_is_entered_at_most_once_for_four_messages(world: &World) {
    const ROUNDS: usize = 50;
    echo(ECHO);
    let mut connections = connect_many(TO_ECHO, CONNECTIONS);
    for node in [&world.client, &world.server] {
        let before = node.report().counters.waits;
        for _ in 0..ROUNDS {
            round(&mut connections, &MESSAGE);
        }
        let enters = node.report().counters.waits - before;
        let messages = (2 * ROUNDS * CONNECTIONS) as u64;
        println!("{enters} enters for {messages} messages");
        assert!(enters * 4 <= messages, "{enters} enters for {messages} messages");
    }
}
