//! Applications: ordinary blocking sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use uztunnel_rig::sys;

use crate::world::PATIENCE;

/// Gives back what it gets, on every connection, until that ends.
pub fn echo(at: SocketAddr) {
    serve(at, |mut connection| {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = connection.read(&mut bytes) {
            if connection.write_all(&bytes[..n]).is_err() {
                return;
            }
        }
    });
}

/// Calls `handle` on a thread of its own for every connection.
pub fn serve(at: SocketAddr, handle: fn(TcpStream)) {
    let listener = TcpListener::bind(at).expect("the port is free");
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let connection = connection.expect("accepted");
            connection.set_nodelay(true).expect("an option");
            std::thread::spawn(move || handle(connection));
        }
    });
}

/// Hands its connections to the test.
pub fn accept(at: SocketAddr) -> mpsc::Receiver<TcpStream> {
    let listener = TcpListener::bind(at).expect("the port is free");
    let (sender, connections) = mpsc::channel();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            if sender.send(connection.expect("accepted")).is_err() {
                return;
            }
        }
    });
    connections
}

pub fn connect(to: SocketAddr) -> TcpStream {
    let connection = TcpStream::connect(to).expect("captured");
    connection.set_nodelay(true).expect("an option");
    connection.set_read_timeout(Some(PATIENCE)).expect("an option");
    connection.set_write_timeout(Some(PATIENCE)).expect("an option");
    connection
}

/// So many connections, each of which has carried a message there and back.
pub fn connect_many(to: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut connections: Vec<_> = (0..count).map(|_| connect(to)).collect();
    round(&mut connections, &[1; 100]);
    connections
}

/// Sends a message on every connection, then awaits every answer.
pub fn round(connections: &mut [TcpStream], message: &[u8]) {
    for connection in &mut *connections {
        connection.write_all(message).expect("sent");
    }
    let mut answer = vec![0; message.len()];
    for connection in &mut *connections {
        connection.read_exact(&mut answer).expect("answered");
        assert!(answer == message, "the answer is what was sent");
    }
}

/// How long a message takes there and back.
pub fn ask(connection: &mut TcpStream, message: &[u8]) -> Duration {
    let start = Instant::now();
    round(std::slice::from_mut(connection), message);
    start.elapsed()
}

/// Sends until nothing more is taken for a while.
pub fn fill(connection: &mut TcpStream) -> usize {
    let patience = Duration::from_millis(500);
    connection.set_write_timeout(Some(patience)).expect("an option");
    let mut sent = 0;
    loop {
        match connection.write(&[9; 64 * 1024]) {
            Ok(n) => sent += n,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => panic!("{error}"),
        }
    }
    connection.set_write_timeout(Some(PATIENCE)).expect("an option");
    sent
}

/// The connection ends, and not in an orderly way.
pub fn expect_reset(connection: &mut TcpStream) {
    match sys::uninterrupted(|| connection.read(&mut [0; 1024])) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("expected a reset, got {other:?}"),
    }
}

/// The connection ends, one way or the other.
pub fn expect_end(connection: &mut TcpStream) {
    match sys::uninterrupted(|| connection.read(&mut [0; 1024])) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("expected the end, got {other:?}"),
    }
}
