//! A wire that cuts: one connection, forwarded in pieces of random length with a pause now and then, so that its ends
//! receive the parts of a record, or of several, at any moment.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// One piece in so many is followed by a pause of at most `PAUSE_MAX_US`.
const PAUSE_EVERY: u32 = 16;
const PAUSE_MAX_US: u64 = 2_000;

/// Forwards the first connection to `target`; where it is to be made. Its threads end with the connection.
pub(crate) fn chunking(target: SocketAddr, seed: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        let (near, _) = listener.accept().expect("somebody connects");
        let far = TcpStream::connect(target).expect("somebody listens");
        for (direction, from, to) in [(0, &near, &far), (1, &far, &near)] {
            let (from, to) = (
                from.try_clone().expect("a descriptor"),
                to.try_clone().expect("a descriptor"),
            );
            to.set_nodelay(true).expect("an open socket");
            thread::spawn(move || forward(from, to, fastrand::Rng::with_seed(2 * seed + direction)));
        }
    });
    address
}

/// Until one of the two ends: the other end then finds out by itself.
fn forward(mut from: TcpStream, mut to: TcpStream, mut random: fastrand::Rng) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(got @ 1..) = from.read(&mut buffer) {
        let mut left = &buffer[..got];
        while !left.is_empty() {
            let largest = [2, 30, 2_000, 30_000][random.usize(..4)];
            let (piece, rest) = left.split_at(random.usize(1..=largest).min(left.len()));
            if to.write_all(piece).is_err() {
                return;
            }
            left = rest;
            if random.u32(..PAUSE_EVERY) == 0 {
                thread::sleep(Duration::from_micros(random.u64(..PAUSE_MAX_US)));
            }
        }
    }
    // It fails when the other side has gone first.
    let _ = to.shutdown(std::net::Shutdown::Write);
}
