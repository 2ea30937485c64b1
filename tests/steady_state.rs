//! A driver in steady state allocates nothing: counted on a relay between two connections, on every driver.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use uztunnel::limits;
use uztunnel::sys::buffer::Payload;
use uztunnel::sys::driver::{Driver, Event, Owner, ReceiveMode, Received, SendStatus, SocketId};
use uztunnel::sys::epoll::EpollDriver;
use uztunnel::sys::uring::{FeatureSet, Profile, UringDriver};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator; the counter is a plain thread-local number without a
// destructor, so that counting neither allocates nor fails.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const PATIENCE: Duration = Duration::from_secs(10);
const WARM_UP: usize = 300;
const MEASURED: usize = 1_000;

fn pair(driver: &mut impl Driver) -> (SocketId, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    let ours = TcpStream::connect(listener.local_addr().expect("address")).expect("connected");
    let (theirs, _) = listener.accept().expect("accepted");
    theirs.set_read_timeout(Some(PATIENCE)).expect("timeout");
    theirs.set_nodelay(true).expect("nodelay");
    (driver.adopt(ours.into(), Owner(0)).expect("adopted"), theirs)
}

/// Allocations of `MEASURED` messages of `len` bytes passed on from one socket to another.
fn relay(mut driver: impl Driver, mode: ReceiveMode, len: usize) -> u64 {
    let (from, mut client) = pair(&mut driver);
    let (to, mut server) = pair(&mut driver);
    let message = vec![9; len];
    let mut arrived = vec![0; len];
    let mut events = Vec::with_capacity(limits::EVENTS_TURN_MAX);
    let mut waiting = VecDeque::with_capacity(64);
    let mut before = 0;
    driver.receive(from, mode);
    for round in 0..WARM_UP + MEASURED {
        if round == WARM_UP {
            before = ALLOCATIONS.get();
        }
        client.write_all(&message).expect("written");
        let (mut received, mut sending) = (0, false);
        while received < len || sending {
            driver.poll(Some(PATIENCE), &mut events).expect("polled");
            for event in events.drain(..) {
                match event {
                    Event::Sent { error: None, .. } => sending = false,
                    Event::Received {
                        data: Received::Data(buffer),
                        ..
                    } => {
                        received += buffer.len();
                        waiting.push_back(Payload::Received(buffer));
                        if mode != ReceiveMode::Stream {
                            driver.receive(from, mode);
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
            while !sending && let Some(payload) = waiting.pop_front() {
                match driver.send(to, payload) {
                    SendStatus::Done(_) => {}
                    SendStatus::Queued => sending = true,
                    SendStatus::Failed { error, .. } => panic!("{error}"),
                }
            }
        }
        server.read_exact(&mut arrived).expect("relayed");
        assert_eq!(arrived, message);
    }
    let counters = driver.counters();
    assert_eq!(counters.buffer_fallbacks, 0);
    ALLOCATIONS.get() - before
}

fn assert_steady<D: Driver>(make: impl Fn() -> D) {
    for mode in [ReceiveMode::Stream, ReceiveMode::Once { bytes_max: 1 << 20 }] {
        for len in [1024, 40_000] {
            assert_eq!(relay(make(), mode, len), 0, "{mode:?}, {len} bytes");
        }
    }
}

fn uring(set: FeatureSet) -> UringDriver {
    UringDriver::new(Profile::new(set, limits::RING_ENTRIES, None)).expect("an io_uring driver")
}

#[test]
fn the_count_sees_allocations() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(vec![0_u8; 100]));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}

#[test]
fn a_relay_on_io_uring_allocates_nothing() {
    assert_steady(|| uring(FeatureSet::NEWEST));
}

#[test]
fn a_relay_on_the_oldest_io_uring_allocates_nothing() {
    assert_steady(|| uring(FeatureSet::V5_15));
}

#[test]
fn a_relay_on_epoll_allocates_nothing() {
    assert_steady(|| EpollDriver::new().expect("an epoll driver"));
}
