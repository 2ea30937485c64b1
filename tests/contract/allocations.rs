//! No allocation in the steady state, counted by the allocator itself, per thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::time::Duration;

use uztunnel::sys::buffer::{Payload, RecvBuffer};
use uztunnel::sys::driver::{Driver, Event, Received, SendStatus, SocketId};

use crate::bench::Bench;
use crate::rig::Rig;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it is; the counter neither allocates nor needs a
// destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: promised by the caller.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: promised by the caller.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// Passes everything received on a socket back to its peer, one send at a time on each.
struct Echo {
    events: Vec<Event>,
    waiting: VecDeque<(SocketId, RecvBuffer)>,
    sending: Vec<SocketId>,
}

impl Echo {
    /// Until `bytes` were sent.
    fn run<D: Driver>(&mut self, driver: &mut D, bytes: usize) {
        let mut sent = 0;
        while sent < bytes {
            driver
                .poll(Some(Duration::from_secs(10)), &mut self.events)
                .expect("polling works");
            for event in self.events.drain(..) {
                match event {
                    Event::Received {
                        socket,
                        data: Received::Data(buffer),
                        ..
                    } => self.waiting.push_back((socket, buffer)),
                    Event::Sent {
                        socket,
                        taken,
                        error: None,
                        ..
                    } => {
                        sent += taken;
                        self.sending.retain(|sending| *sending != socket);
                    }
                    other => panic!("{other:?}"),
                }
            }
            for _ in 0..self.waiting.len() {
                let (socket, buffer) = self.waiting.pop_front().expect("counted");
                if self.sending.contains(&socket) {
                    self.waiting.push_back((socket, buffer));
                    continue;
                }
                let len = buffer.len();
                match driver.send(socket, Payload::Received(buffer)) {
                    SendStatus::Done(_) => sent += len,
                    SendStatus::Queued => self.sending.push(socket),
                    SendStatus::Failed { error, .. } => panic!("{error}"),
                }
            }
        }
    }
}

fn rounds<B: Bench>(
    driver: &mut B::Driver,
    peers: &mut [(SocketId, B::Peer)],
    message: &[u8],
    answer: &mut [u8],
    rounds: usize,
) -> u64 {
    let mut echo = Echo {
        events: Vec::with_capacity(4096),
        waiting: VecDeque::with_capacity(4096),
        sending: Vec::with_capacity(peers.len()),
    };
    let before = ALLOCATIONS.get();
    for _ in 0..rounds {
        for (_, peer) in &mut *peers {
            peer.write_all(message).expect("written");
        }
        echo.run(driver, message.len() * peers.len());
        for (_, peer) in &mut *peers {
            peer.read_exact(answer).expect("read");
            assert!(answer == message);
        }
    }
    ALLOCATIONS.get() - before
}

fn allocates_nothing<B: Bench>(bench: &B, pairs: usize, message: &[u8]) {
    let mut rig = Rig::new(bench);
    let mut peers: Vec<_> = (0..pairs).map(|_| rig.pair()).collect();
    for (socket, _) in &peers {
        rig.stream(*socket);
    }
    let mut answer = vec![0; message.len()];
    rounds::<B>(&mut rig.driver, &mut peers, message, &mut answer, 20);
    let allocations = rounds::<B>(&mut rig.driver, &mut peers, message, &mut answer, 100);
    // Memory of its own for bytes that find no block, and for bytes in flight, is not what this is about.
    assert!(allocations == 0 || !bench.is_roomy(), "{allocations} allocations");
    let sockets: Vec<_> = peers.iter().map(|(socket, _)| *socket).collect();
    rig.finish(&sockets);
}

pub fn relaying_messages_allocates_nothing<B: Bench>(bench: &B) {
    allocates_nothing(bench, 50, &[7; 100]);
}

pub fn relaying_bulk_allocates_nothing<B: Bench>(bench: &B) {
    allocates_nothing(bench, 1, &vec![7; 60_000.min(bench.unread_max())]);
}
