//! What a relay costs once it runs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;

use crate::applications::{accept, connect, connect_many, echo, fill, round};
use crate::world::{ECHO, OUTSIDE_ECHO, SINK, TO_ECHO, TO_OUTSIDE, TO_SINK, World};

const CONNECTIONS: usize = 64;
const MESSAGE: [u8; 1024] = [7; 1024];
const MIB: usize = 1 << 20;

pub fn relaying_messages_allocates_nothing(world: &World) {
    echo(ECHO);
    let _open = messages_allocate_nothing(world, TO_ECHO);
    let (client, server) = (world.client.report(), world.server.report());
    assert_eq!((client.sessions, client.tunnels), (1, CONNECTIONS));
    assert_eq!((server.sessions, server.tunnels), (1, CONNECTIONS));
}

pub fn relaying_bulk_allocates_nothing(world: &World) {
    let _open = bulk_allocates_nothing(world, TO_SINK, SINK);
    assert_eq!(world.client.report().sessions, 1);
}

pub fn relaying_plaintext_allocates_nothing(world: &World) {
    echo(OUTSIDE_ECHO);
    let _open = messages_allocate_nothing(world, TO_OUTSIDE);
    assert_eq!(world.client.report().pipes, CONNECTIONS);
}

pub fn relaying_plaintext_bulk_allocates_nothing(world: &World) {
    let _open = bulk_allocates_nothing(world, TO_OUTSIDE, OUTSIDE_ECHO);
    assert_eq!(world.client.report().pipes, 1);
}

/// 6,400 messages there and 6,400 back.
fn messages_allocate_nothing(world: &World, to: SocketAddr) -> Vec<TcpStream> {
    let mut connections = connect_many(to, CONNECTIONS);
    // More at once than what is counted needs.
    for _ in 0..20 {
        round(&mut connections, &[7; 12 * 1024]);
        round(&mut connections, &MESSAGE);
    }
    allocates_nothing(world, || {
        for _ in 0..100 {
            round(&mut connections, &MESSAGE);
        }
    });
    connections
}

/// 256 MiB on one connection. Before, everything was filled up that lies on the way, so that the workers have had the
/// most that this stream can make them hold.
fn bulk_allocates_nothing(world: &World, to: SocketAddr, at: SocketAddr) -> [TcpStream; 2] {
    let accepted = accept(at);
    let mut connection = connect(to);
    let mut delivered = accepted.recv().expect("delivered");
    let filled = fill(&mut connection);
    let (chunk, chunks) = (vec![7; MIB], 256);
    let (warm, is_warm) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        read(&mut delivered, filled + 64 * MIB);
        warm.send(()).expect("awaited");
        read(&mut delivered, chunks * MIB);
        delivered
    });
    (0..64).for_each(|_| connection.write_all(&chunk).expect("sent"));
    is_warm.recv().expect("everything arrived");
    allocates_nothing(world, || {
        (0..chunks).for_each(|_| connection.write_all(&chunk).expect("sent"));
    });
    [connection, reader.join().expect("everything arrived")]
}

fn read(connection: &mut TcpStream, mut bytes: usize) {
    let mut buffer = vec![0; MIB];
    while bytes > 0 {
        let wanted = bytes.min(MIB);
        bytes -= connection.read(&mut buffer[..wanted]).expect("received");
    }
}

fn allocates_nothing(world: &World, work: impl FnOnce()) {
    let count = || {
        (
            world.client.allocations.allocations(),
            world.server.allocations.allocations(),
        )
    };
    let before = count();
    work();
    let after = count();
    assert_eq!(
        (after.0 - before.0, after.1 - before.1),
        (0, 0),
        "allocations of the client's and of the server's worker"
    );
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
